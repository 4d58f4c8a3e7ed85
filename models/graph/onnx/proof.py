"""Prove that a network gives the same outputs as the ONNX file that it was read from.

If vitfit translates one operator wrongly, it prunes another network than the user's, and nobody notices. So the file
runs in ONNX Runtime, and the network in PyTorch, on the same images and with several batch sizes. If the outputs
differ, vitfit refuses the file. The message names the first node at which the two differ.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from models.errors import UnsupportedModel
from models.export.onnx_export import relative_difference
from models.export.onnx_store import is_large
from models.export.signature import Signature
from models.graph.onnx.reader import OnnxModel, read_onnx
from models.networks.network import Network

TOLERANCE = 1e-4
"""Largest allowed difference from the user's own model, divided by the largest absolute output."""
ROUNDING = 20.0
"""The allowed difference, as a multiple of the difference that rounding causes between two runs of ONNX Runtime."""
MOST = 1e-2
"""Upper limit for the difference, even where rounding is large."""
SMOOTH = 8
"""Height and width of the noise that is enlarged to images that resemble photographs, in pixels."""
BATCHES = (1, 2, 5)
REPORT = "Export the model without this operator, or report this file: vitfit translates it wrongly."


class Original:
    """An uploaded file, open in ONNX Runtime. optimised: False turns all optimisations off, which changes rounding."""

    def __init__(self, path: Path, signature: Signature, optimised: bool = True) -> None:
        self._path, self._signature = path, signature
        self._session = _session(path, optimised)

    def unoptimised(self) -> "Original":
        """Return the same file, without the optimisations of ONNX Runtime."""
        return Original(self._path, self._signature, optimised=False)

    @property
    def batch(self) -> int | None:
        """The number of images that the file takes at a time; None if it takes any number."""
        (entry,) = self._session.get_inputs()
        return entry.shape[0] if isinstance(entry.shape[0], int) else None

    def outputs(self, images: Tensor, batch: int) -> list[Tensor]:
        """Return all outputs, each (n, values), of images in batches of this size."""
        given = self._signature
        chunks = []
        for chunk in images.split(batch):
            found = self._session.run(list(given.outputs), {given.input: chunk.numpy()})
            # a Squeeze without axes removes the axis of a single image
            chunks.append([one.astype(np.float32).reshape(len(chunk), -1) for one in found])
        return [torch.from_numpy(np.concatenate(some)) for some in zip(*chunks, strict=True)]


def _session(file: Path, optimised: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def prove(path: Path, model: OnnxModel, network: Network) -> None:
    """Compare the network with the file, on images that are made here.

    Raises: UnsupportedModel, which names the first node whose value differs.
    """
    original = Original(path, network.signature)
    for images, batch in _inputs(model):
        difference = _largest_difference(original, network, images, batch)
        if difference is not None:
            raise _refusal(model, images, difference)


def prove_on_images(path: Path, network: Network, images: Tensor) -> None:
    """Compare the network with the file, on real images (n, C, H, W).

    A file that takes several images at a time is compared on as many images as fill its batches.

    Raises: UnsupportedModel, which names the first node whose value differs.
    """
    original = Original(path, network.signature)
    batch = original.batch or len(images)
    images = images[: len(images) // batch * batch]
    difference = _largest_difference(original, network, images, batch) if len(images) else None
    if difference is not None:
        model = read_onnx(path, network.structure.image, network.signature.outputs)
        raise _refusal(model, images, difference)


def _largest_difference(original: Original, network: Network, images: Tensor, batch: int) -> float | None:
    """Return the relative difference of an output that rounding cannot explain, or None if there is no such output."""
    expected = original.outputs(images, batch)
    try:
        found = _all_outputs(network, images, batch)
    except (RuntimeError, IndexError, TypeError, ValueError):  # sizes that hold for another number of images only
        return float("inf")
    if not any(map(_differs, expected, found)):
        return None
    unoptimised = original.unoptimised().outputs(images, batch)
    for one, got, rounded in zip(expected, found, unoptimised, strict=True):
        if _differs(one, got) and not _is_rounding(one, got, rounded):
            return _relative(one, got)
    return None


def _all_outputs(network: Network, images: Tensor, batch: int) -> list[Tensor]:
    """Return all outputs of the network, each (n, values)."""
    chunks = []
    with torch.inference_mode():
        for chunk in images.split(batch):
            found = network.with_all_outputs(chunk)
            found = found if isinstance(found, tuple) else (found,)
            chunks.append([one.float().reshape(len(chunk), -1) for one in found])
    return [torch.cat(some) for some in zip(*chunks, strict=True)]


def _inputs(model: OnnxModel) -> Iterator[tuple[Tensor, int]]:
    """Yield images and a batch size: noise, and images that resemble photographs."""
    draw = torch.Generator().manual_seed(0)
    channels, height, width = model.image
    for batch in BATCHES if model.is_free else (model.batch,):
        count = max(batch, 2 if model.is_free else batch)
        yield torch.randn(count, *model.image, generator=draw), batch
    count = model.batch if not model.is_free else 4
    coarse = torch.randn(count, channels, SMOOTH, SMOOTH, generator=draw)
    yield 2 * functional.interpolate(coarse, (height, width), mode="bicubic"), count


def _relative(expected: Tensor, got: Tensor) -> float:
    return relative_difference(expected, got) if expected.shape == got.shape else float("inf")


def _differs(expected: Tensor, got: Tensor) -> bool:
    return not _relative(expected, got) <= TOLERANCE  # a NaN differs too


def _is_rounding(expected: Tensor, got: Tensor, unoptimised: Tensor) -> bool:
    """Return whether rounding alone can explain the difference.

    Deep networks with large activations amplify rounding. The size of this effect is the difference between two runs
    of the file: with and without the optimisations of ONNX Runtime (`unoptimised`).
    """
    allowed = min(ROUNDING * _relative(expected, unoptimised), MOST)
    return _relative(expected, got) <= allowed


def _refusal(model: OnnxModel, images: Tensor, difference: float) -> UnsupportedModel:
    node = first_different(model, images)
    where = "a later step that simplifies the graph" if node is None else f"the node {node.name!r} ({node.op_type})"
    percent = "another shape" if difference == float("inf") else f"{100 * difference:.2g} % of the largest output"
    return UnsupportedModel(
        f"vitfit's translation of this ONNX file gives other outputs than the file itself in ONNX Runtime: they differ"
        f" by {percent} (allowed: {100 * TOLERANCE:g} %). The first difference is in {where}. {REPORT}",
        reasons=[f"the outputs differ from the file's, first in {where}"],
        node=None if node is None else node.name,
        operator=None if node is None else node.op_type,
    )


def first_different(model: OnnxModel, images: Tensor) -> onnx.NodeProto | None:
    """Return the first node, in topological order, whose value differs between ONNX Runtime and the graph.

    None: all values that both compute are equal. Then a step after the translation is wrong.
    """
    full = images[:1].expand(model.batch, *model.image).contiguous()
    full = full + 0.1 * torch.randn(full.shape, generator=torch.Generator().manual_seed(1))
    computed = _values_of_graph(model.graph, full)
    for node, name, expected in _values_of_file(model, full):
        if name not in model.nodes or model.nodes[name] not in computed:
            continue
        got = computed[model.nodes[name]]
        if isinstance(got, Tensor) and _differs(torch.from_numpy(expected).float(), got.float()):
            return node
    return None


def _values_of_graph(graph: GraphModule, images: Tensor) -> dict[str, Any]:
    recorder = _Recorder(graph)
    with torch.inference_mode():
        recorder.run(images)
    return recorder.found


class _Recorder(Interpreter):
    """Keeps the value of each node."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.found[n.name] = value = super().run_node(n)
        return value


def _values_of_file(model: OnnxModel, images: Tensor) -> Iterator[tuple[onnx.NodeProto, str, Any]]:
    """Yield each node of the prepared file with the name and the value of its first output."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model.prepared)
    names = [node.output[0] for node in watched.graph.node if node.output[0] in model.nodes]
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(watched, file, save_as_external_data=is_large(watched))
        values = dict(
            zip(names, _session(file, optimised=False).run(names, {model.signature.input: images.numpy()}), strict=True)
        )
    for node in model.prepared.graph.node:
        if node.output[0] in values:
            yield node, node.output[0], values[node.output[0]]
