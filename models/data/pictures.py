"""Folders of pictures: list the pictures, read class and split from folder names, and decode pixels on demand."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.data.archive import PICTURE_SUFFIXES, Limits, is_clutter
from models.data.preprocessing import Preprocessing
from models.errors import BadData, DamagedFile, TooLarge, UnsafeFile

# Pillow reads more formats, but for some of them it starts other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
SPLIT_NAMES = ("train", "calibration", "selection", "test")
UNCLEAR_SPLITS = ("val", "valid", "validation", "dev", "eval")
CHECKED = 1000  # headers read when a data set is opened; the other pictures are checked when they are decoded


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk, and its name (with forward slashes) in the user's folder or archive."""

    path: Path
    name: str


@dataclass(frozen=True)
class Grouping:
    """Class and split of each picture i, read from folder names. None if there are no class or no split folders."""

    classes: tuple[str, ...] | None
    splits: tuple[str, ...] | None


@dataclass(frozen=True)
class PictureImages:
    """Pictures as inputs of the network.

    They are decoded when they are loaded, so a folder may be larger than the memory.
    """

    files: tuple[PictureFile, ...]
    preprocessing: Preprocessing
    limits: Limits

    def __len__(self) -> int:
        return len(self.files)

    def load(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return the inputs in these rows, float32 (len(rows), C, H, W). Raises: the errors of `opened`."""
        images = torch.empty((len(rows), *self.preprocessing.size))
        for place, row in enumerate(rows):
            with opened(self.files[row], self.limits) as picture:
                images[place] = self.preprocessing.apply_to_picture(picture)
        return images

    def check(self) -> None:
        """Read the headers of up to `CHECKED` pictures, evenly spread over the files.

        Raises: the errors of `opened`.
        """
        for row in np.unique(np.linspace(0, len(self.files) - 1, CHECKED).astype(int)):
            with opened(self.files[row], self.limits):
                pass


@contextmanager
def opened(file: PictureFile, limits: Limits) -> Iterator[Image.Image]:
    """Open a picture and read its header. Its pixels are decoded when they are used, inside the `with` block.

    Raises:
        BadData: the file is no picture.
        DamagedFile: the file cannot be read to its end.
        TooLarge: the picture has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(file.path, formats=FORMATS)
        with picture:
            if picture.width * picture.height > limits.pixels:
                raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(
            f"The picture {file.name!r} is too large ({error}). The limit is {limits.pixels} pixels. Make the picture"
            " smaller.",
            file=file.name,
            allowed=limits.pixels,
        ) from error
    except UnidentifiedImageError as error:
        raise BadData(
            f"The file {file.name!r} is not a picture that vitfit can read. Allowed formats: {', '.join(FORMATS)}."
            " Convert or remove the file.",
            file=file.name,
        ) from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        raise DamagedFile(
            f"vitfit cannot decode the picture {file.name!r} ({error}). The file may be truncated. Replace it.",
            file=file.name,
        ) from error


def list_folder(folder: Path, roots: Sequence[Path], limits: Limits) -> tuple[list[PictureFile], int]:
    """Return the pictures below a folder, sorted by name, and the number of files that are no pictures.

    Links to pictures are followed as long as they stay inside one of `roots`; links to folders are refused.

    Raises:
        UnsafeFile: a link leads out of the roots, or to a folder.
        TooLarge: there are too many pictures.
        BadData: there are no pictures.
    """
    files: list[PictureFile] = []
    ignored = 0
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in PICTURE_SUFFIXES or is_clutter(name):
            ignored += 1
            continue
        path = _inside(path, roots) if path.is_symlink() else path
        if not path.is_file():  # a pipe or a socket: reading it might never end
            ignored += 1
            continue
        files.append(PictureFile(path, name))
        if len(files) > limits.members:
            raise TooLarge(
                f"The folder {str(folder)!r} holds more than {limits.members} pictures. The limit is {limits.members}"
                " pictures. Use a folder with fewer pictures.",
                allowed=limits.members,
            )
    if not files:
        raise BadData(
            f"The folder {str(folder)!r} holds no pictures. Allowed types of pictures: {', '.join(PICTURE_SUFFIXES)}."
            " Put the pictures into this folder, with one folder for each class.",
            ignored=ignored,
        )
    return sorted(files, key=lambda file: file.name), ignored


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=False):
        for name in folders:
            if (Path(place) / name).is_symlink():
                raise UnsafeFile(
                    f"{str(Path(place) / name)!r} is a link to a folder. vitfit does not follow links to folders."
                    " Replace the link by the folder."
                )
        for name in names:
            yield Path(place) / name


def _inside(path: Path, roots: Sequence[Path]) -> Path:
    """Return the file that a link leads to.

    Raises: UnsafeFile if it is outside of all roots, or if links form a circle.
    """
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise UnsafeFile(
            f"The link {str(path)!r} does not lead to a file. Replace the link by the file, or remove it.",
            path=str(path),
        ) from error
    if not any(real.is_relative_to(root) for root in roots):
        raise UnsafeFile(
            f"The link {str(path)!r} leads out of the folders that the operator allows. Replace the link by the file.",
            path=str(path),
        )
    return real


def group(names: Sequence[str]) -> Grouping:
    """Read class and split of every picture from its folders: `[root/][split/]class/.../picture`.

    Folders that all pictures share are skipped.

    Raises: BadData if some pictures lie beside the class folders, or if the name of a split is unclear.
    """
    rest = _without_shared([PurePosixPath(name).parts[:-1] for name in names])
    tops = {parts[0] if parts else "" for parts in rest}
    splits = None
    if tops <= {*SPLIT_NAMES, *UNCLEAR_SPLITS}:
        _refuse_unclear(tops)
        splits = tuple(parts[0] for parts in rest)
        rest = _without_shared([parts[1:] for parts in rest])
    depths = {bool(parts) for parts in rest}
    if depths == {True, False}:
        beside = next(name for name, parts in zip(names, rest, strict=True) if not parts)
        raise BadData(
            f"The picture {beside!r} is beside the class folders. All pictures or no pictures must be in class folders."
            " Move this picture into a class folder, or remove it.",
            file=beside,
        )
    return Grouping(tuple(parts[0] for parts in rest) if depths == {True} else None, splits)


def _without_shared(folders: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    first, last = min(folders), max(folders)  # a prefix of both is a prefix of every folder between them
    shared = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    return [folder[min(len(first), len(last)) if shared is None else shared :] for folder in folders]


def _refuse_unclear(tops: set[str]) -> None:
    unclear = sorted(tops & set(UNCLEAR_SPLITS))
    if unclear:
        raise BadData(
            f"The purpose of the folder {unclear[0]!r} is unclear. Rename it to 'selection' if vitfit may score"
            " trials on its images. Rename it to 'test' if its images are only for the report.",
            folder=unclear[0],
            allowed=list(SPLIT_NAMES),
        )


def labels_of(classes: Sequence[str], names: Sequence[str] | None, count: int | None) -> npt.NDArray[np.int64] | None:
    """Return class numbers from class folders, or None if the folders do not determine them.

    Folders that have the class names of the network, or class numbers, as names get those classes. Otherwise the n-th
    folder by name is class n, as in torchvision's ImageFolder. The network has `count` classes; for this last rule
    there must be one folder per class.
    """
    present = sorted(set(classes))
    if names is not None and set(present) <= set(names):
        numbers = {name: names.index(name) for name in present}
    elif all(name.isdecimal() and name.isascii() for name in present):
        numbers = {name: int(name) for name in present}
    elif count is None or len(present) >= count:  # too many classes are refused later, by the check of all labels
        numbers = {name: number for number, name in enumerate(present)}
    else:
        return None
    return np.array([numbers[name] for name in classes], dtype=np.int64)
