"""Compare the installed packages with a file of known faults: `python -m benchmarks.audit advisories.json`.

The file holds advisories in the OSV format (https://ossf.github.io/osv-schema): a JSON array, an object with the member
`vulns`, or one advisory on each line. No network is needed. The exit status is 1 if an installed package has a fault.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

Advisory = Mapping[str, Any]


def installed() -> dict[str, str]:
    """Return the versions of the installed packages, by their normal names."""
    return {str(canonicalize_name(found.metadata["Name"])): found.version for found in distributions()}


def read(path: Path) -> list[Advisory]:
    """Return the advisories of a file. Raises: ValueError if it is no file of this format."""
    text = path.read_text()
    try:
        value = json.loads(text)
    except ValueError:
        value = [json.loads(line) for line in text.splitlines() if line.strip()]
    found = value.get("vulns", [value]) if isinstance(value, dict) else value
    if not isinstance(found, list) or not all(isinstance(one, dict) and "affected" in one for one in found):
        raise ValueError(f"{path.name} holds no advisories in the OSV format: each has the member 'affected'.")
    return found


def faults(advisories: Iterable[Advisory], packages: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each advisory that holds for an installed package."""
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for affected in advisory["affected"]:
            name = str(canonicalize_name(affected.get("package", {}).get("name", "")))
            is_ours = affected.get("package", {}).get("ecosystem") == "PyPI" and name in packages
            if is_ours and _holds(affected, packages[name]):
                summary = str(advisory.get("summary") or advisory.get("details") or "").strip().partition("\n")[0]
                yield f"{name} {packages[name]}: {advisory.get('id', '?')} {summary[:100]}".rstrip()


def _holds(affected: Mapping[str, Any], version: str) -> bool:
    if version in affected.get("versions", ()):
        return True
    try:
        mine = Version(version)
        return any(_in(span["events"], mine) for span in affected.get("ranges", ()) if span["type"] == "ECOSYSTEM")
    except InvalidVersion:
        return False


def _in(events: Iterable[Mapping[str, str]], mine: Version) -> bool:
    """Return whether a version lies in a range: the last event at or before it says so."""
    is_affected = False
    for kind, text in sorted(((kind, text) for event in events for kind, text in event.items()), key=_place):
        if kind == "introduced" and mine >= _version(text):
            is_affected = True
        elif (kind == "fixed" and mine >= _version(text)) or (kind == "last_affected" and mine > _version(text)):
            is_affected = False
    return is_affected


def _place(event: tuple[str, str]) -> Version:
    return _version(event[1])


def _version(text: str) -> Version:
    return Version("0.dev0" if text == "0" else text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="advisories in the OSV format")
    file = parser.parse_args(arguments).file
    packages = installed()
    advisories = read(file)
    found = sorted(set(faults(advisories, packages)))
    print(f"{len(packages)} packages, {len(advisories)} advisories, {len(found)} faults")
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
