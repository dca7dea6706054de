"""The canonical ONNX graph: a typed builder, its lowerings, the decoder, and its checks."""
