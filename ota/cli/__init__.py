"""The command line of the fleet side, ``edgekit-fleet``."""
