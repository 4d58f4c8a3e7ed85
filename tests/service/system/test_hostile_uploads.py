"""Tests of the real check with files that would take all memory or time. One process imports torch for all of them."""

import asyncio
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.hostile.exhausting import endless_key
from service.core.errors import LimitReached
from service.core.limits import Limits
from service.jobs.turns import Turns
from service.jobs.validator import Validator

pytestmark = pytest.mark.slow
PATIENCE_S = 300.0
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def validator() -> Iterator[Validator]:
    limits = Limits(memory_bytes=3 * 2**30, cpu_s=20)
    validator = Validator("service.pipeline.validate_job", Turns(2, 1), limits)
    yield validator
    validator.close()


def hostile_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "weights.pth").write_bytes(endless_key())
    (folder / "model.json").write_text(json.dumps({"name": "vit_tiny_patch16_224", "options": OPTIONS}))
    return folder


def large_arrays(folder: Path) -> Path:
    """Write 4 GB of zeros, which are a few megabytes in the file."""
    folder.mkdir()
    header = {"descr": "<f4", "fortran_order": False, "shape": (330_000, 3, 32, 32)}
    with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("images.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(330):
                member.write(bytes(1_000 * 3 * 32 * 32 * 4))
        file.writestr("padding", np.random.default_rng(0).bytes(45 * 10**6), zipfile.ZIP_STORED)
    return _dataset(folder)


def small_arrays(folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "data.npz", images=np.zeros((64, 8, 8, 1), dtype=np.uint8))
    return _dataset(folder)


def _dataset(folder: Path) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"source": "npz", "path": None, "filename": "data.npz"}))
    return folder


def test_a_stranger_is_served_while_one_person_sends_files_that_take_all_time(
    validator: Validator, tmp_path: Path
) -> None:
    hostile, good = hostile_model(tmp_path / "key"), small_arrays(tmp_path / "good")
    assert (hostile / "weights.pth").stat().st_size < 2_000

    async def story() -> list[Any]:
        await validator.describe({"dataset": str(good), "allowed": []}, PATIENCE_S, "ann")
        attack = [asyncio.create_task(validator.describe({"model": str(hostile)}, PATIENCE_S, "eve")) for _ in range(2)]
        await asyncio.sleep(0)
        served = await validator.describe({"dataset": str(good), "allowed": []}, PATIENCE_S, "bob")
        assert served["images"] == 64 and not any(task.done() for task in attack)
        attack[1].cancel()
        found: list[Any] = await asyncio.gather(*attack, return_exceptions=True)
        return found

    refused, _ = asyncio.run(story())
    assert isinstance(refused, LimitReached) and "processor time of a check, 20 s" in refused.detail


def test_arrays_beyond_the_memory_of_a_check_are_refused_with_the_limit(validator: Validator, tmp_path: Path) -> None:
    folder = large_arrays(tmp_path / "large")
    with pytest.raises(LimitReached, match="memory limit of a check, 3,221 MB"):
        asyncio.run(validator.describe({"dataset": str(folder), "allowed": []}, PATIENCE_S))
