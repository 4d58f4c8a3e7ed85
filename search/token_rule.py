"""How a method removes tokens, and where. Standard library only."""

from dataclasses import dataclass

from models.record import Record
from models.structure import Reducer, ReductionPoint, Structure, TokenPlan, TokenScore


@dataclass(frozen=True)
class TokenRule(Record):
    """How a method removes tokens, and at which depths (0 to 1) of the network."""

    reducer: Reducer = "fuse"
    at: ReductionPoint = "middle"
    score: TokenScore = "attention"
    depths: tuple[float, ...] = (0.25, 0.5, 0.75)
    """The default means blocks 4, 7 and 10 of 12, as in MDC and SPViT."""

    def stages(self, structure: Structure) -> tuple[int, ...]:
        """Indices of the blocks that remove tokens, without repetitions, only in stages whose token grid may shrink.

        If tokens leave at the start of a block, the first block of a stage is left out: no attention has read its
        tokens yet, so nothing can rank them.
        """
        free = [stage.free_tokens for stage in structure.stages for _ in stage.blocks]
        wanted = sorted({min(int(len(free) * depth), len(free) - 1) for depth in self.depths})
        return tuple(i for i in wanted if free[i] and (i not in structure.first_blocks or self.at == "middle"))

    def plan(self, kept: int) -> TokenPlan:
        return TokenPlan(kept, self.reducer, self.at, self.score)
