"""What a model will need and do on a machine, before anything is built: memory, rates, cost."""
