"""One name of timm's, tried. See benchmarks/names.py."""

import dataclasses
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from models.errors import VitfitError
from models.export import compare_outputs, run_onnx
from models.open import network_of
from models.plan import Plan, TokenPlan, identity
from models.preprocessing import Preprocessing
from models.structure import Structure
from models.torch_network import TorchNetwork

KEEP = 0.7
GIB = 1 << 30


def row_of(name: str, whole: bool) -> dict[str, Any]:
    """Raises nothing: why a name does not work is in its row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    row: dict[str, Any] = {"name": name, "works": False, "reasons": []}
    try:
        row |= tried(name, whole)
        row["works"] = not row["reasons"]
    except VitfitError as error:
        row["reasons"] = list(error.facts.get("reasons", [error.detail]))
    except Exception as error:  # what is not refused with a reason is a defect, and is shown as one
        row["reasons"] = [f"DEFECT {type(error).__name__}: {str(error)[:160]}"]
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def tried(name: str, whole: bool) -> dict[str, Any]:
    with torch.device("meta"):
        model = timm.create_model(name)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if whole:
        torch.manual_seed(0)
        model = timm.create_model(name, **({"depth": 2} if size > GIB else {}))
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


def _way(network: TorchNetwork, model: nn.Module) -> str:
    """How it was read: by its family, by its graph, or by its graph as a plain vision transformer."""
    if type(network) is not TorchNetwork:
        return "graph"
    return "family" if network.module is model else "plain"


def plan_of(structure: Structure, keep: float) -> Plan:
    """The first heads and neurons of every block."""
    whole = identity(structure)
    blocks = tuple(
        dataclasses.replace(block, heads=_first(block.heads, keep), neurons=_first(block.neurons, keep))
        for block in whole.blocks
    )
    return dataclasses.replace(whole, blocks=blocks)


def with_tokens(plan: Plan, structure: Structure, keep: float) -> Plan:
    """In the first block of every stage whose grid is free to shrink."""
    blocks = list(plan.blocks)
    for first, stage in zip(structure.first_blocks, structure.stages, strict=True):
        patches = stage.blocks[0].tokens - structure.prefix
        if stage.free_tokens and round(keep * patches) >= 1:
            blocks[first] = dataclasses.replace(blocks[first], tokens=TokenPlan(round(keep * patches), "drop"))
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _first(members: tuple[Any, ...], keep: float) -> tuple[Any, ...]:
    return members[: max(1, round(keep * len(members)))] if members else members


def differs(network: TorchNetwork, module: nn.Module) -> list[str]:
    """Why a structure is not its module's, by torch's own counts."""
    image = torch.zeros(1, *network.structure.image, device=next(module.parameters()).device)
    module.requires_grad_(False)  # the counter follows modules by their gradients where it can
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    module.requires_grad_(True)
    macs = counter.get_total_flops() // 2 - macs_of_parameters_alone(network.module)
    params = sum(parameter.numel() for parameter in module.parameters())
    reasons = []
    if macs != network.structure.macs:
        reasons.append(f"MACs {network.structure.macs / macs:.4f} of torch's count")
    if params != network.structure.params:
        reasons.append(f"parameters {network.structure.params / params:.4f} of the model's")
    return reasons


def macs_of_parameters_alone(module: nn.Module) -> int:
    """Of products of parameters with each other, which no file computes: ONNX Runtime does it once, at load."""
    if not isinstance(module, GraphModule):
        return 0
    module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _Still(module).run(None)
    module.requires_grad_(True)
    return int(counter.get_total_flops()) // 2


class _Still(Interpreter):
    """Runs what no image reaches."""

    def run_node(self, n: Node) -> Any:
        if n.target == "size":
            return 1
        moves = n.op in ("placeholder", "output") or any(self.env.get(source) is None for source in n.all_input_nodes)
        return None if moves else super().run_node(n)


def in_use(network: TorchNetwork) -> tuple[float, list[str]]:
    """Backward, export, ONNX Runtime."""
    images = torch.randn(2, *network.structure.image, generator=torch.Generator().manual_seed(0))
    network.module(images[:1]).sum().backward()
    if not all(p.grad is not None for name, p in network.module.named_parameters() if "weight" in name):
        return 0.0, ["some weights get no gradient"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        network.export(file, 1)
        parity = compare_outputs(network.outputs(images, 1), run_onnx(file, images, 1))
    return parity.max_relative, [] if parity.passed else [f"ONNX Runtime differs by {parity.max_relative:.1e}"]
