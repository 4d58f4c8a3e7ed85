"""Relative positions of tokens of which some are gone."""

from torch import Tensor, nn
from torch.nn import functional


class RelativePositions(nn.Module):
    """What each pair of places adds to the logits of each head. A package token has no place: nothing is added for it."""

    index: Tensor

    def __init__(self, table: Tensor, index: Tensor) -> None:
        """table (R, H); index (N, N): the row of the table for each pair of places of the whole grid."""
        super().__init__()
        self.table = nn.Parameter(table)
        self.register_buffer("index", index.clone(), persistent=False)

    def forward(self, places: Tensor | None, tokens: int) -> Tensor:
        """places (B, K): where the first K of the tokens are, None: all are there, in order. (1 or B, H, tokens, tokens)."""
        if places is None:
            return self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        kept = places.shape[1]
        rows = self.index[places]
        pairs = rows.gather(2, places.unsqueeze(1).expand(-1, kept, -1))
        bias = functional.embedding(pairs, self.table).permute(0, 3, 1, 2)
        return functional.pad(bias, (0, tokens - kept, 0, tokens - kept)) if tokens > kept else bias
