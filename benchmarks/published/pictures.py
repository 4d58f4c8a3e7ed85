"""Pictures of a run: one folder for each split, with links into ImageNet or into noise in the same layout."""

import random
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo

CALIBRATION, SELECTION = 512, 1024
SEED = 0


def class_names() -> list[str]:
    """Return the folder names of ImageNet-1K in the order of the classes."""
    return list(ImageNetInfo("imagenet-1k").label_names())  # type: ignore[no-untyped-call]


def view(imagenet: Path, folder: Path, train: int | None, test: int | None) -> Path:
    """Make a folder of links with the splits calibration, selection, train and test.

    The test split comes from val/, the other splits come from train/. train, test: upper limits on the pictures of
    these two splits.
    """
    draw = random.Random(SEED)
    pictures, held_out = _listed(imagenet / "train"), _listed(imagenet / "val")
    draw.shuffle(pictures)
    draw.shuffle(held_out)
    selection = min(SELECTION, len(pictures) // 4)
    calibration = min(CALIBRATION, len(pictures) // 4)
    _link(pictures[:selection], folder / "selection")
    _link(pictures[selection : selection + calibration], folder / "calibration")
    _link(pictures[selection:][:train], folder / "train")
    _link(held_out[:test], folder / "test")
    return folder


def noise(folder: Path, classes: int = 8, train: int = 8, val: int = 2) -> Path:
    """Make a folder in ImageNet's layout with pictures of seeded noise, for tests and for runs without ImageNet."""
    draw = np.random.default_rng(SEED)
    for split, count in (("train", train), ("val", val)):
        for name in class_names()[:classes]:
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (240, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{name}_{i}.JPEG")
    return folder


def _listed(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*/*.JPEG"))
    if not found:
        raise SystemExit(
            f"{folder} has no <wnid>/*.JPEG; give --imagenet a folder with train/ and val/ of such folders"
        )
    return found


def _link(pictures: list[Path], folder: Path) -> None:
    for picture in pictures:
        place = folder / picture.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / picture.name).symlink_to(picture.resolve())
