"""Tests of the splits of a data set: those that it names, and those that vitfit makes."""

from pathlib import Path

import numpy as np
import pytest

from models.data.dataset import Dataset
from models.data.open_dataset import NEEDED, open_data
from models.data.splits import SPLITS
from models.errors import BadData
from tests.models.data.test_dataset import GIVEN, IMAGES, LABELS, PREPROCESSING, npz_set


@pytest.fixture
def given(tmp_path: Path) -> Dataset:
    return open_data(npz_set(tmp_path / "set", images=IMAGES, labels=LABELS, split=GIVEN), PREPROCESSING, 4)


@pytest.fixture
def split_here(tmp_path: Path) -> Dataset:
    return open_data(npz_set(tmp_path / "set", images=IMAGES, labels=LABELS), PREPROCESSING, 4)


def test_a_given_split_is_kept(given: Dataset) -> None:
    assert given.rows["train"].tolist() == given.rows["calibration"].tolist() == list(range(40))
    assert given.rows["selection"].tolist() == list(range(40, 70))
    assert given.rows["test"].tolist() == list(range(70, 120))


def test_calibration_and_train_may_be_told_apart(tmp_path: Path) -> None:
    split = np.array(["calibration"] * 20 + ["train"] * 60 + ["selection"] * 20 + ["test"] * 20)
    data = open_data(npz_set(tmp_path / "set", images=IMAGES, split=split), PREPROCESSING, None)
    assert [data.count(split) for split in SPLITS] == [20, 20, 20, 60]


def test_calibration_serves_training(tmp_path: Path) -> None:
    split = np.where(GIVEN == "train", "calibration", GIVEN)
    data = open_data(npz_set(tmp_path / "set", images=IMAGES, split=split), PREPROCESSING, None)
    assert data.count("train") == data.count("calibration") == 40


@pytest.mark.parametrize("labelled", [True, False])
def test_without_a_split_the_images_are_dealt_out(tmp_path: Path, labelled: bool) -> None:
    arrays = {"images": IMAGES, "labels": LABELS} if labelled else {"images": IMAGES}
    data = open_data(npz_set(tmp_path / "set", **arrays), PREPROCESSING, 4)
    assert [data.count(split) for split in SPLITS] == [60, 30, 30, 60]
    parts = [set(data.rows[split].tolist()) for split in ("calibration", "selection", "test")]
    assert set.union(*parts) == set(range(120))  # the counts add up to 120, so no row is in two splits
    assert data.rows["train"].tolist() == data.rows["calibration"].tolist()
    assert data.rows["test"].tolist() != list(range(90, 120))  # the rows are shuffled
    assert any("defines no splits" in warning for warning in data.warnings)


def test_the_split_is_stratified(split_here: Dataset) -> None:
    for split in SPLITS:
        per_class = np.bincount(LABELS[split_here.rows[split]], minlength=4)
        assert per_class.max() - per_class.min() <= 1


def test_the_split_is_the_same_every_time(split_here: Dataset, tmp_path: Path) -> None:
    again = open_data(tmp_path / "set", PREPROCESSING, 4)
    assert again.rows["test"].tolist() == split_here.rows["test"].tolist()


def test_an_unknown_split(tmp_path: Path) -> None:
    split = np.char.replace(GIVEN, "test", "holdout")
    with pytest.raises(BadData, match=r"does not exist. Use these splits: calibration, selection, test, train"):
        open_data(npz_set(tmp_path / "set", images=IMAGES, split=split), PREPROCESSING, None)


@pytest.mark.parametrize(
    ("given", "counts", "note"),
    [  # names of splits and their sizes, then the images for calibration, selection, test and train
        ({"train": 60, "val": 60}, [60, 30, 30, 60], "half of the validation images (30) for selection"),
        ({"train": 60, "valid": 40, "test": 20}, [60, 40, 20, 60], "the 40 validation images for selection"),
        ({"train": 60, "selection": 40, "val": 20}, [60, 40, 20, 60], "the 20 validation images for test"),
        ({"train": 80, "test": 40}, [60, 20, 40, 60], "20 images of the split 'train'"),
        ({"train": 80, "selection": 40}, [80, 20, 20, 80], "20 of the selection images"),
        ({"validation": 60, "test": 60}, [30, 30, 60, 30], "30 selection images for calibration"),
        ({"train": 120}, [90, 15, 15, 90], "30 images of the split 'train'"),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_missing_splits_are_made_and_said(
    tmp_path: Path, given: dict[str, int], counts: list[int], note: str, labelled: bool
) -> None:
    split = np.array([name for name, count in given.items() for _ in range(count)])
    arrays = {"images": IMAGES, "split": split, **({"labels": LABELS} if labelled else {})}
    data = open_data(npz_set(tmp_path / "set", **arrays), PREPROCESSING, 4)
    assert [data.count(name) for name in SPLITS] == counts
    assert any(note in warning for warning in data.warnings)
    rows = [set(data.rows[split].tolist()) for split in ("calibration", "selection", "test")]
    assert len(set.union(*rows)) == 120 == sum(map(len, rows))  # all images are used, and none twice
    if labelled:
        for name in SPLITS:
            per_class = np.bincount(LABELS[data.rows[name]], minlength=4)
            assert per_class.max() - per_class.min() <= 2


def test_validation_images_beside_selection_and_test(tmp_path: Path) -> None:
    split = np.array(["train", "selection", "test", "val"] * 30)
    with pytest.raises(BadData, match="purpose of the validation images is unclear"):
        open_data(npz_set(tmp_path / "set", images=IMAGES, split=split), PREPROCESSING, None)


@pytest.mark.parametrize("lacking", ["selection", "test", "train"])
def test_a_split_with_too_few_images(tmp_path: Path, lacking: str) -> None:
    split = GIVEN.copy()
    split[np.flatnonzero(split == lacking)[5:]] = "train" if lacking != "train" else "test"
    with pytest.raises(BadData, match="16 images for calibration, 8 images for selection, 8 images for test") as caught:
        open_data(npz_set(tmp_path / "set", images=IMAGES, split=split), PREPROCESSING, None)
    assert caught.value.facts["needed"]["test"] == NEEDED["test"]


def test_too_few_images_for_a_split_of_our_own(tmp_path: Path) -> None:
    open_data(npz_set(tmp_path / "set", images=IMAGES[:32]), PREPROCESSING, None)
    with pytest.raises(BadData, match="at least 32 images"):
        open_data(npz_set(tmp_path / "set", images=IMAGES[:31]), PREPROCESSING, None)
    with pytest.raises(BadData, match="no images"):
        open_data(npz_set(tmp_path / "set", images=IMAGES[:0]), PREPROCESSING, None)
