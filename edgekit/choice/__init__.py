"""Which engine runs a bundle fastest here: candidates on trial, and the choice that is kept."""
