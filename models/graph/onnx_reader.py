"""Reads an ONNX file as a graph of PyTorch operators. It can then be cut, refitted and trained like any other model.

First, ONNX Runtime folds everything constant, such as computed shapes and scales. The remaining nodes are translated
one by one. If the file leaves the batch size free, the graph is built for 11 images: no other size in a network is
11, so the batch can be told apart from other sizes (models/graph/tracing/atoms.py).
"""

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from models.errors import DamagedFile, UnsafeFile, UnsupportedModel
from models.export.onnx_store import is_large
from models.graph.onnx_operators import OPERATORS
from models.graph.tracing.capture import BATCH

NEWEST = 23
"""The newest opset whose operators can be translated."""
OURS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxModel:
    """A model that was read from an ONNX file.

    image: (channels, height, width).
    batch: the number of images for which the graph was built.
    output: the name of the output.
    outputs: the number of output values per image.
    """

    graph: GraphModule
    image: tuple[int, int, int]
    batch: int
    output: str
    outputs: int
    metadata: dict[str, str]


def read_onnx(path: Path) -> OnnxModel:
    """Read an ONNX file.

    Raises: DamagedFile; UnsafeFile; UnsupportedModel, which names the node or the value that cannot be used.
    """
    model = _loaded(path)
    _check(model)
    image, batch, output = _fixed_batch(model)
    folded = _folded(model)
    builder = Builder(folded, (batch, *image))
    graph = builder.build(output)
    sizes = builder.meta[builder.values[output]].shape
    if len(sizes) != 2:
        raise UnsupportedModel(
            f"The output {output!r} has {len(sizes)} dims. It must have the dims (images, values): one row of logits or"
            " features for each image. Export the model with such an output.",
            reasons=["an output that is not one row for each image"],
        )
    return OnnxModel(
        graph, image, batch, output, int(sizes[1]), {entry.key: entry.value for entry in model.metadata_props}
    )


def _loaded(path: Path) -> ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location" and not _inside(path.parent, entry.value):
                    raise UnsafeFile(
                        f"The tensor {tensor.name!r} reads the file {entry.value!r}, which is not in the upload. Put this file"
                        " beside the model, and upload both in one zip."
                    )
        onnx.load_external_data_for_model(model, str(path.parent))
    except UnsafeFile:
        raise
    except Exception as error:  # protobuf raises several exception types of its own
        raise DamagedFile(f"vitfit cannot read the ONNX file ({str(error)[:200]}). Export the model again.") from error
    if not model.graph.node:
        raise DamagedFile("The graph of the ONNX file has no nodes. Export the model again.")
    return model


def _inside(folder: Path, location: str) -> bool:
    target = (folder / location).resolve()
    return target.is_relative_to(folder.resolve()) and target.is_file()


def _check(model: ModelProto) -> None:
    """Check a file before it is translated. Raises: UnsupportedModel with all reasons why it cannot be pruned."""
    reasons = []
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    newest = max((version for domain, version in opsets.items() if domain in OURS), default=0)
    if newest > NEWEST:
        reasons.append(f"it has opset {newest} (allowed: up to {NEWEST})")
    others = Counter(f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in OURS)
    reasons += [f"operator {name} ({number} nodes) is not an operator of the ONNX standard" for name, number in others.items()]
    kinds = {node.op_type for node in model.graph.node}
    reasons += [f"it has control flow ({kind})" for kind in sorted(kinds & {"If", "Loop", "Scan"})]
    if any("Quantize" in kind or "Integer" in kind or kind.startswith("QLinear") for kind in kinds):
        reasons.append("it is already quantised (upload the fp32 model and choose int8 in the job)")
    if len(_inputs(model)) != 1:
        reasons.append(f"it has {len(_inputs(model))} inputs (allowed: one, the images)")
    half = [t.name for t in model.graph.initializer if t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)]
    if half:
        reasons.append(f"it has 16-bit weights in {half[0]} and in {len(half) - 1} more tensors (export it in fp32)")
    if reasons:
        raise UnsupportedModel(
            f"vitfit cannot prune this ONNX file. Reasons: {'; '.join(reasons)}. Export the model without these parts.",
            reasons=reasons,
        )


def _inputs(model: ModelProto) -> list[Any]:
    known = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in known]


def _fixed_batch(model: ModelProto) -> tuple[tuple[int, int, int], int, str]:
    """Write the batch size into the input of a model, in place.

    Returns the image (channels, height, width), the batch size and the name of the output.
    """
    (entry,) = _inputs(model)
    dims = entry.type.tensor_type.shape.dim
    sizes = [dim.dim_value for dim in dims]
    if len(sizes) != 4 or entry.type.tensor_type.elem_type != TensorProto.FLOAT or 0 in sizes[1:]:
        shown = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        raise UnsupportedModel(
            f"The input {entry.name!r} has the dims {shown}. It must take fp32 images of one size, with the dims (images,"
            " channels, height, width). Export the model with a fixed height and width.",
            reasons=["an input that does not take fp32 images of one size"],
        )
    batch = sizes[0] or BATCH
    dims[0].Clear()
    dims[0].dim_value = batch
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return (sizes[1], sizes[2], sizes[3]), batch, model.graph.output[0].name


def _folded(model: ModelProto) -> ModelProto:
    """Return the model after ONNX Runtime has folded its constants.

    Raises: UnsupportedModel when ONNX Runtime rejects the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "folded.onnx"
        onnx.save(model, source, save_as_external_data=is_large(model))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        if is_large(model):
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        try:
            onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UnsupportedModel(
                f"ONNX Runtime cannot load this ONNX file ({str(error)[:300]}). Export the model again.",
                reasons=["ONNX Runtime cannot load it"],
            ) from error
        return onnx.load(target)


class Builder:
    """Translates ONNX nodes to nodes of a graph.

    values: the nodes, by the ONNX names of their values.
    constants: the constants, by ONNX name.
    meta: the result of each node on the meta device: its tensor has a shape, but no values.
    """

    def __init__(self, model: ModelProto, sizes: Sequence[int]) -> None:
        self.model, self.batch = model, sizes[0]
        self.root, self.graph = nn.Module(), Graph()
        self.meta: dict[Node, Any] = {}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.values: dict[str, Node] = {}
        self.uses = Counter(name for node in model.graph.node for name in node.input)
        (entry,) = _inputs(model)
        images = self.graph.placeholder("images")
        self.values[entry.name], self.meta[images] = images, torch.zeros(*sizes, device="meta")

    def build(self, output: str) -> GraphModule:
        nodes = list(self.model.graph.node)
        self.biases = _biases(nodes, self.constants, self.uses)
        self.sums = {total: product for product, (total, _) in self.biases.items()}
        for node in nodes:
            if node.op_type not in OPERATORS:
                raise UnsupportedModel(
                    f"The node {node.name!r} has the operator {node.op_type}, which vitfit does not know. Export the model"
                    " without this operator.",
                    reasons=[f"operator {node.op_type} (node {node.name!r})"],
                )
            try:
                self._translate(node)
            except (RuntimeError, IndexError, KeyError, ValueError, TypeError) as error:
                raise UnsupportedModel(
                    f"vitfit cannot translate the node {node.name!r} with the operator {node.op_type}: {str(error)[:200]}."
                    " Export the model without this use of the operator.",
                    reasons=[f"{node.op_type} (node {node.name!r})"],
                ) from error
        self.graph.output(self.values[output])
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
        found = OPERATORS[node.op_type](self, [*node.input, *bias], _attributes(node))
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
            return self.weight(name, found)
        return self.values[name]

    def images(self) -> Node:
        """Return a node that gives the number of images."""
        placeholder = next(iter(self.graph.nodes))
        node = self.graph.call_method("size", (placeholder, 0))
        self.meta[node] = self.batch
        return node

    def weight(self, name: str, tensor: Tensor) -> Node:
        place = re.sub(r"\W", "_", name) or "value"
        while hasattr(self.root, place):
            place += "_"
        if tensor.is_floating_point() and tensor.ndim:
            self.root.register_parameter(place, nn.Parameter(tensor.float().contiguous()))
        else:
            self.root.register_buffer(place, tensor)
        node = self.graph.get_attr(place)
        self.meta[node] = tensor.to("meta")
        return node

    def constant(self, name: str) -> Any:
        """Return the numbers of a constant value. Raises: ValueError when the value depends on the images."""
        if name not in self.constants:
            raise ValueError(f"its input {name!r} depends on the images, but it must be constant")
        return self.constants[name]

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def sizes(self, name: str) -> tuple[int, ...]:
        return tuple(self.meta[self.values[name]].shape if name in self.values else self.constants[name].shape)


def _biases(nodes: Sequence[NodeProto], constants: dict[str, Any], uses: Counter[str]) -> dict[str, tuple[str, str]]:
    """Find the additions of a constant row to a product with weights.

    Returns the name of each product's output -> (name of the addition's output, name of the bias).
    """
    products = {n.output[0]: n for n in nodes if n.op_type == "MatMul" and n.input[1] in constants}
    found = {}
    for node in nodes:
        if node.op_type != "Add":
            continue
        for one, other in (node.input, reversed(node.input)):
            if one not in products or uses[one] != 1 or other not in constants:
                continue
            if constants[other].shape == constants[products[one].input[1]].shape[-1:]:
                found[one] = (node.output[0], other)
    return found


def _attributes(node: NodeProto) -> dict[str, Any]:
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        name: numpy_helper.to_array(value) if isinstance(value, TensorProto) else value for name, value in found.items()
    }
