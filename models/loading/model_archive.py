"""Unpacks a model that consists of several files in one zip or tar.

The model is an ONNX file with its external data, a Hugging Face folder, or shards of weights.
"""

import shutil
from pathlib import Path, PurePosixPath

from models.data.archive import Limits, is_clutter, members
from models.errors import DamagedFile
from models.loading.checkpoint_file import refuse_other_files
from models.loading.trainer_folder import checkpoint_part

GIB = 1 << 30
LIMITS = Limits(packed_bytes=16 * GIB, total_bytes=20 * GIB, file_bytes=16 * GIB, members=1000)


def unpack_model(archive: Path, folder: Path) -> None:
    """Unpack all files of the archive directly into `folder`, without the archive's own folders.

    Only the folders of a trainer's checkpoints remain, such as checkpoint-500.

    Raises: UnsafeFile, TooLarge, DamagedFile.
    """
    refuse_other_files(archive)
    for name, content in members(archive, LIMITS):
        if is_clutter(name):
            continue
        target = folder / checkpoint_part(name) / PurePosixPath(name).name
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            raise DamagedFile(
                f"The archive has two files with the name {target.name!r}. It must hold one model. Pack only one"
                " model.",
                member=name,
            )
        with content() as source, target.open("wb") as handle:
            shutil.copyfileobj(source, handle)
