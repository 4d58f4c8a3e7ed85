"""Atomic file writes: a file appears complete or not at all. Standard library only."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".part"
"""Suffix of incomplete files and folders. A killed process leaves them behind, and a later process deletes them."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and atomically replace `path` by that file when the block ends well.

    Several processes may replace the same file: the last one wins. When the block raises, the temporary file is deleted
    and `path` keeps its content.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all. Raises: OSError; the previous content of the file then stays."""
    with replacing(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
