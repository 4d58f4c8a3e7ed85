"""Token reduction inside a pruned network: the state that blocks share, and the module that selects tokens.

B batch, N tokens = P prefix + M patches [+ 1 fused token], D width, H heads. All counts are static.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.pruning import token_reducers as tokens
from models.structure import PACKAGING, TokenPlan, TokenScore


@dataclass
class TokenState:
    """State that the blocks of one forward pass share besides the tokens. It holds no learned values.

    scores: (B, M), scores of the current patch tokens for the next reduction; for the score `similarity` it holds their
    keys, (B, M, q).
    sizes: (1 or B, N - P), number of original tokens that each token stands for; None: one each.
    places: (B, K), positions of the remaining patch tokens in the full grid; None while all are present, in their
    order.
    merged: True if attention must weight each token by its size (ToMe's proportional attention).
    """

    scores: Tensor | None = None
    sizes: Tensor | None = None
    places: Tensor | None = None
    merged: bool = False

    def attention_bias(self, prefix: int) -> Tensor | None:
        """Return log(size) of each key, (1 or B, 1, 1, N); None if attention does not depend on sizes."""
        if not self.merged or self.sizes is None:
            return None
        ones = self.sizes.new_ones(self.sizes.shape[0], prefix)
        return torch.cat([ones, self.sizes], dim=1).log()[:, None, None, :]


class TokenWatch(nn.Module):
    """Computes token scores from the attention of one block, for the next reduction.

    by_class: True to score tokens by the class token's attention, False by the attention of all queries.
    """

    def __init__(self, score: TokenScore, prefix: int, patches: int, by_class: bool) -> None:
        super().__init__()
        self.kind, self.prefix, self.patches, self.by_class = score, prefix, patches, by_class

    def forward(self, attention: Tensor, keys: Tensor, state: TokenState) -> None:
        """attention: (B, H, N, N) after softmax. keys: (B, H, N, q). An earlier fused token gets no score."""
        patches = slice(self.prefix, self.prefix + self.patches)
        if self.kind == "similarity":
            state.scores = keys.mean(dim=1)[:, patches]
            return
        if self.kind == "cumulative":
            seen = tokens.strongest_attention(attention, patches)
            state.scores = seen if state.scores is None else state.scores + seen
            return
        rule = tokens.class_attention if self.by_class else tokens.received_attention
        state.scores = rule(attention, patches)


class TokenReduction(nn.Module):
    """Reduces `patches` patch tokens to the number that the plan keeps, with the plan's reducer.

    `recorded` reads its choice of tokens and `forced_to` replaces it. The parity check uses both to compare two
    runtimes token by token.
    """

    def __init__(
        self, plan: TokenPlan, prefix: int, patches: int, packaged: int, *, selector: nn.Module | None = None
    ) -> None:
        """packaged: number of tokens that an earlier fused token at the end stands for, 0 if there is none.

        selector: computes the scores (B, M) of the patch tokens (B, M, D). Only for plans whose score is learned.
        """
        super().__init__()
        self.kept, self.reducer, self.at = plan.kept, plan.reducer, plan.at
        self.prefix, self.patches, self.packaged = prefix, patches, packaged
        self.cumulative = plan.score == "cumulative"
        self.selector = selector
        self._forced: Tensor | None = None
        self._chosen: list[Tensor] | None = None

    def forward(self, x: Tensor, state: TokenState) -> Tensor:
        if self.selector is not None:
            state.scores = self.selector(x[:, self.prefix : self.prefix + self.patches])
        assert state.scores is not None
        if self.reducer == "merge":
            return self._merge(x, state.scores, state)
        index = tokens.best_tokens(state.scores, self.kept) if self._forced is None else self._forced
        if self._chosen is not None:
            self._chosen.append(index)
        state.places = index if state.places is None else state.places.gather(1, index)
        scores = state.scores
        state.scores = scores.gather(1, index) if self.cumulative else None
        if self.reducer not in PACKAGING:
            return tokens.drop(x, index, self.prefix, self.patches)
        gone = self.patches - self.kept + self.packaged
        state.sizes = torch.cat([x.new_ones(1, self.kept), x.new_full((1, 1), float(gone))], dim=1)
        weights = scores if self.reducer == "weighted" else None
        return tokens.fuse(x, index, self.prefix, self.patches, packaged=self.packaged, weights=weights)

    def _merge(self, x: Tensor, keys: Tensor, state: TokenState) -> Tensor:
        sizes = state.sizes if state.sizes is not None else x.new_ones(1, self.patches)
        body, sizes = tokens.merge(x[:, self.prefix :], keys, sizes, self.kept)
        state.scores, state.sizes, state.merged = None, sizes, True
        return torch.cat([x[:, : self.prefix], body], dim=1)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Records the choices of tokens inside the `with` block.

        Each forward pass adds one tensor to the list: (B, kept), indices of the kept tokens among the incoming patch
        tokens.
        """
        chosen: list[Tensor] = []
        self._chosen = chosen
        try:
            yield chosen
        finally:
            self._chosen = None

    @contextmanager
    def forced_to(self, index: Tensor | None) -> Iterator[None]:
        """Inside the `with` block, keeps the tokens at `index` (B, kept) regardless of their scores.

        None: no change.
        """
        self._forced = index
        try:
            yield
        finally:
            self._forced = None


@contextmanager
def all_recorded(reductions: Sequence[TokenReduction]) -> Iterator[list[list[Tensor]]]:
    """Apply `TokenReduction.recorded` to several reductions. Yields one list for each of them."""
    with ExitStack() as stack:
        yield [stack.enter_context(reduction.recorded()) for reduction in reductions]
