"""Unpacks a model that consists of several files in one zip or tar.

The model is an ONNX file with its external data, or a Hugging Face folder.
"""

import shutil
from pathlib import Path, PurePosixPath

from models.data.archive import Limits, is_clutter, members
from models.errors import DamagedFile

GIB = 1 << 30
LIMITS = Limits(packed_bytes=16 * GIB, total_bytes=20 * GIB, file_bytes=16 * GIB, members=1000)


def unpack_model(archive: Path, folder: Path) -> None:
    """Unpacks all files of the archive directly into `folder`, without the archive's own folders.

    Raises: UnsafeFile, TooLarge, DamagedFile.
    """
    for name, content in members(archive, LIMITS):
        if is_clutter(name):
            continue
        target = folder / PurePosixPath(name).name
        if target.exists():
            raise DamagedFile(
                f"The archive has two files with the name {target.name!r}. It must hold one model. Pack only one"
                " model.",
                member=name,
            )
        with content() as source, target.open("wb") as handle:
            shutil.copyfileobj(source, handle)
