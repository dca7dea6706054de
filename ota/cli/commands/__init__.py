"""The commands of ``edgekit-fleet``, a module each."""
