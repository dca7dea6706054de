"""edgekit: quantize, export, check and bundle DeepSeek checkpoints for edge devices."""

__version__ = "0.1.0"
