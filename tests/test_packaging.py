"""What stands in the repository is what an installed server has."""

import tomllib
from pathlib import Path

from tests.import_rules import ROOMS, ROOT


def test_every_package_is_installed() -> None:
    """An editable install finds packages that the list forgets; the image does not."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        ".".join(init.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for init in Path(ROOT / room).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)
