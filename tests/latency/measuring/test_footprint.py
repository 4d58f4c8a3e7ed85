"""Tests of the cost of loading, of the first run and of the operators of a real file.

They check relations between costs, never seconds.
"""

from pathlib import Path

import onnx
import pytest
from vitfit.report import Footprint

from latency.devices.setting import Setting
from latency.measuring.footprint import footprint
from models.errors import DeviceUnavailable
from tests.support.networks import small_network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("onnx")
    for name, depth, width in (("small", 1, 48), ("large", 6, 384)):
        small_network(depth=depth, embed_dim=width).export(folder / f"{name}.onnx", 1)
    return [folder / "small.onnx", folder / "large.onnx"]


def test_a_larger_file_takes_more_of_everything(files: list[Path]) -> None:
    small, large = (footprint(file, Setting()) for file in files)
    assert large.load_ms > small.load_ms > 0 and large.peak_mib > small.peak_mib > 0
    assert large.first_run_ms > sum(operator.ms for operator in small.operators) > 0
    assert Footprint.from_json(large.to_json()) == large


def test_time_is_told_by_kind_of_operator(files: list[Path]) -> None:
    found = footprint(files[1], Setting()).operators
    assert sum(operator.share for operator in found) == pytest.approx(1)
    assert [o.ms for o in found] == sorted((o.ms for o in found), reverse=True)
    kinds = {o.operator for o in found}
    products = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm"}
    assert kinds & products and next(o for o in found if o.operator in products).share > 0.2
    assert {o.operator: o.count for o in found}["Softmax"] == 6, "one attention in each block"
    assert kinds - {node.op_type for node in onnx.load(files[1]).graph.node} != kinds


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(DeviceUnavailable, match=r"memory of broken\.onnx"):
        footprint(tmp_path / "broken.onnx", Setting())
