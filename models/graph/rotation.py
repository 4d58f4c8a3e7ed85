"""Bases of a graph's heads (models/rotation/head_bases.py) and of its residual stream, and the graph in these bases."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from models.graph.fold_stream import stream_axis
from models.graph.head_maps import map_dims
from models.graph.linear_layers import member_columns, reader_weight
from models.graph.tracing.atoms import Atom, Dim, is_batch, leaves
from models.graph.tracing.capture import stored
from models.graph.tracing.inner_dims import InnerDims, InsideHeads
from models.graph.tracing.stream import GraphStream
from models.graph.tracing.sublayers import GraphBlock
from models.graph.tracing.trace import Traced
from models.graph.tracing.tracer import packet_of
from models.graph.watching import Values, Watcher, layer_inputs
from models.rotation.bases import Bases, BlockBases
from models.rotation.frequencies import frequency_basis
from models.rotation.head_bases import pair_basis, value_basis
from models.rotation.moments import HeadMoments, Mean
from models.rotation.stream_basis import stream_basis
from models.structure import RotatedAxis

aten = torch.ops.aten


def find_graph_bases(
    traced: Traced,
    blocks: Sequence[GraphBlock],
    inside: Sequence[InsideHeads],
    axes: Sequence[RotatedAxis],
    *,
    stream: GraphStream | None,
    chunks: Sequence[Tensor],
) -> Bases:
    """Return the bases of these axes. chunks: the calibration images, (n, C, H, W) each."""
    moments = [HeadMoments() for _ in blocks]
    watched: dict[Node, Callable[[Values], None]] = {}
    for block, dims, found in zip(blocks, inside, moments, strict=True):
        if dims.qk is not None and "qk" in axes:
            watched[dims.qk.mixture] = _pairs(traced, block, dims.qk, found)
        watched[block.heads.reader] = _outputs(traced, block, found)
    readers = [] if stream is None else [reader for some in stream.norms.values() for reader in some]
    products = {reader: Mean() for reader in readers}
    watched |= {reader: _products(reader, products[reader]) for reader in readers}
    watcher = Watcher(traced.graph, watched)
    with torch.inference_mode():
        for chunk in chunks:
            watcher.run(chunk)
    bases = []
    for block, dims, found in zip(blocks, inside, moments, strict=True):
        heads = block.heads.atom
        weight, _ = reader_weight(traced.graph, block.heads.reader)
        columns = member_columns(traced, block.heads)
        values = value_basis(found.output_covariance(heads.size), weight[:, columns]) if "v" in axes else None
        if "qk" not in axes:
            bases.append(BlockBases(v=values))
        elif dims.qk is not None and dims.qk.pair is not None:
            bases.append(BlockBases(v=values, frequencies=frequency_basis(found.queries.value, found.keys.value)))
        else:
            bases.append(BlockBases(pair_basis(found.queries.value, found.keys.value), values))
    if stream is None:
        return Bases(tuple(bases))
    summed = torch.stack([one.value for one in products.values()]).sum(0)
    return Bases(tuple(bases), (stream_basis(summed),))


def rotate_graph(
    traced: Traced,
    blocks: Sequence[GraphBlock],
    inside: Sequence[InsideHeads],
    bases: Bases,
    *,
    stream: GraphStream | None,
) -> None:
    """Rotate the weights of a graph, in place. It computes the same, up to rounding.

    stream: its folded residual stream (models/graph/fold_stream.py), if the bases have one.
    """
    if bases.streams and stream is not None:
        for table in stream.tables:
            turn(traced, stream, table, bases.streams[0].writer_map)
    for block, dims, found in zip(blocks, inside, bases.blocks, strict=True):
        heads = block.heads.atom
        if found.qk is not None and dims.qk is not None:
            _rotate_makers(traced, heads, dims.qk, (found.qk.queries, found.qk.keys))
        if found.v is not None and dims.v is not None:
            _rotate_makers(traced, heads, dims.v, (found.v.values,))
            reader = block.heads.reader.args[1]
            map_dims(traced, reader, heads, dims.v.atoms, maps=found.v.inverse.mT)


def turn(traced: Traced, stream: GraphStream, table: Node, matrix: Tensor) -> None:
    """Let the dims of the stream in a stored tensor hold matrix x in the place of x, in place.

    matrix: (D, D). A layer that reads the stream takes the matrix in the same way, because it is orthogonal.
    """
    tensor, axis = stored(traced.graph, table), stream_axis(traced, stream, table)
    with torch.no_grad():
        tensor.copy_(torch.tensordot(matrix, tensor.double(), dims=([1], [axis])).movedim(0, axis).to(tensor))


def narrow_norms(graph: GraphModule, stream: GraphStream, share: float) -> None:
    """Let the norms of a cut graph divide as before, in place: see `_rescale` in models/pruning/narrow_stream.py.

    share: width over original width.
    """
    names = {norm.name for norm in stream.norms}
    for norm in [node for node in graph.graph.nodes if node.name in names]:
        with torch.no_grad():
            stored(graph, norm.args[2]).mul_(share**-0.5)
        norm.update_arg(4, norm.args[4] / share)
    graph.recompile()


def _products(reader: Node, mean: Mean) -> Callable[[Values], None]:
    """Return a function that adds the products of a reader's inputs."""

    def add(values: Values) -> None:
        rows = values[reader.args[0]].flatten(0, -2)  # type: ignore[index]
        mean.add(rows.T @ rows, len(rows))

    return add


def _rotate_makers(traced: Traced, heads: Atom, dims: InnerDims, maps: Sequence[Tensor]) -> None:
    for maker, biases, matrices in zip(dims.makers, dims.biases, maps, strict=True):
        for node in (maker.args[1], *biases):
            map_dims(traced, node, heads, dims.atoms, maps=matrices)


def _pairs(traced: Traced, block: GraphBlock, dims: InnerDims, moments: HeadMoments) -> Callable[[Values], None]:
    """Return a function that adds the q and k of one run to the moments. It gets the values of all nodes."""
    heads, (q, k) = block.heads.atom, dims.mixture.args[:2]
    ahead = [atom for atom in leaves(traced.tracer.mixtures[dims.mixture][0]) if atom is not heads]
    fused = packet_of(dims.mixture) is aten.scaled_dot_product_attention
    of_q, of_k = (traced.dims(node) for node in (q, k))  # type: ignore[arg-type]
    keys = leaves(of_k[-2] if fused else of_k[-1])
    queries = leaves(of_q[-2])

    def add(values: Values) -> None:
        moments.add_queries(_laid_out(values[q], of_q, (ahead, queries, [heads], [*dims.atoms])))  # type: ignore[index]
        moments.add_keys(_laid_out(values[k], of_k, (ahead, keys, [heads], [*dims.atoms])))  # type: ignore[index]

    return add


def _laid_out(x: Tensor, dims: Sequence[Dim], wanted: Sequence[Dim]) -> Tensor:
    """Return a tensor with other dims. dims: its present dims. wanted: the same atoms, in other groups."""
    order = [atom for dim in dims for atom in leaves(dim)]
    x = x.reshape([-1 if is_batch([atom]) else atom.size for atom in order])
    x = x.permute([order.index(atom) for dim in wanted for atom in dim if atom in order])
    return x.reshape([-1 if is_batch(dim) else prod(atom.size for atom in dim) for dim in wanted])


def _outputs(traced: Traced, block: GraphBlock, moments: HeadMoments) -> Callable[[Values], None]:
    """Return a function that adds the outputs of the heads to the moments."""
    reader = block.heads.reader
    columns = torch.tensor(member_columns(traced, block.heads))

    def add(values: Values) -> None:
        moments.outputs.add(layer_inputs(values, reader, columns).flatten(0, -2))

    return add
