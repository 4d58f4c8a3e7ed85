"""What models come as."""

FILE_NAMES = {
    ".safetensors": "weights.safetensors", ".pth": "weights.pth", ".pt": "weights.pth", ".bin": "weights.pth",
    ".onnx": "model.onnx", ".zip": "model.zip",
}  # fmt: skip
"""What the file of a model is called in its folder, by the suffix that it came with."""
