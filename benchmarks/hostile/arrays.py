"""Hostile .npz files: their arrays are not valid images, labels or splits."""

import io
import random
import zipfile
from typing import Any

import numpy as np

from benchmarks.hostile.upload import Upload, damaged

IMAGES = 60


def arrays(rng: random.Random) -> Upload:
    name, content = rng.choice((_damaged, _odd, _odd, _header))(rng)
    return Upload(f"npz, {name}", "/v1/datasets", None, "data.npz", content)


def _whole(rng: random.Random) -> dict[str, Any]:
    draw = np.random.default_rng(rng.randrange(2**32))
    return {"images": draw.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8), "labels": np.arange(IMAGES) % 3}


def _saved(content: dict[str, Any], packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **content)
    return buffer.getvalue()


def _damaged(rng: random.Random) -> tuple[str, bytes]:
    return damaged(rng, _saved(_whole(rng), rng.random() < 0.5))


def _odd(rng: random.Random) -> tuple[str, bytes]:
    whole = _whole(rng)
    images, labels = whole["images"], whole["labels"]
    values: list[Any] = [
        images.astype(object), images.astype(np.float64), images.astype(np.complex64), images.astype(">f4"),
        images.astype("S3"), images.astype("U2"), images.astype(np.float32).transpose(0, 3, 1, 2),
        np.full((IMAGES, 3, 8, 8), np.nan, np.float32), images[:, :, :, 0], images[:0], images[:, :0], images[..., :2],
        np.zeros(()), np.zeros((1,) * 30), np.array("x"), np.asfortranarray(images),
        np.zeros(5, dtype=[("a", "u1"), ("b", "O")]), np.zeros(IMAGES, dtype="M8[s]"), images.astype(bool),
        np.zeros((IMAGES, 1, 9000, 1), np.uint8),
        labels.astype(np.float32), labels - 5, labels.astype(np.uint64) + 2**63, labels[:3], labels[:, None],
        labels.astype(bool), labels.astype("U"), labels.astype(object), np.array(["test"] * IMAGES),
        np.array(["calibration", "selection", "test"] * (IMAGES // 3)), np.array([b"\xff\xfe"] * IMAGES),
        np.array(["\ud800"] * IMAGES), np.array([None] * IMAGES), np.array(["../../x"] * IMAGES),
    ]  # fmt: skip
    key, value = rng.choice(("images", "labels", "split")), rng.choice(values)
    return f"{key} of {value.dtype} {value.shape}", _saved({**whole, key: value}, rng.random() < 0.5)


def _header(rng: random.Random) -> tuple[str, bytes]:
    """Make a file with an array `images` whose header was written by hand."""
    text = rng.choice(
        [
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8, 3), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 3), }",
            "{'descr': '|u1', 'fortran_order': 7, 'shape': 'x', }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (60,), }",
            "{'descr': [('a', '<f8', (2**40,))], 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '|V99999999999', 'fortran_order': False, 'shape': (1,), }",
            "__import__('os').system('true')",
            "(" * 5_000,
            "{" * 200,
            "",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (60, 8, 8, 3), 'x': 1}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (60, 8, 8, True), }",
            "[1] * 10**9",
            "-" * 20_000 + "1",
            "{'descr': '\\ud800'}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (9" + "9" * 5_000 + ",)}",
        ]
    ).encode("latin1", "replace")
    version = rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    buffer = io.BytesIO(_saved({"labels": _whole(rng)["labels"]}))
    with zipfile.ZipFile(buffer, "a", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as opened:
        opened.writestr("images.npy", b"\x93NUMPY" + version + size + text + bytes(60 * 8 * 8 * 3))
    return f"header {text[:40]!r}", buffer.getvalue()
