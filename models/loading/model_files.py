"""File names of uploaded models."""

FILE_NAMES = {
    ".safetensors": "weights.safetensors",
    ".pth": "weights.pth",
    ".pt": "weights.pth",
    ".bin": "weights.pth",
    ".onnx": "model.onnx",
    ".zip": "model.zip",
}
"""Maps the suffix of an uploaded file to its name in the model folder."""
