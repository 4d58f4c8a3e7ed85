"""Finds the linear layers of a graph's blocks by their role, and replaces them by modules.

Quantisation needs modules (models/quantization/int8.py)."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from models.graph.tracing.atoms import Batch, by_members, leaves
from models.graph.tracing.capture import stored
from models.graph.tracing.sublayers import GraphBlock, Half
from models.graph.tracing.trace import Traced
from models.structure import Layer

aten = torch.ops.aten
PRODUCTS = (aten.linear, aten.matmul, aten.mm, aten.addmm)


def linear_layers(traced: Traced, blocks: Sequence[GraphBlock]) -> list[dict[Layer, list[str]]]:
    """Return, for each block, the names of the nodes that are linear layers of its tokens, by the role of the layer."""
    alone, found = _read_once(traced.graph), []
    for block in blocks:
        sides: dict[Layer, Iterable[Node]] = {
            "qkv": block.heads.makers,
            "proj": [block.heads.reader],
            "fc1": block.neurons.makers,
            "fc2": [block.neurons.reader],
        }
        found.append(
            {layer: [node.name for node in nodes if _is_layer(traced, node, alone)] for layer, nodes in sides.items()}
        )
    return found


def _read_once(graph: GraphModule) -> set[str]:
    """Return the names of the tensors that exactly one node reads."""
    readers = Counter(str(node.target) for node in graph.graph.nodes if node.op == "get_attr" for _ in node.users)
    return {target for target, count in readers.items() if count == 1}


def _is_layer(traced: Traced, node: Node, alone: Collection[str]) -> bool:
    """Return whether a node is a linear layer that can be quantised.

    No other node may read its weight, and the images must lie one behind the other in its inputs: fake quantisation
    needs this order (models/quantization/fake_quantize.py).
    """
    if getattr(node.target, "overloadpacket", None) not in PRODUCTS:
        return False
    inputs, weight, _ = _operands(node)
    if not isinstance(inputs, Node) or not isinstance(weight, Node) or weight.op != "get_attr":
        return False
    if str(weight.target) not in alone or stored(traced.graph, weight).ndim != 2:
        return False
    dims = traced.dims(inputs)
    return len(dims) > 1 and bool(dims[0]) and isinstance(dims[0][0], Batch)


def _operands(node: Node) -> tuple[object, object, object]:
    """Return the inputs, the weight and the bias of a product."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is aten.addmm:
        bias, inputs, weight = node.args[:3]
        return inputs, weight, bias
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return node.args[0], node.args[1], bias


def as_modules(graph: GraphModule, names: Iterable[str]) -> dict[str, str]:
    """Replace each of these nodes by an nn.Linear, in place. A weight keeps its name if it belongs to a single layer.

    Return the path of each module, by the name of the node that it replaces.
    """
    wanted, alone, paths = set(names), _read_once(graph), {}
    for node in list(graph.graph.nodes):
        if node.name in wanted:
            paths[node.name] = _as_module(graph, node, alone)
    graph.graph.lint()
    graph.recompile()
    return paths


def _as_module(graph: GraphModule, node: Node, alone: Collection[str]) -> str:
    inputs, weight, bias = _operands(node)
    assert isinstance(weight, Node) and isinstance(inputs, Node)
    turned = getattr(node.target, "overloadpacket", None) is not aten.linear
    own = bias if isinstance(bias, Node) and bias.op == "get_attr" and str(bias.target) in alone else None
    matrix = stored(graph, weight)
    layer = linear_of(matrix.detach().T.contiguous() if turned else matrix, None if own is None else stored(graph, own))
    owner, _, name = str(weight.target).rpartition(".")
    named = not turned and owner and name == "weight" and (own is None or own.target == f"{owner}.bias")
    at_home = named and not list(graph.get_submodule(owner).children())
    path = owner if at_home else f"{weight.target}_layer".replace(".", "_")
    graph.add_submodule(path, layer)
    with graph.graph.inserting_before(node):
        new = graph.graph.call_module(path, (inputs,))
        if own is None and isinstance(bias, Node):  # several layers share this bias, or the graph computes it
            new = graph.graph.call_function(aten.add.Tensor, (new, bias))
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    for read in (weight, own):
        if read is not None:
            graph.graph.erase_node(read)
            if not at_home:
                _forget(graph, str(read.target))
    return path


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a linear layer from a weight (outputs, inputs) and a bias (outputs).

    A parameter is shared with the new layer; any other tensor becomes a new parameter.
    """
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return layer


def _forget(graph: GraphModule, target: str) -> None:
    owner, _, name = target.rpartition(".")
    delattr(graph.get_submodule(owner), name)


def reader_weight(graph: GraphModule, reader: Node) -> tuple[Tensor, Tensor | None]:
    """Return a reader's weight (outputs, inputs), and its bias or None."""
    weight = stored(graph, reader.args[1]).detach()
    bias = reader.args[2] if len(reader.args) > 2 else reader.kwargs.get("bias")
    turned = weight.T if "matmul" in str(reader.target) else weight.flatten(1)
    return turned, stored(graph, bias).detach() if isinstance(bias, Node) else None


def write_reader(graph: GraphModule, reader: Node, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        target = stored(graph, reader.args[1])
        target.copy_((weight.T if "matmul" in str(reader.target) else weight).reshape(target.shape))
        if bias is not None:
            place = reader.args[2] if len(reader.args) > 2 else reader.kwargs["bias"]
            stored(graph, place).copy_(bias)


def member_columns(traced: Traced, half: Half) -> list[int]:
    """Return the input columns of a sublayer's reader, ordered member by member."""
    return by_members(leaves(traced.tracer.contractions[half.reader][0]), half.atom)
