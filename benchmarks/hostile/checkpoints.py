"""Hostile checkpoints: safetensors and torch files, damaged or with unusual content. None of them may run code."""

import io
import json
import pickle
import random
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from benchmarks.hostile.upload import Upload, damaged
from models.loading.load_model import untrained

MODEL = "vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}


def checkpoint(rng: random.Random, marker: str) -> Upload:
    """Make a hostile checkpoint.

    marker: path of a file that appears if any code of a pickle runs.
    """
    weights = {name: value.clone() for name, value in untrained(MODEL, **OPTIONS).module.state_dict().items()}
    name, suffix, content = rng.choice((_safetensors, _torch, _odd, _pickled))(rng, weights, marker)
    config = json.dumps({"name": MODEL, "options": OPTIONS})
    return Upload(f"checkpoint, {name}", "/v1/models", None, f"weights{suffix}", content, {"config": config})


def _safetensors(rng: random.Random, weights: dict[str, Tensor], _marker: str) -> tuple[str, str, bytes]:
    whole = save(weights)
    if rng.random() < 0.5:
        name, content = damaged(rng, whole)
        return f"safetensors {name}", ".safetensors", content
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    tensor = rng.choice([key for key in header if key != "__metadata__"])
    odd: dict[str, Any] = rng.choice(
        [
            {"dtype": rng.choice(["F8_E4M3", "BOOL", "U64", "C64", "F4", "", None, 7])},
            {"shape": rng.choice([[], [-1], [2**62, 2**62], [0], "16", [1.5], [2**70]])},
            {"data_offsets": rng.choice([[0, 0], [5, 1], [-8, 8], [0, 2**63], [], "x", [0, 2**70]])},
        ]
    )
    header[tensor] = rng.choice([{**header[tensor], **odd}, odd, [], None])
    text = rng.choice(
        [json.dumps(header), "[" * 50_000, '{"a":' * 20_000, "{}", "null", '{"__metadata__": 3}']
    ).encode()
    length = rng.choice([len(text), len(text), len(text) + 1, 0, 2**40, 2**63])
    return "safetensors with an odd header", ".safetensors", struct.pack("<Q", length) + text + whole[8 + size :]


def _torch(rng: random.Random, weights: dict[str, Tensor], _marker: str) -> tuple[str, str, bytes]:
    name, content = damaged(rng, _saved(weights, new=rng.random() < 0.6))
    return f"torch file {name}", rng.choice((".pth", ".pt", ".bin")), content


def _saved(value: Any, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def _odd(rng: random.Random, weights: dict[str, Tensor], _marker: str) -> tuple[str, str, bytes]:
    """Make an undamaged torch file whose content is not what a network needs."""
    key = rng.choice(list(weights))
    value = weights[key]
    changes: dict[str, Callable[[], Any]] = {
        "keys that are numbers": lambda: {1: value, **weights},
        "only keys that are numbers": lambda: {1: value, (2, 3): value, None: value},
        "a sparse tensor": lambda: {**weights, key: value.to_sparse()},
        "complex numbers": lambda: {**weights, key: value.to(torch.complex64)},
        "whole numbers": lambda: {**weights, key: value.to(torch.int64)},
        "8-bit floats": lambda: {**weights, key: value.to(torch.float8_e4m3fn)},
        "a quantised tensor": lambda: {**weights, key: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)},
        "an expanded tensor": lambda: {**weights, key: torch.zeros(1).expand(value.shape)},
        "a nested tensor": lambda: {**weights, key: torch.nested.nested_tensor([value, value])},
        "a tensor on meta": lambda: {**weights, key: value.to("meta")},
        "not a number": lambda: {**weights, key: value * float("nan")},
        "a wrapper in a wrapper": lambda: {"state_dict": {"model": weights}},
        "a wrapper that is empty": lambda: {"model": {}, **weights},
        "a wrapper around junk": lambda: {"state_dict": {"a": {"b": [1, 2]}}},
        "a list": lambda: list(weights.values()),
        "a tensor": lambda: value,
        "nothing": lambda: {},
        "a dictionary in itself": _endless,
        "other shapes": lambda: {name: tensor.flatten() for name, tensor in weights.items()},
        "an ordered dictionary": lambda: OrderedDict(weights),
        "a prefix": lambda: {f"module.{name}": tensor for name, tensor in weights.items()},
        "long names": lambda: {**weights, "x" * 100_000: value, "\ud800": value},
    }
    name = rng.choice(list(changes))
    return f"torch file with {name}", ".pth", _saved(changes[name](), new=rng.random() < 0.8)


def _endless() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["state_dict"] = found
    return found


class _Runs:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._marker, "w")


def _pickled(rng: random.Random, weights: dict[str, Tensor], marker: str) -> tuple[str, str, bytes]:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    code = {"a": _Runs(marker)}
    content = rng.choice(
        [
            pickle.dumps(code, protocol=rng.choice((0, 2, 4, 5))),
            _saved(code),
            _saved(code, new=False),
            pickle.dumps(deep),
            b"\x80\x02" + b"(" * 100_000 + b".",
            b"\x80\x02" + b"]q\x00" * 50_000 + b".",
            b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
            b"\x80\x04\x95" + b"\xff" * 8,
            b"\x80\x02h\x05.",
            b"\x80\x02.",
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00)R.",
            b"\x80\x02X\xff\xff\xff\x7fabc.",
            b"\x80\x05\x96" + b"\xff" * 8,
            b"cos\nsystem\n(S'true'\ntR.",
            b"\x80\x02}q\x00(K\x01K\x02u.",
            b"",
            b"\x00" * 100,
            b"PK\x05\x06" + b"\x00" * 18,
        ]
    )
    return "pickle", rng.choice((".pth", ".pt", ".bin")), content
