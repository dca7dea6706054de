"""The stages from a checkpoint to a bundle, and the order they run in."""
