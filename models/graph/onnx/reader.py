"""Reads an ONNX file as a graph of PyTorch operators. It can then be cut, refitted and trained like any other model.

The file is prepared first (prepare.py). Its nodes are then translated one by one. If the file leaves the batch size
free, the graph is built for 11 images: no other size in a network is 11, so the batch can be told apart from other
sizes (models/graph/tracing/atoms.py).
"""

import hashlib
import keyword
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from models.errors import InvalidRequest, UnsupportedModel
from models.export.signature import Scores, Signature, judged_output
from models.graph.onnx import layout, products, reductions  # noqa: F401  they add their operators to OPERATORS
from models.graph.onnx.operators import OPERATORS, OUTPUTS, WHOLE, WHOLE_NUMBERS, aten
from models.graph.onnx.prepare import Image, Prepared, inputs_of, load, prepare, value_infos

UNCHANGED = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
"""Operators that leave the values as they are."""


@dataclass(frozen=True)
class OnnxModel:
    """A model that was read from an ONNX file.

    graph: from the images to all outputs of `signature`. image: (channels, height, width). batch: the number of images
    for which the graph was built. is_free: whether the file takes any number of images. signature: the names in the
    file. left_out: the outputs that the graph does not compute. width: the number of values of the judged output per
    image. nodes: for each ONNX value, the name of the node that computes it in the
    graph. prepared: the ONNX model with the same sizes as the graph.
    """

    graph: GraphModule
    image: Image
    batch: int
    is_free: bool
    signature: Signature
    left_out: tuple[str, ...]
    width: int
    metadata: dict[str, str]
    nodes: dict[str, str]
    prepared: ModelProto


def read_onnx(path: Path, image: Image | None = None, outputs: Sequence[str] | None = None) -> OnnxModel:
    """Read an ONNX file.

    image: the size of the images, for a file that leaves height and width free. outputs: the names of the outputs to
    keep; None keeps all.

    Raises: InvalidRequest for an output that the file does not have; DamagedFile; UnsafeFile; UnsupportedModel, which
        names the node or the value that cannot be used.
    """
    model = load(path)
    present = tuple(output.name for output in model.graph.output)
    names = present if outputs is None else _wanted(outputs, present)
    wanted = [output for output in model.graph.output if output.name in names]
    del model.graph.output[:]
    model.graph.output.extend(wanted)  # then nothing that only the other outputs need must be understood
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    prepared = prepare(model, OPERATORS, image)
    (entry,) = inputs_of(prepared.model)
    builder = Builder(prepared)
    builder.translate_all()
    output = _chosen(names, builder, metadata)
    graph = builder.graph_of(names)
    left = {node.name for node in graph.graph.nodes}
    return OnnxModel(
        graph=graph,
        image=prepared.image,
        batch=prepared.batch,
        is_free=prepared.is_free,
        signature=Signature(entry.name, names, names.index(output), _scores_of(output, prepared.model)),
        left_out=tuple(name for name in present if name not in names),
        width=int(builder.sizes(output)[1]),
        metadata=metadata,
        nodes={name: node.name for name, node in builder.values.items() if node.name in left},
        prepared=prepared.model,
    )


def _wanted(outputs: Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs to keep, in the order of the file. Raises: InvalidRequest for one that does not exist."""
    if not outputs or (unknown := [name for name in outputs if name not in present]):
        raise InvalidRequest(
            f"The option outputs names {', '.join(map(repr, unknown)) if outputs else 'no output'}. The ONNX file has"
            f" these outputs: {', '.join(map(repr, present))}. Name one or more of them.",
            outputs=list(outputs),
            allowed=list(present),
        )
    return tuple(name for name in present if name in outputs)


def _chosen(names: Sequence[str], builder: "Builder", metadata: dict[str, str]) -> str:
    """Return the output that is judged: the first one that has one row for each image.

    Raises: UnsupportedModel if there is none.
    """
    for name in (judged_output(list(names), metadata), *names):
        if len(builder.sizes(name)) == 2:
            return name
    shown = ", ".join(f"{name!r} {list(builder.sizes(name))}" for name in names)
    raise UnsupportedModel(
        f"No output of the file has the dims (images, values), one row of logits or features for each image. Its"
        f" outputs are: {shown}. Export the model with such an output.",
        reasons=["no output that is one row for each image"],
    )


def _scores_of(output: str, model: ModelProto) -> Scores:
    """Return what an output holds, from the last operator that changes its values."""
    makers = {name: node for node in model.graph.node for name in node.output}
    while (node := makers.get(output)) is not None and node.op_type in UNCHANGED:
        output = node.input[0]
    known: dict[str, Scores] = {"Softmax": "probabilities", "Sigmoid": "sigmoids"}
    return "logits" if node is None else known.get(node.op_type, "logits")


class Builder:
    """Translates ONNX nodes to nodes of a graph.

    values: the nodes, by the ONNX names of their values.
    layers: the weights of linear layers, by a digest of their contents.
    constants: the constants, by ONNX name.
    uses: how often each value is used, by nodes and as an output of the file.
    types: the element types of the values, by ONNX name.
    meta: the result of each node on the meta device: its tensor has a shape, but no values.
    """

    def __init__(self, prepared: Prepared) -> None:
        model = prepared.model
        self.model, self.batch = model, prepared.batch
        self.root, self.graph = nn.Module(), Graph()
        self.meta: dict[Node, Any] = {}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.values: dict[str, Node] = {}
        self.layers: dict[bytes, list[Node]] = {}
        self.uses = Counter(name for node in model.graph.node for name in node.input)
        self.uses.update(output.name for output in model.graph.output)
        self.types = {info.name: info.type.tensor_type.elem_type for info in value_infos(model)}
        (entry,) = inputs_of(model)
        images = self.graph.placeholder("images")
        self.values[entry.name], self.meta[images] = images, torch.zeros(self.batch, *prepared.image, device="meta")

    def translate_all(self) -> None:
        """Translate all nodes. Raises: UnsupportedModel, which names the first node that cannot be translated."""
        nodes = list(self.model.graph.node)
        self.biases = _biases(nodes, self.constants, self.uses)
        self.sums = {total: product for product, (total, _) in self.biases.items()}
        for node in nodes:
            if node.op_type not in OPERATORS:
                raise UnsupportedModel(
                    f"The node {node.name!r} has the operator {node.op_type}, which vitfit does not know. Export the"
                    " model without this operator.",
                    reasons=[f"operator {node.op_type} (node {node.name!r})"],
                )
            try:
                self._translate(node)
            except (RuntimeError, IndexError, KeyError, ValueError, TypeError) as error:
                raise UnsupportedModel(
                    f"vitfit cannot translate the node {node.name!r} with the operator {node.op_type}:"
                    f" {str(error)[:200]}. Export the model without this use of the operator.",
                    reasons=[f"{node.op_type} (node {node.name!r})"],
                ) from error

    def graph_of(self, outputs: Sequence[str]) -> GraphModule:
        """Return the graph from the images to these outputs of the file: a tensor, or a tuple of several tensors."""
        values = tuple(self.value(name) for name in outputs)
        self.graph.output(values if len(values) > 1 else values[0])
        graph = GraphModule(self.root, self.graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph

    def _translate(self, node: NodeProto) -> None:
        if node.op_type == "Constant":
            self.constants[node.output[0]] = np.asarray(_attributes(node)["value"])
            return
        if node.output[0] in self.sums:  # the linear layer before this addition already adds the bias
            self.values[node.output[0]] = self.values[self.sums[node.output[0]]]
            return
        bias = [self.biases[node.output[0]][1]] if node.output[0] in self.biases else []
        given = {**_attributes(node), OUTPUTS: len(node.output), WHOLE_NUMBERS: self.is_whole(node.output[0])}
        found = OPERATORS[node.op_type](self, [*node.input, *bias], given)
        for name, value in zip(node.output, found if isinstance(found, list) else [found], strict=False):
            self.values[name] = value

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add a node that calls an operator."""
        node = self.graph.call_function(target, args, kwargs)
        plain = torch.fx.node.map_arg(args, lambda one: self.meta[one])
        self.meta[node] = target(*plain, **torch.fx.node.map_arg(kwargs, lambda one: self.meta[one]))
        return node

    def value(self, name: str) -> Node:
        """Return a node for any ONNX value. Each use of a constant becomes a weight of its own.

        Exporters store equal constants once. Constants that are equal by chance, such as the biases of two new
        layers, must not be cut together.
        """
        if name not in self.values:
            found = torch.from_numpy(np.array(self.constants[name]))
            if self.batch > 1 and found.ndim > 2 and len(found) == self.batch and bool((found == found[:1]).all()):
                found = found[:1]  # the exporter repeated it for each image
            elif (rows := self._of_one_image(found)) is not None:
                times = [self.images(), *[1] * (found.ndim - 1)]
                return self.call(aten.repeat.default, self.weight(name, rows), times)
            return self.weight(name, found)
        return self.values[name]

    def _of_one_image(self, tensor: Tensor) -> Tensor | None:
        """Return the rows of one image if a table has the same rows for each image, such as the masks of windows."""
        if self.batch == 1 or tensor.ndim < 3 or len(tensor) % self.batch or len(tensor) == self.batch:
            return None
        parts = tensor.unflatten(0, (self.batch, -1))
        return parts[0] if bool((parts == parts[:1]).all()) else None

    def images(self) -> Node:
        """Return a node that gives the number of images."""
        placeholder = next(iter(self.graph.nodes))
        node = self.graph.call_method("size", (placeholder, 0))
        self.meta[node] = self.batch
        return node

    def weight(self, name: str, tensor: Tensor) -> Node:
        place = re.sub(r"\W", "_", name) or "value"
        while keyword.iskeyword(place) or hasattr(self.root, place):  # fx writes Python code with these names
            place += "_"
        if tensor.is_floating_point() and tensor.ndim:
            self.root.register_parameter(place, nn.Parameter(tensor.float().contiguous()))
        else:
            self.root.register_buffer(place, tensor)
        node = self.graph.get_attr(place)
        self.meta[node] = tensor.to("meta")
        return node

    def layer(self, tensors: dict[str, Tensor]) -> list[Node]:
        """Return nodes for the weights of a linear layer, by ONNX name: first its matrix, then its bias if it has one.

        A layer that the file uses several times becomes one layer with several uses. So its weights are stored, counted
        and cut once. Matrices without different values, such as zeros, can be equal by chance, so they are not shared.
        """
        matrix = next(iter(tensors.values()))
        key = b"|".join(np.ascontiguousarray(one.numpy()).tobytes() for one in tensors.values())
        key = hashlib.sha256(key + repr([tuple(one.shape) for one in tensors.values()]).encode()).digest()
        if key not in self.layers or bool((matrix == matrix.flatten()[0]).all()):
            self.layers[key] = [self.weight(name, one) for name, one in tensors.items()]
        return self.layers[key]

    def constant(self, name: str) -> Any:
        """Return the numbers of a constant value. Raises: ValueError when the value depends on the images."""
        if name not in self.constants:
            raise ValueError(f"its input {name!r} depends on the images, but it must be constant")
        return self.constants[name]

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def is_whole(self, name: str) -> bool:
        """Return whether a value holds whole numbers."""
        return self.types.get(name) in WHOLE

    def sizes(self, name: str) -> tuple[int, ...]:
        return tuple(self.meta[self.values[name]].shape if name in self.values else self.constants[name].shape)


def _biases(nodes: Sequence[NodeProto], constants: dict[str, Any], uses: Counter[str]) -> dict[str, tuple[str, str]]:
    """Find the additions of a constant row to a product with weights.

    Return the name of each product's output -> (name of the addition's output, name of the bias).
    """
    linear = {n.output[0]: n for n in nodes if n.op_type == "MatMul" and n.input[1] in constants}
    found = {}
    for node in nodes:
        if node.op_type != "Add":
            continue
        for one, other in (node.input, reversed(node.input)):
            if one not in linear or uses[one] != 1 or other not in constants:
                continue
            if constants[other].shape == constants[linear[one].input[1]].shape[-1:]:
                found[one] = (node.output[0], other)
    return found


def _attributes(node: NodeProto) -> dict[str, Any]:
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        name: numpy_helper.to_array(value) if isinstance(value, TensorProto) else value for name, value in found.items()
    }
