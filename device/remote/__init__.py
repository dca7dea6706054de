"""Configuration and commands from afar: pulled, proven, and never looser than the owner's own."""
