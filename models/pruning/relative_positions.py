"""Relative position bias for a network from which some tokens were removed."""

from torch import Tensor, nn
from torch.nn import functional


class RelativePositions(nn.Module):
    """A bias on the attention logits for each head and each pair of grid positions.

    A fused token has no position, so its bias is zero.
    """

    index: Tensor

    def __init__(self, table: Tensor, index: Tensor) -> None:
        """table: (R, H). index: (N, N), the row of the table for each pair of positions in the full grid."""
        super().__init__()
        self.table = nn.Parameter(table)
        self.register_buffer("index", index.clone(), persistent=False)

    def forward(self, places: Tensor | None, tokens: int) -> Tensor:
        """Return the bias, (1 or B, H, tokens, tokens).

        places: (B, K), grid positions of the first K tokens; None if all tokens are present, in their order.
        """
        if places is None:
            return self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        kept = places.shape[1]
        rows = self.index[places]
        pairs = rows.gather(2, places.unsqueeze(1).expand(-1, kept, -1))
        bias = functional.embedding(pairs, self.table).permute(0, 3, 1, 2)
        return functional.pad(bias, (0, tokens - kept, 0, tokens - kept)) if tokens > kept else bias
