"""ONNX files on a disk. Above what protobuf holds (2 GiB) a file is two: the graph, and beside it `NAME.data` with its weights.

The graph says its data's name, so a copy under another name is written anew; both belong in one folder wherever they go.
"""

import os
import shutil
import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto

from models.atomic_write import UNFINISHED

LARGEST = 2**31 - 2**26
"""Bytes of weights in one file; the graph itself needs some room too."""


def data_of(path: Path) -> Path:
    """Where the weights of a large file are."""
    return path.with_name(f"{path.name}.data")


def files_of(path: Path) -> list[Path]:
    """The file, and its data if it has any."""
    return [path, *(data for data in [data_of(path)] if data.exists())]


def bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in files_of(path))


def is_large(model: ModelProto) -> bool:
    """Whether its weights, which it holds, need a file of their own."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST


def save_onnx(model: ModelProto, path: Path) -> None:
    """Whole or not at all: the data first, then the file that names it."""
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
    """With its data, and what the graph calls them."""
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
