"""File names of uploaded models."""

from models.errors import InvalidRequest

FILE_NAMES = {
    ".safetensors": "weights.safetensors",
    ".pth": "weights.pth",
    ".pt": "weights.pth",
    ".bin": "weights.pth",
    ".ckpt": "weights.pth",
    ".pth.tar": "weights.pth",
    ".onnx": "model.onnx",
    ".zip": "model.zip",
}
"""Maps the end of the name of an uploaded file to its name in the model folder."""


def stored_name(filename: str) -> str:
    """Return the name under which an uploaded model file is stored. Raises: InvalidRequest for another kind of file."""
    for end, name in FILE_NAMES.items():
        if filename.lower().endswith(end):
            return name
    raise InvalidRequest(
        f"vitfit cannot read the model file {filename!r}. Give a file whose name ends with one of:"
        f" {', '.join(FILE_NAMES)}.",
        field="checkpoint",
        value=filename,
        allowed=list(FILE_NAMES),
    )
