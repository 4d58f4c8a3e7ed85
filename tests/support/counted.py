"""Comparison of a structure's counts with torch's own counts and with those of a file."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from models.networks.network import Network


def differs(network: Network, module: nn.Module) -> list[str]:
    """Return the differences between a structure and its module, by torch's own counts."""
    image = torch.zeros(1, *network.structure.image, device=next(module.parameters()).device)
    module.requires_grad_(False)  # the counter then follows modules without their gradients
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
    """Return the MACs of products of parameters with each other.

    No file computes them for an image, because ONNX Runtime computes them once, at load.
    """
    if not isinstance(module, GraphModule):
        return 0
    module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _Still(module).run(None)
    module.requires_grad_(True)
    return int(counter.get_total_flops()) // 2


class _Still(Interpreter):
    """An interpreter that runs only the nodes that do not depend on the image."""

    def run_node(self, n: Node) -> Any:
        if n.target == "size":
            return 1
        moves = n.op in ("placeholder", "output") or any(self.env.get(source) is None for source in n.all_input_nodes)
        return None if moves else super().run_node(n)


def macs_in_file(path: Path) -> int:
    """Return the MACs of the products in an ONNX file with a fixed batch of one image, by the shapes of a run.

    The weighted sums of tokens that make a fused token are left out: torch does not count them as products either.
    """
    model = onnx.load(path)
    graph, shapes = model.graph, _shapes_of(model)
    fixed = {tensor.name for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if all(name in fixed for name in node.input if name):
            fixed.update(node.output)  # computed once, when the file is loaded
        elif node.op_type == "MatMul" and _sums_tokens(node, shapes, fixed):
            continue
        elif node.op_type == "MatMul":
            total += prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            total += prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if turned else 1]
        elif node.op_type == "Conv":
            total += prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    return total


def _sums_tokens(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], fixed: set[str]) -> bool:
    """Return whether a product is (images, [1,] tokens) times (images, tokens, width)."""
    weights, tokens = (shapes[name] for name in node.input)
    return node.input[1] not in fixed and len(tokens) == 3 and prod(weights) == prod(tokens[:2])


def _shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Run a model once, and return the shapes of all its values."""
    names = [name for node in model.graph.node for name in node.output if name]
    told = onnx.ModelProto()
    told.CopyFrom(model)
    del told.graph.output[:]
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(told.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    values = session.run(names, {image.name: np.zeros(image.shape, dtype=np.float32)})
    found = {name: value.shape for name, value in zip(names, values, strict=True)}
    found |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {**found, image.name: tuple(image.shape)}
