"""Class and split of each picture, read from the names of its folders."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from models.data.splits import SPLIT_WORDS, Rows
from models.errors import BadData

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Grouping:
    """Class and split of each picture, read from folder names.

    Attributes:
        rows: the pictures that belong to the data set, by number.
        classes: the class folder of each of these pictures, or None without class folders.
        splits: the split folder of each of these pictures, or None without split folders.
        notes: what was left out, as sentences.
    """

    rows: tuple[int, ...]
    classes: tuple[str, ...] | None
    splits: tuple[str, ...] | None
    notes: tuple[str, ...] = field(default=())


def group(names: Sequence[str]) -> Grouping:
    """Read class and split of every picture from its folders: `[root/][split/]class/.../picture`.

    Folders that all pictures share are skipped. A split without class folders is left out if other splits have them,
    as in ImageNet, whose test images have no labels.

    Raises: BadData if some pictures are beside the class folders or the split folders, or if the names of two class
        folders differ only by capital letters.
    """
    rest = _without_shared([PurePosixPath(unicodedata.normalize("NFC", name)).parts[:-1] for name in names])
    rows = tuple(range(len(names)))
    splits = None
    notes: tuple[str, ...] = ()
    if _are_splits({parts[0] if parts else "" for parts in rest}):
        splits = tuple(parts[0] for parts in rest)
        rows, notes = _labelled_splits([parts[1:] for parts in rest], splits)
        splits = tuple(splits[row] for row in rows)
        rest = _without_shared([rest[row][1:] for row in rows])
    depths = {bool(parts) for parts in rest}
    if depths == {True, False}:
        beside = next(names[row] for row, parts in zip(rows, rest, strict=True) if not parts)
        raise BadData(
            f"The picture {beside!r} is beside the class folders. All pictures or no pictures must be in class folders."
            " Move this picture into a class folder, or remove it.",
            file=beside,
        )
    if depths == {False}:
        return Grouping(rows, None, splits, notes)
    return Grouping(rows, _same_spelling([parts[0] for parts in rest], splits), splits, notes)


def _without_shared(folders: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    first, last = min(folders), max(folders)  # a prefix of both is a prefix of every folder between them
    shared = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    return [folder[min(len(first), len(last)) if shared is None else shared :] for folder in folders]


def _are_splits(tops: set[str]) -> bool:
    """Return whether the top folders are splits. Raises: BadData if some are splits and others cannot be."""
    splits = {name for name in tops if name.casefold() in SPLIT_WORDS}
    if splits == tops:
        return True
    if len({SPLIT_WORDS[name.casefold()] for name in splits}) < 2:  # a class may be named "train"
        return False
    other = min(tops - splits)
    beside = f"the folder {other!r} is" if other else "some pictures are"
    raise BadData(
        f"The folders {_listed(splits)} look like splits, but {beside} beside them. All pictures must be in folders of"
        " splits, or no pictures. Move or remove the other pictures.",
        splits=sorted(splits),
    )


def _labelled_splits(rest: list[tuple[str, ...]], splits: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the pictures of the splits that have class folders, and a sentence for each split that has none."""
    depths: dict[str, set[bool]] = defaultdict(set)
    for parts, split in zip(rest, splits, strict=True):
        depths[split].add(bool(parts))
    flat = sorted(split for split, found in depths.items() if found == {False})
    if len(flat) == len(depths):
        flat = []
    rows = tuple(row for row, split in enumerate(splits) if split not in flat)
    return rows, tuple(
        f"vitfit does not use the {splits.count(split)} pictures in the folder {split!r}, because they are not in class"
        " folders and so have no labels."
        for split in flat
    )


def _same_spelling(classes: list[str], splits: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes with one spelling for each class. "Cat" in one split and "cat" in another are one class.

    Raises: BadData if the same split has both.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for name in set(classes):
        spellings[name.casefold()].add(name)
    several = {key: sorted(found) for key, found in spellings.items() if len(found) > 1}
    if not several:
        return tuple(classes)
    present = set(zip(classes, splits or [""] * len(classes), strict=True))
    for found in several.values():
        homes = [{split for name, split in present if name == spelling} for spelling in found]
        if len(set.union(*homes)) < sum(map(len, homes)):
            raise BadData(
                f"The class folders {_listed(found)} have the same name, except for capital letters. vitfit cannot tell"
                " whether they are one class or two. Merge them, or give them different names.",
                folders=found,
            )
    return tuple(several.get(name.casefold(), [name])[0] for name in classes)


def labels_of(
    classes: Sequence[str], names: Sequence[str] | None, count: int | None
) -> tuple[Rows | None, tuple[str, ...]]:
    """Return class numbers from class folders, or None if the folders do not determine them, and remarks on them.

    Folders are matched by the class names of the network (capital letters and the Unicode form of letters may differ),
    or by class numbers. Only for a network without class names, the n-th folder by name is class n, as in torchvision's
    ImageFolder; then there must be one folder for each of the `count` classes.

    Raises: BadData if the network has class names and a folder matches none of them.
    """
    present = sorted(set(classes))
    names = None if names is None or _are_default(names) else names
    numbers: dict[str, int] | None = None
    notes: tuple[str, ...] = ()
    if names is not None:
        numbers = _matched(present, names)
    if numbers is None and all(name.isdecimal() and name.isascii() for name in present):
        numbers = {name: int(name) for name in present}
    if numbers is None and names is not None:
        unmatched = [name for name in present if name not in names]
        raise BadData(
            f"The model has class names, and {len(unmatched)} of the {len(present)} class folders are not among them:"
            f" {_listed(unmatched)}. The model's first classes: {_listed(names)}. Rename each folder to its class name"
            " or its class number.",
            folders=unmatched[:20],
        )
    if numbers is None and (count is None or len(present) >= count):  # too many are refused when labels are checked
        numbers = {name: number for number, name in enumerate(present)}
        shown = ", ".join(f"{name} = {number}" for name, number in list(numbers.items())[:SHOWN])
        if count is not None:
            more = ", ..." if len(present) > SHOWN else ""
            notes = (f"The model has no class names, so the n-th folder by name is class n: {shown}{more}.",)
    return None if numbers is None else np.array([numbers[name] for name in classes], dtype=np.int64), notes


def _are_default(names: Sequence[str]) -> bool:
    """Return whether these are the names that libraries invent: 0, 1 ... or LABEL_0, LABEL_1 ..."""
    return all(name in (str(number), f"LABEL_{number}") for number, name in enumerate(names))


def _matched(present: Sequence[str], names: Sequence[str]) -> dict[str, int] | None:
    """Return the class of each folder, or None if a folder has no class or a name stands for several classes."""
    for spelling in (str, _plain_spelling):
        known: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(names):
            known[spelling(name)].append(number)
        found = [known.get(spelling(name), []) for name in present]
        if all(len(numbers) == 1 for numbers in found) and len({numbers[0] for numbers in found}) == len(present):
            return {name: numbers[0] for name, numbers in zip(present, found, strict=True)}
    return None


def _plain_spelling(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _listed(names: Sequence[str] | set[str]) -> str:
    shown = sorted(names) if isinstance(names, set) else list(names)
    return ", ".join(map(repr, shown[:SHOWN])) + (", ..." if len(shown) > SHOWN else "")
