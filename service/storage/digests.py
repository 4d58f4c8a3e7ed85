"""Digests of uploaded files: a file that has changed on the disk since its upload is not used."""

import json
from pathlib import Path
from typing import Final

from models.atomic_write import write_whole
from models.errors import DamagedFile
from service.storage.base import describe, visible_files

NAME: Final = "digests.json"


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of each file of an upload to a file beside them."""
    found = {path.name: describe(path).sha256 for path in visible_files(folder) if path.name != NAME}
    write_whole(folder / NAME, json.dumps(found, indent=1))


def check_digests(folder: Path, noun: str) -> None:
    """Compare the files of an upload with their digests. An upload of an older version has none.

    noun: what was uploaded. Raises: DamagedFile.
    """
    if not (folder / NAME).is_file():
        return
    try:
        known: dict[str, str] = json.loads((folder / NAME).read_text())
        changed = [name for name, sha256 in known.items() if describe(folder / name).sha256 != sha256]
    except (OSError, ValueError) as error:
        raise DamagedFile(
            f"A file of the {noun} cannot be read ({type(error).__name__}). Upload the {noun} again, and ask the"
            " operator to check the disk."
        ) from error
    if changed:
        raise DamagedFile(
            f"The file {changed[0]} of the {noun} has changed on the server since its upload. vitfit does not use it."
            f" Upload the {noun} again, and ask the operator to check the disk.",
            files=changed,
        )
