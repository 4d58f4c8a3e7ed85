"""Takes the paths of this machine out of texts that users read: errors of libraries, tracebacks, logs of jobs.

A path below the data folder or the folder for temporary files becomes its last part. A path of code becomes relative.
Paths below the folders that the operator allows stay: users name them themselves.
"""

import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from service.core.processes import ROOT
from service.core.settings import Settings

REST = r"(?:/[^\s'\"`,;:()\[\]<>|]*)?"
"""What may follow the first part of a path in a text."""
ITSELF = "(a folder of the server)"


@dataclass(frozen=True)
class HiddenPaths:
    """The folders whose paths are hidden. files: folders with files of users and jobs. code: folders with code."""

    files: tuple[Path, ...]
    code: tuple[Path, ...] = ()
    shown: tuple[Path, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the folders of a server with these settings."""
        code = (ROOT, *map(Path, sys.path), Path(sys.prefix), Path(sys.base_prefix))
        return cls((settings.data, Path(tempfile.gettempdir()), Path.home()), code, settings.allowed_roots)

    def text(self, text: str) -> str:
        """Return a text without paths of the machine."""
        return self._pattern.sub(lambda found: self._short(found[0]), text)

    def value(self, value: Any) -> Any:
        """Return a JSON value, in whose texts there are no paths of the machine."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {name: self.value(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return value

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        roots = sorted(_names((*self.files, *self.code)), key=len, reverse=True)
        return re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, roots))})(?![\w.-]){REST}")

    def _short(self, path: str) -> str:
        end = path[len(path.rstrip(".")) :]
        path = path.rstrip(".").rstrip("/")
        if any(_is_below(path, root) for root in _names(self.shown)):
            return path + end
        owner = max((root for root in _names((*self.files, *self.code)) if _is_below(path, root)), key=len)
        rest = path[len(owner) :].strip("/")
        if owner in _names(self.files):
            rest = rest.rpartition("/")[2]
        return (rest or ITSELF) + end


def _names(folders: Iterable[Path]) -> set[str]:
    """Return the folders as text, also with their links resolved, without the root of the file system."""
    return {str(form) for folder in folders for form in (folder, folder.resolve()) if len(form.parts) > 1}


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")
