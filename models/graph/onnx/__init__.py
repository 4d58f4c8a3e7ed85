"""ONNX files: prepare them, read them as graphs of PyTorch operators, and prove that both give the same outputs."""
