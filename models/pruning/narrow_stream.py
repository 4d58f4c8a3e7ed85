"""Narrows residual streams: every layer that writes to one or reads it, its norms and its tables."""

from collections.abc import Sequence

import torch
from torch import nn

from models.families.family import Family, part, replace_part
from models.families.stream import Stream
from models.families.stream_parts import free_streams
from models.pruning.prune_layers import narrow_conv, narrow_linear, narrow_norm, take
from models.structure import Plan, Structure


def narrow_streams(model: nn.Module, family: Family, structure: Structure, plan: Plan) -> None:
    """Keep the embedding dims of the plan, in place.

    Changes `model`, which is a dense copy made by `models.pruning.prune`.
    """
    kept = dict(zip((stage.name for stage in structure.stages), plan.embed_of_stages(structure), strict=True))
    for stream in _streams(model, family, structure):
        width, embed = structure.stages[list(kept).index(stream.stage)].blocks[0].width, kept[stream.stage]
        if list(embed) == list(range(width)):
            continue
        _narrow(model, stream, embed)
        if "embed" in plan.rotated:
            _rescale(model, stream, len(embed) / width)
        if stream.stage == structure.stages[-1].name:
            for name in family.width_attributes:
                setattr(model, name, len(embed))


def _streams(model: nn.Module, family: Family, structure: Structure) -> Sequence[Stream]:
    """Return the streams whose width the structure can cut."""
    if "embed" in structure.fixed:
        return ()
    return free_streams(model, family) if structure.has_widths_of_stages else family.streams(model, family)


def _narrow(model: nn.Module, stream: Stream, embed: Sequence[int]) -> None:
    for path in stream.writers:
        layer = part(model, path)
        if isinstance(layer, nn.Conv2d):
            replace_part(model, path, narrow_conv(layer, embed, range(layer.in_channels)))
        else:
            assert isinstance(layer, nn.Linear)
            replace_part(model, path, narrow_linear(layer, embed, range(layer.in_features)))
    for path in stream.layers:
        layer = part(model, path)
        if isinstance(layer, nn.Conv2d):
            replace_part(model, path, narrow_conv(layer, range(layer.out_channels), embed))
        else:
            assert isinstance(layer, nn.Linear)
            replace_part(model, path, narrow_linear(layer, range(layer.out_features), embed))
    for path in stream.tables:
        owner, _, name = path.rpartition(".")
        setattr(part(model, owner), name, nn.Parameter(take(model.get_parameter(path), -1, embed)))
    for path in stream.norms:
        replace_part(model, path, narrow_norm(part(model, path), embed))


def _rescale(model: nn.Module, stream: Stream, share: float) -> None:
    """Multiply the weights of all norms on a stream by share^-1/2, in place. share: width over original width.

    The eps of a norm is a mean square too, so it is divided by the share.

    In a rotated basis the dims that are gone carry next to nothing, so the sum of squares of a token stays what it was.
    A norm divides by the mean square instead, which is a mean over fewer dims (models/rotation/stream_basis.py).
    """
    with torch.no_grad():
        for path in stream.norms:
            norm = part(model, path)
            assert isinstance(norm, nn.LayerNorm)
            norm.weight.mul_(share**-0.5)
            norm.eps /= share
