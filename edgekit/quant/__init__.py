"""Quantization: schemes, plans and algorithms. Arrays in, arrays out."""
