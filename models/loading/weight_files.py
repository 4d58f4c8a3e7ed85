"""Find and read the files with weights in a folder: one file, or several shards with an index."""

from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.errors import CheckpointMismatch, DamagedFile
from models.loading.adapters import refuse_adapter_folder
from models.loading.checkpoint import precision_said
from models.loading.checkpoint_file import read_checkpoint, refuse_other_files
from models.loading.image_processor import read_json
from models.loading.weight_sets import chosen_weights

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = tuple(f"{name}.index.json" for name in WHOLE)
PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")
"""What the names of a trainer's other files begin with."""
KINDS = {"BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in INDEXES) or bool(_candidates(folder))


def _candidates(folder: Path) -> list[Path]:
    """Return the files with weights of the first kind of which there are any; safetensors come first."""
    for pattern in PATTERNS:
        if found := sorted(path for path in folder.glob(pattern) if not path.name.startswith(NO_WEIGHTS)):
            return found
    return []


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of the model in a folder: one file, or all shards of an index.

    Raises: CheckpointMismatch for an adapter, a missing shard, or several files without an index; DamagedFile.
    """
    refuse_adapter_folder(folder)
    files = next(([folder / name] for name in WHOLE if (folder / name).is_file()), None)
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if files is None:
        files = _candidates(folder) if index is None else _shards(index)
    if index is None and len(files) > 1:
        raise CheckpointMismatch(
            f"The folder holds {len(files)} files with weights ({', '.join(path.name for path in files[:5])}) and no"
            f" index that says which belong together ({' or '.join(INDEXES)}). Give one file, or add the index."
        )
    for path in files:
        refuse_other_files(path, f"file {path.name}")
    return files


def _shards(index: Path) -> list[Path]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise DamagedFile(f"The index {index.name} names no shards (weight_map). Upload the folder again.")
    files = [index.parent / PurePosixPath(name).name for name in sorted(set(placed.values()))]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise CheckpointMismatch(
            f"The shard {missing[0]!r} of the weights is missing. {index.name} names {len(files)} shards. Add those"
            f" that are not there: {', '.join(missing[:8])}.",
            missing=missing,
        )
    return files


def read_weights(files: list[Path]) -> dict[Any, Any]:
    """Return the content of one file, or the tensors of all shards together. Raises: UnsafeFile, DamagedFile."""
    content: dict[Any, Any] = {}
    for path in files:
        content |= read_checkpoint(path)
    return content


def as_safetensors(folder: Path, files: list[Path]) -> list[str]:
    """Write pickled weights as model.safetensors beside them, because no other package shall open a pickle.

    Return sentences about the precision of the weights.

    Raises: UnsafeFile, DamagedFile, CheckpointMismatch.
    """
    if any(path.suffix != ".safetensors" for path in files):
        tensors = chosen_weights(read_weights(files), {}, None).tensors
        target = folder / WHOLE[0]
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, target, {"format": "pt"})
        files = [target]
    return precision_said(kind for path in files for kind in _kinds(path))


def _kinds(path: Path) -> set[torch.dtype]:
    """Return the 16-bit and 64-bit types of the tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {KINDS[kind] for name in file.keys() if (kind := file.get_slice(name).get_dtype()) in KINDS}  # noqa: SIM118
    except Exception as error:  # the header is untrusted JSON, so any error can occur
        raise DamagedFile(
            f"The file {path.name} is not a complete safetensors file ({str(error)[:200]}). Upload it again."
        ) from error
