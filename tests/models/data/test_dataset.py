"""Tests of data sets as a job sees them: separate splits, batches, descriptions and refusals."""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.archive import Limits
from models.data.dataset import Dataset
from models.data.noise import noise_data
from models.data.open_dataset import open_data
from models.data.preprocessing import Preprocessing
from models.data.splits import SPLITS
from models.errors import BadData, DamagedFile, InvalidRequest, TooLarge, UnsafeFile

PREPROCESSING = Preprocessing(size=(1, 16, 16), mean=(0.5,), std=(0.5,))
NUMBERS = np.arange(120)
IMAGES = np.broadcast_to(NUMBERS.astype(np.uint8)[:, None, None, None], (120, 8, 8, 1))  # image i has level i
LABELS = NUMBERS % 4
GIVEN = np.array(["train"] * 40 + ["selection"] * 30 + ["test"] * 50)


def npz_set(folder: Path, **arrays: Any) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "data.npz", **arrays)
    describe(folder, "npz")
    return folder


def describe(folder: Path, source: str, path: Path | str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    value = {"source": source, "path": None if path is None else str(path), "filename": "upload"}
    (folder / "dataset.json").write_text(json.dumps(value))
    return folder


def picture(level: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (9, 9), level).save(content, "PNG")
    return content.getvalue()


def zip_set(folder: Path, names: Sequence[str]) -> Path:
    """Write a zip file of pictures. The n-th picture has level n."""
    describe(folder, "archive")
    with zipfile.ZipFile(folder / "data.zip", "w") as file:
        for level, name in enumerate(names):
            file.writestr(name, picture(level))
    return folder


def levels(images: torch.Tensor) -> list[int]:
    """Return the levels with which the images were painted."""
    return ((images.mean((1, 2, 3)) * 0.5 + 0.5) * 255).round().int().tolist()


@pytest.fixture
def given(tmp_path: Path) -> Dataset:
    return open_data(npz_set(tmp_path / "set", images=IMAGES, labels=LABELS, split=GIVEN), PREPROCESSING, 4)


# Labels


@pytest.mark.parametrize(("label", "classes"), [(4, 4), (-1, 4), (-1, None)])
def test_labels_outside_of_the_classes(tmp_path: Path, label: int, classes: int | None) -> None:
    labels = LABELS.copy()
    labels[17] = label
    with pytest.raises(BadData, match=f"Image 17 has label {label}. Allowed labels: 0"):
        open_data(npz_set(tmp_path / "set", images=IMAGES, labels=labels), PREPROCESSING, classes)


def test_labels_are_optional(tmp_path: Path) -> None:
    data = open_data(npz_set(tmp_path / "set", images=IMAGES), PREPROCESSING, 4)
    assert data.take("test", 5, 0).labels is None
    assert data.describe()["labelled"] is False
    assert data.describe()["classes"] is None


# Batches


def test_take_brings_images_labels_and_rows_together(given: Dataset) -> None:
    batch = given.take("selection", 10, seed=3)
    assert batch.images.shape == (10, 1, 16, 16)
    assert batch.images.dtype == torch.float32
    assert levels(batch.images) == batch.indices.tolist()
    assert batch.labels is not None
    assert batch.labels.tolist() == (batch.indices % 4).tolist()
    assert set(batch.indices.tolist()) <= set(range(40, 70))


def test_take_is_seeded_and_grows(given: Dataset) -> None:
    def rows(count: int, seed: int) -> list[int]:
        return given.take("test", count, seed).indices.tolist()

    assert rows(10, 1) == rows(10, 1) != rows(10, 2)
    assert set(rows(10, 1)) < set(rows(20, 1))
    assert rows(10, 1) == sorted(rows(10, 1))
    assert rows(1000, 1) == list(range(70, 120))


def test_batches_bring_everything_once(given: Dataset) -> None:
    batches = list(given.batches("test", 16))
    assert [len(batch.images) for batch in batches] == [16, 16, 16, 2]
    assert [level for batch in batches for level in levels(batch.images)] == list(range(70, 120))


def test_pictures_are_decoded_batch_by_batch(tmp_path: Path) -> None:
    """The last picture is damaged. Check that the batches before it are still delivered."""
    folder = zip_set(tmp_path / "set", [f"test/{n:03}.png" for n in range(40)] + [f"train/{n}.png" for n in range(20)])
    with zipfile.ZipFile(folder / "data.zip", "a") as file:
        for number in range(10):
            file.writestr(f"selection/{number}.png", picture(1))
        file.writestr("test/999.png", picture(1)[:45])
    batches = open_data(folder, PREPROCESSING, None).batches("test", 8)
    assert [levels(next(batches).images)[0] for _ in range(5)] == [0, 8, 16, 24, 32]
    with pytest.raises(DamagedFile, match=r"test/999.png"):
        next(batches)


# Archives and folders of pictures

CLASSES = [f"{name}/{n:02}.png" for name in ("cat", "dog") for n in range(20)]


def test_an_archive_of_class_folders(tmp_path: Path) -> None:
    data = open_data(zip_set(tmp_path / "set", CLASSES), PREPROCESSING, 2)
    batch = data.take("calibration", 100, 0)
    assert batch.labels is not None
    assert batch.labels.tolist() == [int(level >= 20) for level in levels(batch.images)]
    assert data.describe()["classes"] == 2


def test_an_archive_of_one_folder_is_unlabelled(tmp_path: Path) -> None:
    data = open_data(zip_set(tmp_path / "set", CLASSES[:20] + [f"cat/x{n}.png" for n in range(20)]), PREPROCESSING, 2)
    assert data.labels is None
    assert any("one folder, so they have no labels" in warning for warning in data.warnings)


def test_class_folders_that_cannot_be_matched_are_no_labels(tmp_path: Path) -> None:
    data = open_data(zip_set(tmp_path / "set", CLASSES), PREPROCESSING, 1000)
    assert data.labels is None
    assert any("in 2 class folders, but the model has 1000 classes" in text for text in data.warnings)
    named = open_data(tmp_path / "set", PREPROCESSING, 3, class_names=["dog", "emu", "cat"])
    assert named.labels is not None
    assert named.labels.tolist() == [2] * 20 + [0] * 20


def test_more_class_folders_than_classes(tmp_path: Path) -> None:
    more = [*CLASSES, *(f"emu/{n:02}.png" for n in range(20))]
    with pytest.raises(BadData, match=r"label 2\. Allowed labels: 0 to 1"):
        open_data(zip_set(tmp_path / "set", more), PREPROCESSING, 2)


def test_a_model_with_one_logit_has_two_classes(tmp_path: Path) -> None:
    data = open_data(zip_set(tmp_path / "set", CLASSES), PREPROCESSING, 1)
    assert data.labels is not None and set(data.labels.tolist()) == {0, 1}


def test_other_files_are_counted(tmp_path: Path) -> None:
    folder = zip_set(tmp_path / "set", CLASSES)
    with zipfile.ZipFile(folder / "data.zip", "a") as file:
        file.writestr("README.md", "hello")
    assert any("ignored 1 files" in text for text in open_data(folder, PREPROCESSING, 2).warnings)


def test_a_text_that_calls_itself_a_picture_is_found_at_once(tmp_path: Path) -> None:
    folder = zip_set(tmp_path / "set", CLASSES)
    with zipfile.ZipFile(folder / "data.zip", "a") as file:
        file.writestr("dog/99.png", "hello")
    with pytest.raises(BadData, match=r"'dog/99.png' is not a picture"):
        open_data(folder, PREPROCESSING, 2)


def test_a_zip_that_climbs_out_leaves_nothing(tmp_path: Path) -> None:
    folder = zip_set(tmp_path / "set", [*CLASSES, "../../evil.png"])
    with pytest.raises(UnsafeFile, match="unsafe name"):
        open_data(folder, PREPROCESSING, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["data.zip", "dataset.json"]
    assert not list(tmp_path.rglob("evil.png"))


# Paths


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder that the operator allows, with one folder of pictures for each class."""
    for level, name in enumerate(CLASSES):
        path = tmp_path / "shelf" / "animals" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(level))
    return tmp_path / "shelf"


def test_a_path_under_an_allowed_folder(tmp_path: Path, shelf: Path) -> None:
    folder = describe(tmp_path / "set", "path", shelf / "animals")
    data = open_data(folder, PREPROCESSING, 2, [tmp_path / "other", shelf])
    assert levels(data.take("test", 3, 0).images) == data.take("test", 3, 0).indices.tolist()
    assert [path.name for path in folder.iterdir()] == ["dataset.json"]  # no file is copied


def test_a_path_to_a_file(tmp_path: Path, shelf: Path) -> None:
    np.savez(shelf / "digits.npz", images=IMAGES)
    data = open_data(describe(tmp_path / "set", "path", shelf / "digits.npz"), PREPROCESSING, None, [shelf])
    assert len(data.images) == 120


@pytest.mark.parametrize("path", ["/etc", "{shelf}/../secret", "{shelf}/door", "{shelf}-2"])
def test_a_path_that_climbs_out(tmp_path: Path, shelf: Path, path: str) -> None:
    for name in ("secret", "shelf-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture(1))
    os.symlink(tmp_path / "secret", shelf / "door")
    folder = describe(tmp_path / "set", "path", path.format(shelf=shelf))
    with pytest.raises(UnsafeFile, match="outside of the folders that the operator allows"):
        open_data(folder, PREPROCESSING, 2, [shelf])


def test_no_path_is_allowed_unless_the_operator_says_so(tmp_path: Path, shelf: Path) -> None:
    with pytest.raises(UnsafeFile, match=r"allows \(none\)"):
        open_data(describe(tmp_path / "set", "path", shelf), PREPROCESSING, 2)


def test_a_link_to_a_picture_outside(tmp_path: Path, shelf: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(1))
    os.symlink(tmp_path / "secret.png", shelf / "animals" / "cat" / "99.png")
    with pytest.raises(UnsafeFile, match="leads out"):
        open_data(describe(tmp_path / "set", "path", shelf / "animals"), PREPROCESSING, 2, [shelf])


def test_a_link_in_a_circle(tmp_path: Path, shelf: Path) -> None:
    os.symlink("99.png", shelf / "animals" / "cat" / "99.png")
    with pytest.raises(UnsafeFile, match=r"99\.png"):
        open_data(describe(tmp_path / "set", "path", shelf / "animals"), PREPROCESSING, 2, [shelf])


def test_a_pipe_among_the_pictures_is_left_out_and_never_waited_for(tmp_path: Path, shelf: Path) -> None:
    os.mkfifo(shelf / "animals" / "cat" / "99.png")
    found = open_data(describe(tmp_path / "set", "path", shelf / "animals"), PREPROCESSING, 2, [shelf])
    assert any("ignored 1 files" in warning for warning in found.warnings)


@pytest.mark.parametrize("path", ["animals", None, "/nowhere\0/x"])
def test_a_path_that_is_none(tmp_path: Path, path: str | None) -> None:
    with pytest.raises(InvalidRequest, match="must be absolute"):
        open_data(describe(tmp_path / "set", "path", path), PREPROCESSING, 2, [tmp_path])


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not exist"):
        open_data(describe(tmp_path / "set", "path", tmp_path / "nowhere"), PREPROCESSING, 2, [tmp_path])


# The folder of the data set


def test_an_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"source 'ftp'. Use one of these sources: npz, archive, path"):
        open_data(describe(tmp_path / "set", "ftp"), PREPROCESSING, 2)


@pytest.mark.parametrize("content", [None, "{", "\N{SNOWMAN}"])
def test_a_damaged_description(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DamagedFile, match="cannot read the file"):
        open_data(tmp_path, PREPROCESSING, 2)


@pytest.mark.parametrize(("source", "names"), [("npz", "data.npz"), ("archive", "data.zip or data.tar")])
def test_a_missing_file(tmp_path: Path, source: str, names: str) -> None:
    with pytest.raises(DamagedFile, match=f"has no {names}"):
        open_data(describe(tmp_path / "set", source), PREPROCESSING, 2)


def test_an_oversized_file(tmp_path: Path) -> None:
    folder = npz_set(tmp_path / "set", images=IMAGES)
    with pytest.raises(TooLarge, match="limit is 1000 bytes"):
        open_data(folder, PREPROCESSING, 2, limits=Limits(packed_bytes=1000))


# Descriptions and noise


def test_the_description_is_json(given: Dataset) -> None:
    assert json.loads(json.dumps(given.describe())) == {
        "images": 120,
        "labelled": True,
        "classes": 4,
        "splits": {"calibration": 40, "selection": 30, "test": 50, "train": 40},
        "warnings": [
            "These splits have fewer than 100 images: selection (30), test (50). The accuracies on them are imprecise."
        ],
    }


def test_noise_is_seeded_and_not_assessed() -> None:
    noise = noise_data(PREPROCESSING, 64, seed=1)
    assert noise.assessed is False
    assert noise.labels is None
    assert [noise.count(split) for split in SPLITS] == [32, 16, 16, 32]
    assert any("not assessed" in warning for warning in noise.warnings)
    first = noise.take("calibration", 32, 0).images
    assert torch.equal(first, noise_data(PREPROCESSING, 64, seed=1).take("calibration", 32, 0).images)
    assert not torch.equal(first, noise_data(PREPROCESSING, 64, seed=2).take("calibration", 32, 0).images)
    assert first.shape == (32, 1, 16, 16)
    assert abs(float(first.mean())) < 0.05
    assert float(first.std()) == pytest.approx(1, abs=0.05)


def test_every_noise_image_is_its_own() -> None:
    noise = noise_data(PREPROCESSING, 8, seed=1)
    assert torch.equal(noise.images.load(np.array([3]))[0], noise.images.load(np.array([1, 3]))[0][1:])
    assert not torch.equal(noise.images.load(np.array([3]))[0], noise.images.load(np.array([4]))[0])


def test_data_are_assessed_unless_they_are_noise(given: Dataset) -> None:
    assert given.assessed is True
