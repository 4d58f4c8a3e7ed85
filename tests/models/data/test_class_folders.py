"""Tests of class folders: classes and splits from the names of folders, and class numbers from class names."""

import pytest

from models.data.class_folders import Grouping, group, labels_of
from models.errors import BadData


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.png", "dog/1.png"], Grouping((0, 1), ("cat", "dog"), None)),
        (["data/set/cat/1.png", "data/set/dog/deep/1.png"], Grouping((0, 1), ("cat", "dog"), None)),
        (["1.png", "2.png"], Grouping((0, 1), None, None)),
        (["all/1.png", "all/2.png"], Grouping((0, 1), None, None)),
        (["train/cat/1.png", "test/dog/1.png"], Grouping((0, 1), ("cat", "dog"), ("train", "test"))),
        (["d/train/i/cat/1.png", "d/test/i/dog/1.png"], Grouping((0, 1), ("cat", "dog"), ("train", "test"))),
        (["train/1.png", "test/1.png"], Grouping((0, 1), None, ("train", "test"))),
        (["train/1.png", "cat/1.png"], Grouping((0, 1), ("train", "cat"), None)),
    ],
)
def test_what_folders_say(names: list[str], expected: Grouping) -> None:
    assert group(names) == expected


def test_pictures_beside_class_folders() -> None:
    with pytest.raises(BadData, match=r"'stray.png' is beside the class folders"):
        group(["cat/1.png", "dog/1.png", "stray.png"])


def test_names_of_splits_are_recognised_with_any_capitals() -> None:
    found = group(["Train/cat/1.png", "Train/dog/1.png", "VAL/cat/1.png"])
    assert found.splits == ("Train", "Train", "VAL")
    assert found.classes == ("cat", "dog", "cat")


def test_a_folder_beside_the_splits_is_refused() -> None:
    with pytest.raises(BadData, match=r"'train', 'val' look like splits, but the folder 'extra' is beside them"):
        group(["train/cat/1.png", "val/cat/1.png", "extra/cat/1.png"])


def test_a_split_without_class_folders_is_left_out() -> None:
    found = group(["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "test/1.png", "test/2.png"])
    assert found.rows == (0, 1, 2)
    assert found.splits == ("train", "train", "val")
    assert found.notes == (
        "vitfit does not use the 2 pictures in the folder 'test', because they are not in class folders and so have no"
        " labels.",
    )


def test_spellings_that_differ_between_splits_are_one_class() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    found = group([f"train/{composed}/1.png", "train/Dog/1.png", f"val/{decomposed}/1.png", "val/dog/1.png"])
    assert found.classes == (composed, "Dog", composed, "Dog")


def test_two_folders_of_one_split_that_differ_by_capitals_are_refused() -> None:
    with pytest.raises(BadData, match=r"'Dog', 'dog' have the same name, except for capital letters"):
        group(["Dog/1.png", "dog/1.png", "cat/1.png"])


@pytest.mark.parametrize(
    ("folders", "names", "count", "expected"),
    [
        (["dog", "cat", "dog"], None, None, [1, 0, 1]),
        (["dog", "cat", "dog"], None, 2, [1, 0, 1]),
        (["dog", "cat", "dog"], None, 3, None),
        (["dog", "cat", "dog"], ["emu", "dog", "cat"], 3, [1, 2, 1]),
        (["Dog", "CAT"], ["emu", "dog", "cat"], 3, [1, 2]),
        (["cafe\u0301", "tea"], ["tea", "caf\u00e9"], 2, [1, 0]),
        (["Dog", "dog"], ["Dog", "dog"], 2, [0, 1]),
        (["b", "a"], ["LABEL_0", "LABEL_1"], 2, [1, 0]),
        (["1", "0"], ["emu", "dog"], 2, [1, 0]),
        (["10", "9", "010"], None, 1000, [10, 9, 10]),
        (["a", "b", "c"], None, 2, [0, 1, 2]),
    ],
)
def test_labels_from_class_folders(
    folders: list[str], names: list[str] | None, count: int | None, expected: list[int] | None
) -> None:
    labels, _ = labels_of(folders, names, count)
    assert (None if labels is None else labels.tolist()) == expected


@pytest.mark.parametrize(("folders", "names"), [(["dog", "wolf"], ["dog", "cat"]), (["a", "b"], ["dog", "cat"])])
def test_folders_are_never_matched_to_other_names_by_their_order(folders: list[str], names: list[str]) -> None:
    with pytest.raises(BadData, match="Rename each folder to its class name or its class number"):
        labels_of(folders, names, 2)


def test_an_order_that_was_assumed_is_said() -> None:
    assert labels_of(["b", "a"], None, 2)[1] == (
        "The model has no class names, so the n-th folder by name is class n: a = 0, b = 1.",
    )
