"""Tests of `vitfit compress` and `vitfit measure`.

They check the messages for mistakes of users, and measure a small file.
"""

import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result
from vitfit import cli

MACS = ("--budget-macs-keep", "0.5")


def run(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def small_file(path: Path, batch: int | str = "batch") -> Path:
    """Write a file that computes y = x x^T from an input of shape [batch, 64, 64]."""
    entry = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 64, 64])
    leaving = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 64, 64])
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "x"], ["y"])], "small", [entry], [leaving])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("./nowhere", *MACS), "'nowhere'"),
        (("vit_tiny", "--data", "nowhere.npz", *MACS), "nowhere.npz"),
        (("vit_tiny", "--options", "{", *MACS), "--options is not JSON"),
        (("vit_tiny", "--seed", "9999999999", *MACS), "seed: "),
        (("vit_tiny", "--objective", "latency", "--max-loss", "7", *MACS), "max_loss: "),
        (("vit_tiny", "--objective", "speed", *MACS), "objective: "),
    ],
)
def test_compress_explains_a_mistake_before_any_work(tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    done = run("compress", *arguments, "--output", str(tmp_path / "out"), status=1)
    assert done.stderr.startswith("error: ") and hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_compress_needs_a_budget_and_an_output(tmp_path: Path) -> None:
    run("compress", "vit_tiny", "--output", str(tmp_path), status=2)
    run("compress", "vit_tiny", *MACS, status=2)


def test_compress_refuses_an_unknown_model_with_the_nearest_names(tmp_path: Path) -> None:
    done = run("compress", "vit_tiny_patch16_225", "--no-pretrained", *MACS, "--output", str(tmp_path), status=1)
    assert "vit_tiny_patch16_224" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--device", "cpx"), "names are: cpu"),
        (("--device", "generic-mobile"), "predicted"),
        (("--threads", "999"), "999"),
    ],
)
def test_measure_refuses_what_cannot_be_measured(tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    done = run("measure", str(small_file(tmp_path / "a.onnx")), *arguments, "--seconds", "1", status=1)
    assert hint in done.stderr


def test_measure_names_the_missing_file(tmp_path: Path) -> None:
    done = run("measure", str(small_file(tmp_path / "a.onnx")), "--against", "nowhere.onnx", status=1)
    assert "nowhere.onnx" in done.stderr


def test_measure_compares_two_files(tmp_path: Path) -> None:
    files = small_file(tmp_path / "a.onnx"), small_file(tmp_path / "b.onnx")
    done = run("measure", str(files[0]), "--against", str(files[1]), "--seconds", "1", "--json")
    found = json.loads(done.stdout)
    assert [Path(row["file"]).name for row in found["files"]] == ["b.onnx", "a.onnx"], "the original comes first"
    assert found["ratio"]["low"] <= found["ratio"]["value"] <= found["ratio"]["high"]
