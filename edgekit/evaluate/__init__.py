"""Quality of a model: the float32 reference, divergence, exact match, golden sequences."""
