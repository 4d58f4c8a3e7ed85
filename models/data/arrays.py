"""Images from an .npz file. The header of every array is checked before its values are read."""

import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.data.archive import Limits, check_expansion
from models.data.preprocessing import Preprocessing
from models.data.splits import Rows
from models.errors import BadData, DamagedFile, TooLarge, UnsafeFile

NAMES = ("images", "labels", "split")
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    OverflowError,
    KeyError,
    SyntaxError,
    RuntimeError,
    NotImplementedError,
)
MAGIC_BYTES = 8
MOST_HEADER_BYTES = 10_000
"""Length of the longest header of an array, as in NumPy."""
FINITE_ROWS = 256  # images per check
MOST_CHANNELS = 64  # of uint8 images


@dataclass(frozen=True)
class ArrayImages:
    """The inputs of the network.

    uint8 images (N, h, w, c) are preprocessed when they are loaded. float32 images (N, C, H, W) are used unchanged.
    """

    images: npt.NDArray[Any]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def load(self, rows: Rows) -> tuple[Tensor, Rows]:
        """Return the inputs in these rows, float32 (len(rows), C, H, W), and the rows."""
        chosen = self.images[rows]
        return self.preprocessing.apply(chosen) if chosen.dtype == np.uint8 else torch.from_numpy(chosen), rows

    def warnings(self) -> tuple[str, ...]:
        """Return nothing: the arrays were checked when they were read."""
        return ()


@dataclass(frozen=True)
class Arrays:
    """The arrays of a file, after they were checked against the input of the network and against each other."""

    images: ArrayImages
    labels: npt.NDArray[np.int64] | None
    splits: tuple[str, ...] | None


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path, preprocessing: Preprocessing, limits: Limits, any_size: bool = False) -> Arrays:
    """Read and check the arrays of an .npz file.

    Args:
        any_size: float images may have any size; they are not compared with the input size of the network.

    Raises:
        DamagedFile: the file is no npz file, or it is truncated.
        UnsafeFile: the file holds pickled objects, or its contents are far larger than the file.
        TooLarge: an array has more bytes than allowed.
        BadData: images, labels or split have the wrong type, shape or length, or some values are not finite.
    """
    try:
        with zipfile.ZipFile(path) as file:
            headers = _headers(file, path, limits)
            _check_headers(headers, None if any_size else preprocessing.size)
            arrays = {name: _read(file, name) for name in headers}
    except DAMAGE as error:
        raise DamagedFile(
            f"vitfit cannot read the file as .npz ({error}). The file may be truncated. Write it with numpy.savez and"
            " upload it again.",
            reason=str(error),
        ) from error
    _check_finite(arrays["images"])
    labels = arrays.get("labels")
    split = arrays.get("split")
    return Arrays(
        ArrayImages(arrays["images"], preprocessing),
        None if labels is None else _whole_numbers(labels),
        None if split is None else tuple(_text(value) for value in split.tolist()),
    )


def _headers(file: zipfile.ZipFile, path: Path, limits: Limits) -> dict[str, _Header]:
    """Return the headers of the arrays in `NAMES`.

    Their sizes are compared with the table of contents of the zip file.
    """
    headers: dict[str, _Header] = {}
    members = {info.filename: info for info in file.infolist()}
    for name in (name for name in NAMES if f"{name}.npy" in members):
        info = members[f"{name}.npy"]
        with file.open(info) as member:
            header = _header(member)
            start = member.tell()
        if header.dtype.hasobject:
            raise UnsafeFile(
                f"The array {name!r} holds Python objects. vitfit does not read them, because they are stored as a"
                " pickle, and a pickle can run code. Store plain numbers or strings (allow_pickle=False).",
                array=name,
            )
        if header.size_bytes > limits.array_bytes:
            raise TooLarge(
                f"The array {name!r} has {header.size_bytes} bytes. The limit is {limits.array_bytes} bytes. Give fewer"
                " images, or give pictures in a zip or in a folder.",
                array=name,
                bytes=header.size_bytes,
            )
        if start + header.size_bytes != info.file_size:
            raise EOFError(
                f"the header of {name!r} states {header.size_bytes} bytes, but the array has {info.file_size - start}"
                " bytes"
            )
        check_expansion(path.stat().st_size, info.file_size, limits)
        headers[name] = header
    if "images" not in headers:
        raise BadData(
            f"The file has no array 'images'. It has: {', '.join(sorted(members)[:8]) or 'no arrays'}. Allowed arrays:"
            f" {', '.join(NAMES)}. Store the images under the name 'images'.",
            found=sorted(members)[:8],
        )
    return headers


def _header(member: IO[bytes]) -> _Header:
    """Read shape and type from the first bytes. Raises: ValueError if they are not the header of an array."""
    head = member.read(MAGIC_BYTES)
    version = np.lib.format.read_magic(BytesIO(head))
    digits = member.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(digits, "little")
    if length > MOST_HEADER_BYTES:  # NumPy would read the header before it looks at its length
        raise ValueError(f"its header has {length} bytes; allowed are {MOST_HEADER_BYTES}")
    text = BytesIO(digits + member.read(length))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(text)
    except (MemoryError, RecursionError) as error:  # Python's parser raises them for a deep expression
        raise ValueError("its header is too deep") from error
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"its shape is {shape}; each size must be a whole number")
    return _Header(shape, dtype)


def _read(file: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with file.open(f"{name}.npy") as member:
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _check_headers(headers: dict[str, _Header], size: tuple[int, int, int] | None) -> None:
    images = headers["images"]
    if images.dtype == np.uint8:
        _check_bytes(images.shape, None if size is None else size[0])
    elif images.dtype == np.float32:
        _check_floats(images.shape, size)
    else:
        raise BadData(
            f"The array 'images' has type {images.dtype}. Allowed: uint8 (N, height, width, channels) or float32"
            " (N, channels, height, width). Convert the array to one of these types.",
            dtype=str(images.dtype),
        )
    for name in ("labels", "split"):
        if name in headers and headers[name].shape != images.shape[:1]:
            raise BadData(
                f"The array {name!r} has shape {list(headers[name].shape)}. The file has {images.shape[0]} images, so"
                f" the shape must be [{images.shape[0]}]. Store one value for each image.",
                array=name,
                shape=list(headers[name].shape),
                images=images.shape[0],
            )


def _check_bytes(shape: tuple[int, ...], channels: int | None) -> None:
    """Check the shape of uint8 images for a model that takes this number of channels. None: no model is known yet."""
    if channels is None:
        allowed, said = list(range(1, MOST_CHANNELS + 1)), f"1 to {MOST_CHANNELS}"
    elif channels in (1, 3):
        allowed, said = [1, 3], "1 (grey) or 3 (RGB)"
    else:
        allowed, said = [channels], str(channels)
    if len(shape) != 4 or shape[3] not in allowed or 0 in shape[1:]:
        raise BadData(
            f"The uint8 array 'images' has shape {list(shape)}. The shape must be (N, height, width, channels), with"
            f" {said} channels and no size of 0. Convert the images to this shape.",
            shape=list(shape),
            allowed_channels=allowed,
        )


def _check_floats(shape: tuple[int, ...], size: tuple[int, int, int] | None) -> None:
    if size is None:
        if len(shape) != 4 or 0 in shape[1:]:
            raise BadData(
                f"The float32 array 'images' has shape {list(shape)}. The shape must be (N, channels, height, width),"
                " with no size of 0. Convert the images to this shape."
            )
    elif shape[1:] != size:
        raise BadData(
            f"The float32 array 'images' has shape {list(shape)}. The model takes images of {list(size)} (channels,"
            " height, width), and vitfit does not change float32 images. Resize the images, or give uint8 images, which"
            " vitfit preprocesses.",
            shape=list(shape),
            allowed=list(size),
        )


def _check_finite(images: npt.NDArray[Any]) -> None:
    if images.dtype != np.float32:
        return
    for start in range(0, len(images), FINITE_ROWS):
        finite = np.isfinite(images[start : start + FINITE_ROWS]).all(axis=(1, 2, 3))
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise BadData(
                f"Image {row} holds NaN or infinity. Every value must be finite. Correct or remove this image.",
                image=row,
            )


def _whole_numbers(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Convert labels to int64. Floats and booleans are accepted as long as every value is a whole number."""
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels % 1 == 0).all()))
    if not whole:
        raise BadData(
            f"The array 'labels' has type {labels.dtype}. It must hold whole numbers, one class number for each image."
            " Convert it to int64."
        )
    return labels.astype(np.int64)


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
