"""Removes the paths of this machine from a message that goes to a server."""

import re
from collections.abc import Iterable
from pathlib import Path

PATH = re.compile(r"(?:(?<![\w/])/(?=[^\s/])|(?<!\w)[A-Za-z]:\\)[^\s'\"]*")
DIGEST = re.compile(r"[0-9a-f]{64}")
HIDDEN = "[path]"


def without_paths(text: str, folders: Iterable[Path] = ()) -> str:
    """Return the text with `[path]` in the place of each absolute path.

    A file of a task keeps the first digits of its SHA-256, because the server knows the file by it.

    folders: folders whose names may contain spaces, which nothing else would recognise.
    """
    for folder in folders:
        for name in {str(folder.absolute()), str(folder.resolve())} - {"/"}:
            text = text.replace(name, "/-")
    return PATH.sub(_hidden, text)


def _hidden(match: re.Match[str]) -> str:
    digest = DIGEST.search(match[0])
    return HIDDEN if digest is None else f"the file {digest[0][:12]}"
