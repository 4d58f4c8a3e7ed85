"""Read a file with weights: safetensors, or a file of torch.save. The content decides which of the two it is."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from models.errors import CheckpointMismatch, DamagedFile
from models.loading.inert_pickle import Inert, read_pickle, weights_of_module

HEAD = 512
"""Number of bytes at the beginning of a file that tell what the file is."""
MODULE = "pickled model"
"""Name of the weights of a complete pickled module, among the sets of weights of a file."""
STARTS = {
    b"\x89HDF": "a file of Keras (HDF5). Convert the weights to PyTorch, and save them as safetensors",
    b"GGUF": "a GGUF file. Give the weights before this conversion, as safetensors",
    b"\x1f\x8b": "packed with gzip. Unpack it first",
    b"7z\xbc\xaf": "packed with 7-Zip. Unpack it first",
    b"\xfd7zXZ": "packed with xz. Unpack it first",
}
"""What a file is and what to do, by its first bytes."""


def refuse_other_files(path: Path, title: str = "model file") -> None:
    """Raises: DamagedFile for a file that cannot hold a model: empty, a pointer of Git LFS, a web page, JSON."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise DamagedFile(f"The {title} is empty: it has 0 bytes. Give a file with weights, or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise DamagedFile(
            f"The {title} is a pointer of Git LFS, not the weights: it only names the file that Git stores elsewhere."
            " Run 'git lfs pull' in its repository, and give the file again."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise DamagedFile(
            f"The {title} is a web page (HTML or XML), not a model. A download often saves the page of a login or an"
            " error. Download the file itself: use the link of the download button."
        )
    if text.startswith((b"{", b"[")):
        raise DamagedFile(
            f"The {title} is JSON text ({head[:80].decode(errors='replace')!r}), not a model. Give the file with the"
            " weights, or the complete folder."
        )
    if found := next((what for start, what in STARTS.items() if head.startswith(start)), None):
        raise DamagedFile(f"The {title} is {found}.")


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """Return the content of a file with weights: tensors by their names, or what a training script stored.

    Raises: UnsafeFile, DamagedFile, CheckpointMismatch if the file holds no dictionary.
    """
    refuse_other_files(path)
    if path.suffix == ".safetensors" if _is_torchs(path) is None else not _is_torchs(path):
        try:
            return dict(load_file(path))
        except Exception as error:  # the header is untrusted JSON, so any error can occur
            raise DamagedFile(
                f"The checkpoint is not a complete safetensors file ({str(error)[:200]}). Upload it again."
            ) from error
    loaded = read_pickle(path)
    if isinstance(loaded, Inert):
        loaded = {MODULE: loaded}
    if not isinstance(loaded, dict):
        raise CheckpointMismatch(
            f"The checkpoint holds a {type(loaded).__name__}. It must hold a dictionary of tensors. Save it with"
            " torch.save(model.state_dict(), ...)."
        )
    return {name: _with_weights(value) for name, value in loaded.items()}


def _with_weights(value: Any) -> Any:
    """Return a pickled module as the dictionary of its weights, and any other value as it is."""
    return (weights_of_module(value) or value) if isinstance(value, Inert) else value


def _is_torchs(path: Path) -> bool | None:
    """Return whether a file is one of torch.save; None if its first bytes do not tell."""
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        return True
    return False if head[8:9] == b"{" else None
