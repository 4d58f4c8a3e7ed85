"""Tests of the cluttered task that vitfit ships.

The scenes are as the generator describes them, and the checkpoint is as training.json describes it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from benchmarks.scenes.__main__ import write_data
from benchmarks.scenes.digits import scenes, sources
from benchmarks.scenes.task import COUNTS, SEEDS, TASKS
from benchmarks.scenes.train import difficulty
from models.data.preprocessing import Preprocessing

FOLDER = Path(__file__).parents[3] / "benchmarks" / "clutter"
MODEL = json.loads((FOLDER / "model.json").read_text())
TRAINING = json.loads((FOLDER / "training.json").read_text())


def test_no_digit_is_in_two_splits() -> None:
    seen = [{image.numpy().tobytes() for image in sources(split).images} for split in ("train", "selection", "test")]
    assert [len(digits) for digits in seen] == [1000, 297, 500]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_scenes_follow_from_their_seed() -> None:
    digits = sources("test")
    first, labels = scenes(digits, 12, 1.0, seed=5)
    again, _ = scenes(digits, 12, 1.0, seed=5)
    other, _ = scenes(digits, 12, 1.0, seed=6)
    assert first.shape == (12, 64, 64, 1) and first.dtype == torch.uint8 and len(labels) == 12
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_difficulty_adds_clutter_and_shrinks_the_digit() -> None:
    digits = sources("train")
    easy, _ = scenes(digits, 64, 0.0, seed=1)
    hard, _ = scenes(digits, 64, 1.0, seed=1)
    black = [float((images == 0).double().mean()) for images in (easy, hard)]
    assert black[0] > 0.3 > 0.1 > black[1]


def test_each_digit_stands_somewhere_else() -> None:
    images, _ = scenes(sources("train"), 200, 0.3, seed=2)
    light = images.double().squeeze(-1)
    columns = (light.sum(1) * torch.arange(64)).sum(1) / light.sum((1, 2))
    assert float(columns.std()) > 3


def test_the_curriculum_ends_at_the_task_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    assert float(difficulty(0.0, 100, draw).max()) < 0.2
    assert float(difficulty(1.0, 100, draw).mean()) > 0.9


def test_written_data_have_the_splits(tmp_path: Path) -> None:
    write_data(TASKS["clutter"], tmp_path / "scenes.npz", {"train": 20, "selection": 10, "test": 10})
    with np.load(tmp_path / "scenes.npz", allow_pickle=False) as file:
        names, counts = np.unique(file["split"], return_counts=True)
        assert file["images"].shape == (40, 64, 64, 1)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"train": 20, "selection": 10, "test": 10}
    assert COUNTS["test"] >= 5000


def test_the_checkpoint_reaches_its_accuracy() -> None:
    """Check the accuracy on the first 500 of the 5,000 test scenes, within three standard errors."""
    assert (FOLDER / "weights.safetensors").stat().st_size < 8_000_000
    assert TRAINING["test"]["images"] == 5000 and 0.85 <= TRAINING["test"]["correct"] / 5000 <= 0.97
    model = timm.create_model(MODEL["name"], pretrained=False, **MODEL["options"]).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(FOLDER / "weights.safetensors").items()})
    pixels, labels = scenes(sources("test"), 500, 1.0, SEEDS[2])
    images = Preprocessing.from_json(MODEL["preprocessing"]).apply(pixels.numpy())
    with torch.inference_mode():
        right = int((model(images).argmax(1) == labels).sum())
    expected = TRAINING["test"]["correct"] / 10
    assert right == pytest.approx(expected, abs=3 * (500 * 0.95 * 0.05) ** 0.5)
