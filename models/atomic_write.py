"""A file that appears at once or not at all. Standard library only."""

import os
import secrets
from pathlib import Path

UNFINISHED = ".part"
"""How the names of what is not whole end. Killed processes leave it behind; whoever comes next deletes it."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Written beside, then renamed; several may write the same one, and the last wins. Raises: OSError, and leaves nothing."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
