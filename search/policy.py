"""How much to keep: what the search proposes. Which member goes is the ranking's choice."""

from dataclasses import dataclass

from models.record import Record, later


@dataclass(frozen=True)
class Policy(Record):
    """Fractions kept, in (0, 1]; every space uses the fields that it knows.

    heads, qk, v, neurons: of the heads, of the q/k and v dims of each head, of the neurons; embed: of the embedding dims;
    halves: of the attention and MLP halves of all blocks; inputs: of the dims that learned gates (VTP) weigh.
    tokens: of the patch tokens at each stage. *_by_block: one number per block where a space has them (MDC).
    mix: 0 spreads what is removed evenly over blocks, 1 lets the scores decide between blocks.
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
    """Share of the linear layers that are quantised, those that bear it best first; 0: an fp32 network."""
