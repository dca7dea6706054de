"""The command line of the cloud's side: ``edgekit-fleet``."""
