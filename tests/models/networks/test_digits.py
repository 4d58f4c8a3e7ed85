"""Tests of the digits model that vitfit ships. Its files are as training.json describes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks import train_digits
from models.data.open_dataset import open_data
from models.data.preprocessing import Preprocessing

FOLDER = Path(__file__).parents[3] / "benchmarks" / "digits"
MODEL = json.loads((FOLDER / "model.json").read_text())
TRAINING = json.loads((FOLDER / "training.json").read_text())


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_files_are_small_and_half_precision() -> None:
    assert (FOLDER / "weights.safetensors").stat().st_size < 4_000_000
    assert (FOLDER / "digits.npz").stat().st_size < 200_000
    with safe_open(FOLDER / "weights.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118 (no mapping)


def test_splits_are_disjoint_complete_and_stratified(data: dict[str, np.ndarray]) -> None:
    assert data["images"].shape == (1797, 8, 8, 1)
    assert data["images"].dtype == np.uint8
    assert data["images"].max() == 255
    names, counts = np.unique(data["split"], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"train": 1000, "selection": 297, "test": 500}
    for name in names:
        per_class = np.bincount(data["labels"][data["split"] == name], minlength=10)
        assert per_class.max() - per_class.min() <= 0.1 * per_class.mean()


def test_no_picture_is_in_two_splits(data: dict[str, np.ndarray]) -> None:
    """scikit-learn's digits hold no duplicates, so no picture may be in two splits."""
    assert len({image.tobytes() for image in data["images"]}) == 1797


def test_the_checkpoint_reaches_its_accuracy(data: dict[str, np.ndarray]) -> None:
    model = timm.create_model(MODEL["name"], pretrained=MODEL["pretrained"], **MODEL["options"]).eval()
    weights = load_file(FOLDER / "weights.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    rows = data["split"] == "test"
    images = Preprocessing.from_json(MODEL["preprocessing"]).apply(data["images"][rows])
    with torch.inference_mode():
        correct = int((model(images).argmax(1).numpy() == data["labels"][rows]).sum())
    assert abs(correct - TRAINING["test"]["correct"]) <= 1  # another machine may round one image the other way
    assert correct >= 0.97 * 500


def test_a_job_can_open_the_data(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"source": "npz", "path": null, "filename": "digits.npz"}')
    (tmp_path / "data.npz").symlink_to(FOLDER / "digits.npz")
    opened = open_data(tmp_path, Preprocessing.from_json(MODEL["preprocessing"]), len(MODEL["classes"]))
    assert opened.describe() == {
        "images": 1797,
        "labelled": True,
        "classes": 10,
        "splits": {"calibration": 1000, "selection": 297, "test": 500, "train": 1000},
        "warnings": [],
    }


def test_uniform_magnitude_pruning_without_recovery_loses_five_points(data: dict[str, np.ndarray]) -> None:
    report = train_digits.assess(FOLDER, data)
    assert abs(report["control"]["correct"] - TRAINING["control"]["correct"]) <= 2
    assert report["test"]["accuracy"] - report["control"]["accuracy"] >= 0.05


def test_the_script_makes_these_data(data: dict[str, np.ndarray]) -> None:
    made = train_digits.build_data(TRAINING["seed"])
    assert all(np.array_equal(made[name], data[name]) for name in ("images", "labels", "split"))
    assert MODEL["options"] == train_digits.OPTIONS
    assert Preprocessing.from_json(MODEL["preprocessing"]) == train_digits.PREPROCESSING
