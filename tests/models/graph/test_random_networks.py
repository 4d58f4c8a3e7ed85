"""A property of all ONNX files: the network that vitfit reads gives the outputs of the file, or the file is refused.

Random small networks are exported by both exporters of torch. Half of them are read with a planted fault: the
translation of one operator is wrong. Without the proof at the door, such networks would silently be other networks.
"""

import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from models.errors import UnsupportedModel
from models.graph.onnx import proof
from models.graph.onnx.operators import OPERATORS, Attributes, Build, Names
from models.loading import load_onnx
from models.loading.load_onnx import open_onnx
from tests.support.random_networks import IMAGE, random_network

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORKS = 500
OPSETS = (13, 14, 16, 17, 18, 20)
NEW_OPSETS = (18, 20, 21, 23)


def exported(path: Path, seed: int, dynamo: bool) -> Path:
    draw, module = random.Random(seed), random_network(seed)
    several = isinstance(module(torch.zeros(2, *IMAGE)), tuple)
    outputs = ["logits", "tokens"] if several else ["logits"]
    more: dict[str, Any] = {"dynamic_axes": {name: {0: "n"} for name in ("images", *outputs)}}
    if dynamo:
        more = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1, max=64)},), "external_data": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(2, *IMAGE),),
            str(path),
            input_names=["images"],
            output_names=outputs,
            dynamo=dynamo,
            opset_version=draw.choice(NEW_OPSETS if dynamo else OPSETS),
            **more,
        )
    return path


def plant(monkeypatch: pytest.MonkeyPatch, draw: random.Random) -> None:
    """Make the translation of one operator wrong: its output is a little too large where it is large."""
    name = draw.choice(sorted(OPERATORS))
    right = OPERATORS[name]

    def wrong(build: Build, names: Names, attributes: Attributes) -> Any:
        found = right(build, names, attributes)
        if isinstance(found, torch.fx.Node) and build.meta[found].is_floating_point():  # type: ignore[attr-defined]
            return build.call(torch.ops.aten.mul.Tensor, found, 1.05)
        return found

    monkeypatch.setitem(OPERATORS, name, wrong)


def verdict(path: Path) -> str:
    """Return whether the file is "taken" as what it is, "refused", or "another network"."""
    try:
        network = open_onnx(path, "random", None)
    except UnsupportedModel:
        return "refused"
    images = torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(9)) * 3 - 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    with torch.inference_mode():
        found = network.with_all_outputs(images)
    got = found[0] if isinstance(found, tuple) else found
    apart = float((expected - got).abs().max()) / max(float(expected.abs().max()), 1e-12)
    return "taken" if apart <= 5e-4 else "another network"


def verdicts(folder: Path, seeds: range, monkeypatch: pytest.MonkeyPatch, dynamo_every: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in seeds:
        try:
            path = exported(folder / "model.onnx", seed, dynamo=seed % dynamo_every == 0)
        except Exception:  # some parts cannot be exported at some opsets, whoever reads the file
            found["not exported"] += 1
            continue
        with monkeypatch.context() as patched:
            if seed % 2:
                plant(patched, random.Random(seed))
            said = verdict(path)
        found[said if seed % 2 == 0 or said == "another network" else f"planted, {said}"] += 1
        assert said != "another network", f"network {seed}"
    return found


def test_a_few_random_networks_are_taken_as_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdicts(tmp_path, range(14), monkeypatch, dynamo_every=12)
    assert found["taken"] >= 5 and found["planted, refused"] >= 2


@pytest.mark.slow
def test_500_random_networks_are_taken_as_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdicts(tmp_path, range(14, 14 + NETWORKS), monkeypatch, dynamo_every=4)
    print(dict(found))
    assert found["taken"] >= 0.3 * NETWORKS and found["planted, refused"] >= 0.1 * NETWORKS


def test_without_the_proof_some_would_be_other_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_onnx.__dict__["prove"] is proof.prove
    monkeypatch.setattr(load_onnx, "prove", lambda *_: None)
    with pytest.raises(AssertionError, match="network"):
        verdicts(tmp_path, range(24), monkeypatch, dynamo_every=1000)
