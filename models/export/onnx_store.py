"""ONNX files on disk, with a second file for the weights of a large model.

A protobuf file holds at most 2 GiB, so the weights of a larger model are in a file `NAME.data`. The graph contains the
name of its data file. So a copy with another name needs a changed graph, and both files must always be in the same
folder.
"""

import os
import shutil
import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto

from models.atomic_write import UNFINISHED

LARGEST = 2**31 - 2**26
"""Upper limit on bytes of weights in one file. The rest is for the graph itself."""


def data_of(path: Path) -> Path:
    """Return the path of the data file of a large model."""
    return path.with_name(f"{path.name}.data")


def files_of(path: Path) -> list[Path]:
    """Return the path of the file and, if it exists, that of its data file."""
    return [path, *(data for data in [data_of(path)] if data.exists())]


def bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in files_of(path))


def is_large(model: ModelProto) -> bool:
    """Return whether the weights of a loaded model need a separate data file."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST


def save_onnx(model: ModelProto, path: Path) -> None:
    """Write a model completely or not at all. The data file is written first, then the file that refers to it."""
    data = data_of(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-", suffix=UNFINISHED) as folder:
        beside = Path(folder) / path.name
        if is_large(model):
            onnx.save(model, beside, save_as_external_data=True, location=data.name, size_threshold=1024)
            os.replace(data_of(beside), data)
        else:
            onnx.save(model, beside)
            data.unlink(missing_ok=True)
        os.replace(beside, path)


def copy_onnx(source: Path, target: Path) -> None:
    """Copy a file and its data file. The graph of the copy refers to the new name of the data file."""
    data = data_of(source)
    if not data.exists():
        shutil.copyfile(source, target)
        return
    shutil.copyfile(data, data_of(target))
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_of(target).name
    target.write_bytes(model.SerializeToString())
