"""Linear maps of the dims inside the heads of a graph, folded into its stored tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.graph.tracing.atoms import Atom, leaves
from models.graph.tracing.capture import stored
from models.graph.tracing.trace import Traced

ALL: Mapping[Atom, Sequence[int]] = {}
"""All members of all atoms are there."""


def map_dims(
    traced: Traced,
    node: Any,
    heads: Atom,
    dims: Sequence[Atom],
    *,
    maps: Tensor,
    kept: Mapping[Atom, Sequence[int]] = ALL,
) -> None:
    """Replace the values of a stored tensor along these dims by linear combinations of them, in place.

    dims: the atoms that count the d dims, the slowest first. maps: (H, d, d), one for each head. kept: the members that
    stay, if the graph was cut.
    """
    tensor = stored(traced.graph, node)
    (axis,) = (place for place, dim in enumerate(traced.dims(node)) if dims[0] in dim)
    order = leaves(traced.dims(node)[axis])
    index = torch.arange(tensor.shape[axis]).reshape([len(kept.get(atom, range(atom.size))) for atom in order])
    index = index.permute([order.index(atom) for atom in (heads, *dims)]).flatten(1)  # (H, d)
    with torch.no_grad():
        rows = tensor.movedim(axis, 0)  # a view
        for places, matrix in zip(index, maps, strict=True):
            old = rows[places].double()
            rows[places] = (matrix @ old.reshape(len(old), -1)).reshape_as(old).to(tensor)
