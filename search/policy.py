"""A policy says how much to keep of each axis. The search proposes it; the ranking decides which members stay."""

from dataclasses import dataclass

from models.record import Record, later


@dataclass(frozen=True)
class Policy(Record):
    """Keep ratios, each in (0, 1]. Each space uses the fields that it knows.

    heads: share of the heads. qk, v: share of the q/k dims and of the v dims of each head. neurons: share of the MLP
    neurons. embed: share of the embedding dims. halves: share of the sublayers (attention or MLP) of all blocks.
    inputs: share of the layer inputs and neurons that learned gates (VTP) weigh.
    tokens: share of the patch tokens, one number per point where tokens are removed.
    *_by_block: one number per block, in the space that has them (MDC).
    *_mix, in [0, 1]: 0 removes the same share from every block, 1 lets the scores decide between blocks.
    """

    heads: float = 1.0
    qk: float = 1.0
    v: float = 1.0
    neurons: float = 1.0
    tokens: tuple[float, ...] = ()
    heads_mix: float = 0.0
    neurons_mix: float = 0.0
    embed: float = 1.0
    halves: float = 1.0
    inputs: float = 1.0
    heads_by_block: tuple[float, ...] = ()
    neurons_by_block: tuple[float, ...] = ()
    int8: float = later(0.0)
    """Share of the linear layers that are quantised; those that lose least by it come first. 0: an fp32 network."""
