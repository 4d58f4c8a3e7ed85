"""Tests of budgets on file size and on memory.

A line predicts the size, and the job measures it before it gives a guarantee.
"""

from pathlib import Path

import pytest

from latency.devices.setting import Setting
from latency.measuring.footprint import footprint
from latency.prediction.sizes import SizeLine, Weighed, known_bytes
from models.errors import ImpossibleBudget, InvalidRequest
from tests.support.networks import small_network
from tests.support.small_jobs import Workshop, budget, digits

pytestmark = pytest.mark.usefixtures("brief")


@pytest.mark.slow
def test_the_delivered_file_is_as_small_as_asked_for(workshop: Workshop) -> None:
    ran = workshop.run(budget("file_bytes", 200_000), budget("macs_keep", 0.9), trials=3)
    size = ran.path("model.cpu.onnx").stat().st_size
    assert 0.9 * 200_000 <= size <= 200_000 < ran.path("original.onnx").stat().st_size
    row = next(row for row in ran.report["budgets"] if row["metric"] == "file_bytes")
    assert row["share"] == pytest.approx(size / 200_000) and row["met"]
    assert ran.result.guarantee == "counted"


def test_a_file_smaller_than_any_is_refused_with_the_least_size(workshop: Workshop) -> None:
    with pytest.raises(ImpossibleBudget, match="bytes of the file") as error:
        workshop.run(budget("file_bytes", 2_000), trials=1)
    assert error.value.facts["best_reachable"] > 2_000


@pytest.mark.slow
def test_memory_is_measured_within_its_limit(tmp_path: Path) -> None:
    """Use the digits model, because the runtime needs nearly all the memory of a smaller model."""
    ran = Workshop(tmp_path, *digits(tmp_path)).run(budget("memory_keep", 0.75), trials=2)
    assert ran.result.guarantee == "measured"
    before, after = (footprint(ran.path(name), Setting()).peak_mib for name in ("original.onnx", "model.cpu.onnx"))
    assert after < 0.85 * before


def test_memory_belongs_to_this_machine(workshop: Workshop) -> None:
    with pytest.raises(InvalidRequest, match="measured on cpu only"):
        workshop.run(budget("memory_keep", 0.5, "generic-mobile"), trials=1)


def test_a_line_goes_through_what_was_measured_last() -> None:
    whole, small = (small_network(depth=depth).structure for depth in (4, 1))
    line = SizeLine("memory", 1, (Weighed(known_bytes("memory", whole, 1), 9e6),))
    line = line.with_sample(small, 4e6)
    assert list(line.price([whole, small])) == pytest.approx([9e6, 4e6])
    assert line.with_sample(whole, 8e6).price([whole])[0] == pytest.approx(8e6)
    assert line.original_bytes == 9e6
