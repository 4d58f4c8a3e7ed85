"""Run the quickstarts of the README, the examples and the notebook as a user would."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import timm
import torch
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import save_file

from service.core.processes import ROOT
from tests.support.served import served

CLASSES, PICTURES = 5, 24
QUICKSTARTS = re.search(r"## Three quickstarts\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = re.findall(r"```sh\n(.*?)```", QUICKSTARTS[1] if QUICKSTARTS else "", re.DOTALL)
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the inputs that the quickstarts and the examples name."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    _write_pictures(folder / "pictures")
    torch.manual_seed(0)
    network = timm.create_model("deit_tiny_patch16_224", num_classes=CLASSES).eval()
    save_file(network.state_dict(), folder / "mine.safetensors")
    small = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=16, depth=3, num_classes=CLASSES).eval()
    torch.onnx.export(small, (torch.randn(1, 3, 64, 64),), str(folder / "model.onnx"), dynamo=False)
    _write_hugging_face(folder / "my-hugging-face-model")
    return folder


def _write_pictures(folder: Path) -> None:
    """Write pictures of 240 x 256 pixels with coloured noise, one folder per class."""
    draw = np.random.default_rng(0)
    for name in range(CLASSES):
        (folder / f"class{name}").mkdir(parents=True)
        for number in range(PICTURES):
            pixels = draw.integers(0, 256, (240, 256, 3), dtype=np.uint8) // (name + 1)
            Image.fromarray(pixels).save(folder / f"class{name}" / f"{number}.png")


def _write_hugging_face(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
    config = transformers.ViTConfig(image_size=64, patch_size=16, num_labels=CLASSES, **shape)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with served(folder, "--data", str(folder / "data"), "--port", "0", "--anonymous", VITFIT_ENGINE="pipeline") as url:
        yield url


def run(command: list[str], home: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=home, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_there_are_three_quickstarts_and_four_examples() -> None:
    assert len(COMMANDS) == 3 and all(".venv/bin/vitfit compress" in command for command in COMMANDS)
    assert len(SCRIPTS) == 4


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=["timm", "onnx", "hugging-face"])
def test_a_quickstart_works_as_written(command: str, home: Path) -> None:
    output = re.search(r"--output (\S+)", command)
    assert output is not None
    said = run(["bash", "-euc", command.rstrip() + " --trials 2"], home)
    assert "Budget of at most" in said and "met" in said
    assert {"model.onnx", "report.html"} <= {path.name for path in (home / output[1]).iterdir()}


@pytest.mark.slow
def test_the_examples_work(home: Path, server: str) -> None:
    python, common = ".venv/bin/python", ["--server", server, "--trials", "2"]
    timm_model = ["deit_tiny_patch16_224", "mine.safetensors", "pictures", "--classes", str(CLASSES)]
    assert "MACs" in run([python, "examples/compress_timm_model.py", *timm_model, *common], home)
    picture = "pictures/class0/0.png"
    assert f"{picture} class" in run([python, "examples/run_model.py", "out-timm/model.cpu.onnx", picture], home)
    said = run([python, "examples/compress_onnx_file.py", "model.onnx", *common, "--keep", "0.8", "0.6"], home)
    assert "0.6 of the MACs" in said and (home / "model-0.6.onnx").is_file()
    said = run([python, "examples/compress_hugging_face_model.py", "my-hugging-face-model", *common], home)
    assert "guarantee: predicted" in said and "heads" in said


@pytest.mark.slow
def test_the_notebook_runs(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed notebook holds its outputs. Running it again gives a plot and a met budget again."""
    monkeypatch.setenv("VITFIT_SERVER", server)
    monkeypatch.setenv("TRIALS", "6")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel shows plots by its own backend
    path = ROOT / "examples" / "accuracy_over_latency.ipynb"
    notebook: Any = nbformat.reads(path.read_text(), as_version=4)  # type: ignore[no-untyped-call]
    assert plots(notebook), "commit the executed notebook"
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    assert plots(notebook)


def plots(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
