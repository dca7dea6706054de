"""What a device tells of itself when something is wrong, with everything private taken out."""
