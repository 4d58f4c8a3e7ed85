"""Tests of npz files: what vitfit reads, and how it refuses bad files by their headers."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from models.data.archive import MIB, Limits
from models.data.arrays import read_npz
from models.data.preprocessing import Preprocessing
from models.errors import BadData, DamagedFile, TooLarge, UnsafeFile, VitfitError

PREPROCESSING = Preprocessing(size=(1, 16, 16), mean=(0.5,), std=(0.5,))
BYTES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
FLOATS = np.random.default_rng(0).standard_normal((40, 1, 16, 16)).astype(np.float32)


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


def claim(path: Path, shape: str, dtype: str = "|u1", content: bytes = b"") -> Path:
    """Write an npz file whose header claims more than its content holds."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path / "data.npz", "w") as file:
        file.writestr(
            "images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content
        )
    return path / "data.npz"


def assert_refused(path: Path, error: type[VitfitError], words: str, limits: Limits | None = None) -> None:
    with pytest.raises(error, match=words):
        read_npz(path, PREPROCESSING, limits or Limits())


def test_bytes_are_preprocessed(tmp_path: Path) -> None:
    arrays = read_npz(write(tmp_path, images=BYTES, labels=np.arange(40) % 3), PREPROCESSING, Limits())
    rows = np.array([7, 2])
    assert torch.equal(arrays.images.load(rows)[0], PREPROCESSING.apply(BYTES[rows]))
    assert arrays.labels is not None
    assert arrays.labels.dtype == np.int64
    assert arrays.splits is None


@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_are_taken_as_they_are(tmp_path: Path, order: Literal["C", "F"]) -> None:
    path = write(tmp_path, images=np.array(FLOATS, order=order))
    loaded = read_npz(path, PREPROCESSING, Limits()).images.load(np.array([3]))[0]
    assert torch.equal(loaded, torch.from_numpy(FLOATS[3:4]))


@pytest.mark.parametrize("kind", ["<U9", "S9"])
def test_split_as_text_or_bytes(tmp_path: Path, kind: str) -> None:
    split = np.array(["train"] * 20 + ["test"] * 20, dtype=kind)
    arrays = read_npz(write(tmp_path, images=BYTES, split=split), PREPROCESSING, Limits())
    assert arrays.splits == ("train",) * 20 + ("test",) * 20


def test_compressed_npz_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", images=BYTES)
    assert len(read_npz(tmp_path / "data.npz", PREPROCESSING, Limits()).images) == 40


class Exploding:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of the pickle has run')",))


@pytest.mark.parametrize("name", ["images", "labels", "split"])
def test_pickle_inside(tmp_path: Path, name: str) -> None:
    arrays = {"images": BYTES, "labels": np.zeros(40, int), "split": np.array(["test"] * 40)}
    arrays[name] = np.array([Exploding()] * 40, dtype=object)
    assert_refused(write(tmp_path, **arrays), UnsafeFile, f"'{name}' holds Python objects")


def test_a_bare_pickle(tmp_path: Path) -> None:
    np.array([Exploding()], dtype=object).dump(tmp_path / "data.npz")
    assert_refused(tmp_path / "data.npz", DamagedFile, "cannot read the file as .npz")


@pytest.mark.parametrize("keep", [0, 100, 2000, -30])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, images=BYTES)
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(path, DamagedFile, "may be truncated")


def test_content_was_changed(tmp_path: Path) -> None:
    path = write(tmp_path, images=BYTES)
    path.write_bytes(path.read_bytes().replace(BYTES[5].tobytes(), BYTES[6].tobytes()))
    assert_refused(path, DamagedFile, "CRC")


@pytest.mark.parametrize("shape", ["(40, 8, 8, 1)", "(-40, 8, 8, 1)", "(-2, -5, 10, 1)", "(40, 8", "'forty'"])
def test_headers_that_lie(tmp_path: Path, shape: str) -> None:
    assert_refused(claim(tmp_path, shape, content=bytes(100)), DamagedFile, "cannot read the file as .npz")


@pytest.mark.parametrize("shape", ["(True, 8, 8, 1)", "(40, 8, 8, True)", "(" * 200 + "4" + ")" * 200])
def test_headers_with_odd_sizes(tmp_path: Path, shape: str) -> None:
    found = claim(tmp_path, shape, content=bytes(64))
    assert_refused(found, DamagedFile, "each size must be a whole number|header|npz")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_header_is_not_read_when_its_length_is_beyond_the_limit(tmp_path: Path, version: int) -> None:
    """NumPy would read up to 4 GiB of blanks, which are a few megabytes in the zip."""
    path, most = tmp_path / "data.npz", 60_000 if version == 1 else 2**28
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("images.npy", "w") as member:
        member.write(b"\x93NUMPY" + bytes([version, 0]) + most.to_bytes(2 if version == 1 else 4, "little"))
        member.write(b" " * 20_000)
    assert_refused(path, DamagedFile, f"its header has {most} bytes; allowed are 10000")


def test_more_bytes_than_the_header_claims(tmp_path: Path) -> None:
    assert_refused(
        claim(tmp_path, "(40, 8, 8, 1)", content=bytes(40 * 8 * 8 + 1)), DamagedFile, "but the array has 2561 bytes"
    )


def test_a_header_that_claims_more_than_memory(tmp_path: Path) -> None:
    assert_refused(claim(tmp_path, "(1000000, 1000, 1000, 3)"), TooLarge, "limit is 4294967296 bytes")


def test_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", images=np.zeros((4, 1024, 1024, 1), np.uint8))
    limits = Limits(expansion_from_bytes=2 * MIB)
    assert_refused(tmp_path / "data.npz", UnsafeFile, "limit is 100 times", limits)


def test_no_images(tmp_path: Path) -> None:
    assert_refused(write(tmp_path, pictures=BYTES), BadData, "no array 'images'. It has: pictures.npy")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (BYTES.astype(np.float64), "float64. Allowed: uint8"),
        (BYTES[..., 0], r"shape \[40, 8, 8\]"),
        (BYTES.transpose(0, 3, 1, 2), r"shape \[40, 1, 8, 8\].*1 \(grey\) or 3"),
        (BYTES[:, :0], r"shape \[40, 0, 8, 1\]"),
        (FLOATS[..., :15], r"takes images of \[1, 16, 16\]"),
        (FLOATS.repeat(3, axis=1), r"shape \[40, 3, 16, 16\]"),
    ],
)
def test_images_of_the_wrong_shape_or_kind(tmp_path: Path, images: np.ndarray, words: str) -> None:
    assert_refused(write(tmp_path, images=images), BadData, words)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 299])
def test_values_that_are_not_finite(tmp_path: Path, value: float, row: int) -> None:
    images = np.zeros((300, 1, 16, 16), dtype=np.float32)
    images[row, 0, 3, 3] = value
    assert_refused(write(tmp_path, images=images), BadData, f"Image {row} holds NaN or infinity")


@pytest.mark.parametrize("name", ["labels", "split"])
def test_lengths_that_differ(tmp_path: Path, name: str) -> None:
    values = {"labels": np.zeros(39, int), "split": np.array(["test"] * 39)}[name]
    assert_refused(
        write(tmp_path, images=BYTES, **{name: values}), BadData, f"'{name}' has shape .39.. The file has 40 images"
    )


def test_labels_of_the_wrong_kind(tmp_path: Path) -> None:
    assert_refused(write(tmp_path, images=BYTES, labels=np.full(40, 0.5)), BadData, "'labels' has type float64")
    assert_refused(write(tmp_path, images=BYTES, labels=np.full(40, "a")), BadData, "'labels' has type <U1")


@pytest.mark.parametrize("kind", [np.float32, np.bool_, np.uint8])
def test_labels_are_whole_numbers_of_any_type(tmp_path: Path, kind: type) -> None:
    path = write(tmp_path, images=BYTES, labels=(np.arange(40) % 2).astype(kind))
    labels = read_npz(path, PREPROCESSING, Limits()).labels
    assert labels is not None and labels.tolist() == [0, 1] * 20


def test_only_the_arrays_that_are_needed_are_read(tmp_path: Path) -> None:
    """A pickle under another name does no harm, because nobody opens it."""
    path = write(tmp_path, images=BYTES, notes=np.array([Exploding()], dtype=object))
    assert len(read_npz(path, PREPROCESSING, Limits()).images) == 40
    with zipfile.ZipFile(path) as file:
        assert "notes.npy" in file.namelist()
