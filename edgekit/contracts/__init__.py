"""What crosses the air or the disk between edgekit's parts. Standard library only."""
