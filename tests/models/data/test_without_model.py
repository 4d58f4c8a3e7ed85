"""Check that vitfit judges a data set at its upload, before any model is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.open_dataset import open_data
from models.errors import BadData


def data_folder(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    (folder / "dataset.json").write_text(json.dumps({"source": "npz", "path": None, "filename": "data.npz"}))
    return folder


@pytest.mark.parametrize("shape", [(40, 1, 64, 64), (40, 3, 32, 48)])
def test_float_images_of_any_size_are_taken(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = data_folder(tmp_path, images=np.zeros(shape, np.float32), labels=np.arange(40))
    assert open_data(folder, None, None).describe()["images"] == 40


def test_nonsense_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="must be"):
        open_data(data_folder(tmp_path, images=np.zeros((40, 64), np.float32)), None, None)
