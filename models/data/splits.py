"""The splits of a data set: the names that people give them, and the images that a missing split gets.

calibration  for statistics and recovery
selection    for the scores of the search
test         for the report only
train        for fine-tuning; these are the calibration images, unless the data set has a split of its own for training

Calibration, selection and test share no images.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.errors import BadData

Split = Literal["calibration", "selection", "test", "train"]
Rows = npt.NDArray[np.int64]
SPLITS: tuple[Split, ...] = ("calibration", "selection", "test", "train")
SPLIT_SEED = 0  # a data set without splits is split the same way in every job
SPLIT_CYCLE: tuple[Split, ...] = ("calibration", "selection", "calibration", "test")
SPLIT_WORDS: dict[str, Split | Literal["validation"]] = {
    "train": "train",
    "training": "train",
    "calibration": "calibration",
    "selection": "selection",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
}
MOST_SELECTION = 5000  # training images that become selection images; more images do not change the order of trials


def split_rows(count: int, labels: Rows | None) -> dict[Split, Rows]:
    """Split `count` images at random with a fixed seed.

    Images are distributed class by class, so each split gets the same share of every class, to within one image.
    """
    order = _by_class(np.arange(count), labels)
    place = np.arange(count) % len(SPLIT_CYCLE)
    dealt = {split: [turn for turn, name in enumerate(SPLIT_CYCLE) if name == split] for split in SPLITS}
    rows = {split: np.sort(order[np.isin(place, turns)]) for split, turns in dealt.items()}
    rows["train"] = rows["calibration"]
    return rows


def given_rows(splits: Sequence[str], labels: Rows | None) -> tuple[dict[Split, Rows], list[str]]:
    """Return the splits that the data set names, and a sentence for each split that vitfit had to make itself.

    Images for validation become selection images, or test images, or half of each: whatever is missing. Every other
    missing split is cut from another one: selection from the training images, test and calibration from selection. A
    data set with only one of "train" and "calibration" uses the same images for both.

    Raises: BadData if a split has an unknown name, or if the purpose of the validation images is unclear.
    """
    rows = _named(splits)
    notes = []
    if len(rows["validation"]):
        notes += _use_validation(rows, labels)
    if not len(rows["train"]) and not len(rows["calibration"]):
        count = len(rows["selection"]) // 2
        rows["train"], rows["selection"] = _cut(rows["selection"], labels, count)
        notes.append(f"vitfit uses {count} selection images for calibration, because the data set has no other split.")
    if not len(rows["selection"]):
        donor = "train" if len(rows["train"]) else "calibration"
        count = min(len(rows[donor]) // 4, MOST_SELECTION)
        rows["selection"], rows[donor] = _cut(rows[donor], labels, count)
        notes.append(
            f"The data set has no images for selection. vitfit takes {count} images of the split {donor!r} for it, and"
            " uses them for nothing else."
        )
    if not len(rows["test"]):
        count = len(rows["selection"]) // 2
        rows["test"], rows["selection"] = _cut(rows["selection"], labels, count)
        notes.append(f"The data set has no images for test. vitfit takes {count} of the selection images for it.")
    for split, other in (("calibration", "train"), ("train", "calibration")):
        rows[split] = rows[split] if len(rows[split]) else rows[other]
    return {split: rows[split] for split in SPLITS}, notes


def _named(splits: Sequence[str]) -> dict[str, Rows]:
    """Return the rows of each split, and of "validation". Raises: BadData for a name that vitfit does not know."""
    words = {name: SPLIT_WORDS.get(name.casefold()) for name in set(splits)}
    unknown = sorted(name for name, split in words.items() if split is None)
    if unknown:
        raise BadData(
            f"The data set names the split {unknown[0]!r}, which does not exist. Use these splits:"
            f" {', '.join(SPLITS)}; val is allowed too.",
            split=unknown[0],
        )
    names = np.array([words[name] for name in splits])
    return {split: np.flatnonzero(names == split) for split in (*SPLITS, "validation")}


def _use_validation(rows: dict[str, Rows], labels: Rows | None) -> list[str]:
    """Give the validation images to the splits that are missing. Returns: what was done, as sentences."""
    missing = [split for split in ("selection", "test") if not len(rows[split])]
    if not missing:
        raise BadData(
            "The data set has images for validation, for selection and for test. The purpose of the validation images"
            " is unclear. Rename the folder of the validation images to 'selection' if vitfit may score trials on them,"
            " or remove it.",
            allowed=list(SPLITS),
        )
    pool = rows["validation"]
    if len(missing) == 1:
        rows[missing[0]] = pool
        return [f"vitfit uses the {len(pool)} validation images for {missing[0]}."]
    rows["selection"], rows["test"] = _cut(pool, labels, (len(pool) + 1) // 2)
    return [
        f"vitfit uses half of the validation images ({len(rows['selection'])}) for selection and the other half"
        f" ({len(rows['test'])}) for test."
    ]


def _cut(rows: Rows, labels: Rows | None, count: int) -> tuple[Rows, Rows]:
    """Cut `count` rows out, with the same share of each class. Returns: (the rows cut out, the rest), both sorted."""
    order = _by_class(rows, None if labels is None else labels[rows])
    taken = np.zeros(len(rows), dtype=bool)
    taken[(np.arange(count) * len(rows)) // max(count, 1)] = True
    return np.sort(order[taken]), np.sort(order[~taken])


def _by_class(rows: Rows, labels: Rows | None) -> Rows:
    """Return the rows in a random order with a fixed seed. With labels, the rows of one class follow each other."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    return rows[order]
