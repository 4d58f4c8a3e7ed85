"""Tests of the task of coloured characters that vitfit ships: its checkpoint is as training.json describes it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.scenes.task import TASKS
from models.data.preprocessing import Preprocessing

FOLDER = Path(__file__).parents[3] / "benchmarks" / "letters"
MODEL = json.loads((FOLDER / "model.json").read_text())
TRAINING = json.loads((FOLDER / "training.json").read_text())
IMAGES = 500


def test_the_checkpoint_reaches_its_accuracy() -> None:
    """Check the accuracy on the first 500 of the 5,000 test scenes, within three standard errors."""
    weights = FOLDER / "weights.safetensors"
    assert weights.stat().st_size < 16_000_000
    share = TRAINING["test"]["accuracy"]
    assert TRAINING["test"]["images"] == 5000 and share >= 0.85
    task = TASKS["letters"]
    model = task.model(0).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    assert task.options["depth"] == 12 and len(MODEL["classes"]) == 32
    pixels, labels = task.split("test", IMAGES)
    images = Preprocessing.from_json(MODEL["preprocessing"]).apply(pixels.numpy())
    with torch.inference_mode():
        right = int((model(images).argmax(1) == labels).sum())
    assert right == pytest.approx(IMAGES * share, abs=3 * (IMAGES * share * (1 - share)) ** 0.5)
