"""Captures a module as a graph of PyTorch operators, and finds the size of every tensor in the graph."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node

from models.errors import UnsupportedModel

BATCH = 11
"""Number of images with which a module is captured.

No other size in a network is 11, so the batch can be told apart.
"""
aten = torch.ops.aten
NOTHING = (aten._assert_tensor_metadata, aten.sym_constrain_range_for_size, aten._assert_scalar)


def capture(module: nn.Module, image: tuple[int, int, int]) -> GraphModule:
    """Capture a module in inference mode: dropout does nothing, and batch norms keep their statistics.

    Raises: UnsupportedModel.
    """
    example = torch.zeros(BATCH, *image, device=device_of(module))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eval(), (example,), strict=False)
            graph = program.module()
    except Exception as error:  # a forward that cannot be captured can raise anything
        raise UnsupportedModel(
            f"torch.export cannot capture {type(module).__name__} as a graph ({type(error).__name__}:"
            f" {str(error)[:200]}). Use a model that torch.export can capture, or upload the model as ONNX.",
            reasons=[f"torch.export cannot capture its forward ({type(error).__name__})"],
        ) from error
    return clean(graph)


def clean(graph: GraphModule) -> GraphModule:
    """Return a graph without the checks of sizes, and without the operators that only training needs."""
    for node in list(graph.graph.nodes):
        packet = getattr(node.target, "overloadpacket", None)
        if node.op == "call_module" or packet in NOTHING:
            graph.graph.erase_node(node)
        elif packet in (aten.dropout, aten.dropout_, aten.feature_dropout):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return GraphModule(graph, graph.graph)


class _Sizes(Interpreter):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(int(size) for size in result.shape)
        elif isinstance(result, tuple | list) and all(isinstance(one, Tensor) for one in result):
            self.found[n] = [tuple(int(size) for size in one.shape) for one in result]
        return result


def sizes_of(graph: GraphModule, image: tuple[int, int, int], batch: int) -> dict[Node, Any]:
    """Return the shape of each node's tensor, or a list of shapes if it has several tensors. No values are computed."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        runner = _Sizes(graph)
        runner.run(mode.from_tensor(torch.zeros(batch, *image, device=device_of(graph))))
    return runner.found


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's weights, or the CPU if it has none.

    The device is "meta" if the weights have sizes, but no values.
    """
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def stored(graph: nn.Module, node: Any) -> Tensor:
    """Return the parameter or buffer that a `get_attr` node reads."""
    owner, _, name = str(node.target).rpartition(".")
    found = getattr(graph.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found
