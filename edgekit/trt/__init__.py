"""TensorRT: the builder on this machine, engines by plan, and the compile check."""
