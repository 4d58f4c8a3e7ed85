"""Pruned blocks that mask tokens instead of removing them, so that the choice of tokens can be trained.

If the masks keep the best `kept` tokens, the outputs equal those of the pruned blocks. With random masks through which
gradients flow, the selectors are trained. These modules are used in training only and never exported.
B batch, N tokens = P prefix + M patches [+ 1 fused token], D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InvalidRequest
from models.families.family import replace_part
from models.networks.torch_network import TorchNetwork
from models.pruning import token_reducers as tokens
from models.pruning.pruned_blocks import PrunedBlock, PrunedBlocks
from models.pruning.token_reduction import TokenReduction
from models.pruning.token_selector import TokenSelector
from models.structure import PACKAGING

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(T_keep (B, M), present (B, M), kept) -> mask (B, M), 1 for the tokens that are kept, otherwise 0."""


def choose_best(scores: Tensor, present: Tensor, kept: int) -> Tensor:
    """Keep the `kept` present tokens with the highest scores, as a delivered network does."""
    best = tokens.best_tokens(scores.masked_fill(present == 0, -1.0), kept)
    return tokens.membership(best, scores.shape[1]).to(scores.dtype) * present


def choose_by_gumbel(scores: Tensor, present: Tensor, _kept: int) -> Tensor:
    """Keep each token at random, with the probability T_keep.

    It is a straight-through Gumbel-softmax: the forward pass uses 0 or 1, and the backward pass uses the soft values.
    """
    keep = scores.clamp(1e-6, 1 - 1e-6)
    drawn = functional.gumbel_softmax(torch.stack([keep, 1 - keep], dim=-1).log(), hard=True)
    return drawn[..., 0] * present


@dataclass
class Masks:
    """State of one forward pass.

    present: (B, M), 1 for each original patch token that is still kept, otherwise 0.
    packaged: True if the last token is a fused token.
    stages: values of `present` after each reduction that is in use.
    tokens: output of the last block, (B, N, D).
    """

    present: Tensor
    packaged: bool = False
    stages: list[Tensor] = field(default_factory=list)
    tokens: Tensor | None = None

    def allowed(self, prefix: int) -> Tensor:
        """Return which keys each query may see, 0 or 1, (B, 1, N, N). Every token may see itself."""
        seen = _joined(self.present.new_ones(1, prefix), self.present, self.package())
        every, own = seen[:, None, None, :], torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
        return every + (1 - every) * own

    def sizes(self) -> Tensor:
        """Return the number of original tokens that each token stands for, (B, N - P)."""
        gone = self.present.shape[1] - self.present.sum(dim=1, keepdim=True)
        return _joined(self.present, gone if self.packaged else None)

    def package(self) -> Tensor | None:
        return self.present.new_ones(1, 1) if self.packaged else None


def _joined(*parts: Tensor | None) -> Tensor:
    given = [part for part in parts if part is not None]
    return torch.cat([part.expand(max(p.shape[0] for p in given), -1) for part in given], dim=1)


class MaskedBlocks(nn.Module):
    """Replaces `blocks` in a network and shares their parameters.

    first: index of the first reduction that is in use; the reductions before it are not applied yet.
    """

    def __init__(self, blocks: PrunedBlocks, choose: Choose) -> None:
        """Raises: InvalidRequest if a reduction has no selector."""
        super().__init__()
        self.blocks, self.choose, self.first = blocks, choose, 0
        self.masks: Masks | None = None
        parts = blocks.blocks()
        self._places = {id(b): place for place, b in enumerate([b for b in parts if b.reduction is not None])}
        self._patches = next((b.reduction.patches for b in parts if b.reduction is not None), 0)
        if not self._places or any(b.reduction is not None and b.reduction.selector is None for b in parts):
            raise InvalidRequest(
                "The network has no token reductions, or one of them has no token selector. The training of token"
                " selectors needs token reductions that all have one. Give all token reductions of the plan the score"
                " 'selector'."
            )

    @property
    def stages(self) -> int:
        return len(self._places)

    def forward(self, x: Tensor) -> Tensor:
        masks = self.masks = Masks(x.new_ones(x.shape[0], self._patches))
        for block in self.blocks.blocks():
            x = self._through(block, x, masks)
        masks.tokens = x
        return self.blocks.leave(x, masks.sizes())

    def _through(self, block: PrunedBlock, x: Tensor, masks: Masks) -> Tensor:
        """Run one block like `PrunedBlock.forward`, but with masks."""
        in_use = self._places.get(id(block), -1) >= self.first

        def reduce(x: Tensor) -> Tensor:
            return self._reduced(block.reduction, x, masks) if in_use and block.reduction is not None else x

        def attend(x: Tensor) -> Tensor:
            assert block.attention is not None and block.norm1 is not None
            return block.attention.masked(block.norm1(x), masks.allowed(self.blocks.prefix))

        return block.walk(x, reduce, attend, block.transform)

    def _reduced(self, reduction: TokenReduction, x: Tensor, masks: Masks) -> Tensor:
        prefix, before = self.blocks.prefix, masks.present
        body, package = x[:, prefix : prefix + self._patches], x[:, prefix + self._patches :]
        assert reduction.selector is not None
        scores = reduction.selector(body, before)
        masks.present = self.choose(scores, before, reduction.kept)
        masks.stages.append(masks.present)
        if reduction.reducer not in PACKAGING:
            return x
        weights = scores if reduction.reducer == "weighted" else torch.ones_like(scores)
        gone = (_shares(weights, before) * (before - masks.present)).unsqueeze(-1)
        total, count = (gone * body).sum(dim=1, keepdim=True), gone.sum(dim=1, keepdim=True)
        if masks.packaged:
            earlier = (self._patches - before.sum(dim=1)).reshape(-1, 1, 1)
            total, count = total + package * earlier, count + earlier
        masks.packaged = True
        return torch.cat([x[:, : prefix + self._patches], total / count.clamp(min=1e-6)], dim=1)


def _shares(weights: Tensor, present: Tensor) -> Tensor:
    """Scales the weights to mean 1 over the present tokens, as `tokens.fuse` does. Return (B, M)."""
    mean = (weights * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)
    return (weights / mean.clamp(min=1e-12)).clamp(min=tokens.LEAST_SHARE)


def mask_tokens(network: TorchNetwork, choose: Choose) -> MaskedBlocks:
    """Replace the blocks of a pruned network by masked blocks, in place, and return them. `unmask_tokens` undoes
    this.

    Raises: InvalidRequest if a reduction has no selector, or if it drops tokens and the network pools its tokens. The
    pooling would then average masked tokens too.
    """
    module = network.module
    if network.pools_tokens and any(reduction.reducer not in PACKAGING for reduction in network.reductions()):
        raise InvalidRequest(
            "The network pools its tokens, but one of its token reductions makes no fused token. Such a network needs"
            " a fused token in each token reduction. Use reducer 'weighted' or 'fuse'."
        )
    path, blocks = next((p, m) for p, m in module.named_modules() if isinstance(m, PrunedBlocks))
    masked = MaskedBlocks(blocks, choose)
    replace_part(module, path, masked)
    return masked


def unmask_tokens(network: TorchNetwork) -> None:
    module = network.module
    path, masked = next((p, m) for p, m in module.named_modules() if isinstance(m, MaskedBlocks))
    replace_part(module, path, masked.blocks)


def selectors_of(module: nn.Module) -> list[TokenSelector]:
    return [part for part in module.modules() if isinstance(part, TokenSelector)]
