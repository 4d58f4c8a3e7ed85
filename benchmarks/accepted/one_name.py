"""Check of one timm name. `benchmarks/names.py` runs it for every name."""

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from models.data.preprocessing import Preprocessing
from models.errors import VitfitError
from models.export.onnx_export import compare_outputs, run_onnx
from models.loading.load_model import network_of
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from tests.support.counted import differs
from tests.support.plans import plan_of, with_tokens

KEEP = 0.7
GIB = 1 << 30


def row_of(name: str, whole: bool) -> dict[str, Any]:
    """Return the row of a name. If the name does not work, the row holds the reasons. No exception is raised."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    row: dict[str, Any] = {"name": name, "works": False, "reasons": []}
    try:
        row |= tried(name, whole)
        row["works"] = not row["reasons"]
    except VitfitError as error:
        row["reasons"] = list(error.facts.get("reasons", [error.detail]))
    except Exception as error:  # a refusal is a VitfitError, so any other exception is a defect
        row["reasons"] = [f"DEFECT {type(error).__name__}: {str(error)[:160]}"]
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def tried(name: str, whole: bool) -> dict[str, Any]:
    with torch.device("meta"):
        model = timm.create_model(name)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if whole:
        torch.manual_seed(0)
        shorter: dict[str, Any] = {"depth": 2} if size > GIB else {}
        model = timm.create_model(name, **shorter)
    preprocessing = Preprocessing.of_model(model)
    network = network_of(model.eval(), name, preprocessing)
    way = _way(network, model)
    plan = plan_of(network.structure, KEEP)
    small = network.pruned(with_tokens(plan, network.structure, KEEP), None)
    reasons = [*differs(network, network.module if way == "plain" else model), *differs(small, small.module)]
    found = {
        "way": way,
        "tokens": len(small.reductions()),
        "blocks": len(network.structure.blocks),
        "macs": network.structure.macs,
        "macs_kept": small.structure.macs / network.structure.macs,
        "cut": "two blocks" if whole and size > GIB else "",
    }
    if whole and not reasons:
        found["parity"], wrong = in_use(small)
        reasons += wrong
    return {**found, "reasons": reasons}


def _way(network: Network, model: nn.Module) -> str:
    """Return how the network was read: "family", "graph", or "plain" (by its graph, as a plain vision transformer)."""
    if not isinstance(network, TorchNetwork):
        return "graph"
    return "family" if network.module is model else "plain"


def in_use(network: Network) -> tuple[float, list[str]]:
    """Run the network backward, export it, and compare ONNX Runtime with PyTorch.

    Return the largest relative difference, and the reasons why the network cannot be used.
    """
    images = torch.randn(2, *network.structure.image, generator=torch.Generator().manual_seed(0))
    network.module(images[:1]).sum().backward()
    if not all(p.grad is not None for name, p in network.module.named_parameters() if "weight" in name):
        return 0.0, ["some weights get no gradient"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        network.export(file, 1)
        parity = compare_outputs(network.outputs(images, 1), run_onnx(file, images, 1))
    return parity.max_relative, [] if parity.passed else [f"ONNX Runtime differs by {parity.max_relative:.1e}"]
