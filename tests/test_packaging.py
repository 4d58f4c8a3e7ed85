"""Check that an installed server has all files that are in the repository."""

import tomllib
from pathlib import Path

from setuptools import find_packages

from tests.import_rules import ROOMS, ROOT


def test_every_package_is_installed() -> None:
    """An editable install finds folders that a built package would miss. The image uses a built package."""
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.parent for room in ROOMS for path in Path(ROOT / room).rglob("*.py")}
    needed = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(find_packages(str(ROOT), include=include)) == needed


def test_every_file_that_is_no_module_is_installed() -> None:
    """Templates, profiles and the page must be part of their packages."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    listed = {
        path
        for package, globs in data.items()
        for glob in globs
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    there = {
        path
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert listed == there != set()
