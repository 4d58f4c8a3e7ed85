"""Folders of pictures: list the pictures, and decode their pixels on demand."""

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.data.archive import PICTURE_SUFFIXES, Limits, is_clutter
from models.data.preprocessing import SIXTEEN_BIT_MODES, Preprocessing
from models.data.splits import Rows
from models.errors import BadData, DamagedFile, TooLarge, UnsafeFile, VitfitError

# Pillow reads more formats, but for some of them it starts other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MOST_DAMAGED = 0.01  # share of the pictures that may be damaged; vitfit skips these pictures
SHOWN = 5  # names in a message
CHECKED = 1000  # headers read when a data set is opened; the other pictures are checked when they are decoded


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk, and its name (with forward slashes) in the user's folder or archive."""

    path: Path
    name: str


@dataclass(frozen=True)
class PictureImages:
    """Pictures as inputs of the network.

    They are decoded when they are loaded, so a folder may be larger than the memory.
    """

    files: tuple[PictureFile, ...]
    preprocessing: Preprocessing
    limits: Limits
    opening_warnings: tuple[str, ...] = ()
    _damaged: dict[str, str] = field(default_factory=dict, compare=False)  # name of the picture, and the reason

    def __len__(self) -> int:
        return len(self.files)

    def load(self, rows: Rows) -> tuple[Tensor, Rows]:
        """Return the inputs in these rows, float32 (n, C, H, W), and the rows without those of damaged pictures.

        Raises: the errors of `opened`; those of a damaged picture only if more than `MOST_DAMAGED` of all pictures are
            damaged.
        """
        images, sound = [], []
        for row in rows:
            try:
                with opened(self.files[row], self.limits) as picture:
                    images.append(self.preprocessing.apply_to_picture(picture))
                sound.append(row)
            except DamagedFile as error:
                self._damaged[self.files[row].name] = error.detail
                _check_damaged(len(self._damaged), len(self.files), error)
        loaded = torch.stack(images) if images else torch.empty((0, *self.preprocessing.size))
        return loaded, np.array(sound, dtype=np.int64)

    def warnings(self) -> tuple[str, ...]:
        """Return the remarks of the opening, and the damaged pictures that were found since."""
        return (*self.opening_warnings, *_skipped(list(self._damaged)))

    def checked(self) -> "PictureImages":
        """Return these pictures without the damaged ones, as far as headers show damage.

        Reads the headers of up to `CHECKED` pictures, evenly spread over the files.

        Raises: the errors of `opened`; those of a damaged picture only if more than `MOST_DAMAGED` of the pictures
            that were read are damaged. BadData if the model takes other channels than pictures have.
        """
        if self.preprocessing.size[0] not in (1, 3):
            raise BadData(
                f"The model takes images with {self.preprocessing.size[0]} channels. Pictures have 1 (grey) or 3 (RGB)."
                " Give the images as an .npz file.",
                channels=self.preprocessing.size[0],
            )
        damaged: set[int] = set()
        deep = 0
        rows = np.unique(np.linspace(0, len(self.files) - 1, CHECKED).astype(int)).tolist()
        for row in rows:
            try:
                with opened(self.files[row], self.limits) as picture:
                    deep += picture.mode in SIXTEEN_BIT_MODES
            except (BadData, DamagedFile) as error:
                damaged.add(row)
                _check_damaged(len(damaged), len(rows), error)
        files = tuple(file for row, file in enumerate(self.files) if row not in damaged)
        remarks = _skipped([self.files[row].name for row in sorted(damaged)])
        if deep:
            remarks.append(
                f"{deep} of {len(rows)} pictures have 16 bits for each pixel. vitfit takes 0 as black and 65535 as"
                " white. If your pictures use a smaller range, convert them to 8 bits yourself."
            )
        return dataclasses.replace(self, files=files, opening_warnings=tuple(remarks))


def _check_damaged(damaged: int, pictures: int, error: VitfitError) -> None:
    """Raise this error if too many pictures are damaged."""
    if damaged > MOST_DAMAGED * pictures:
        raise error


def _skipped(names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(map(repr, names[:SHOWN]))
    return [f"vitfit skipped {len(names)} damaged pictures: {shown}{more}."]


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
