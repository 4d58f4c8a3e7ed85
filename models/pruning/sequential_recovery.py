"""Sequential recovery: refits each layer on the inputs that it really gets in the pruned network.

`models.pruning.recovery` fits every layer on inputs of the dense network. In the pruned network these inputs are
different, because earlier layers were pruned and tokens were removed. Here the calibration images run through both
networks, block by block. Each projection and each fc2 gets the least-squares solution that moves the residual stream of
the remaining tokens as close as possible to that of the dense network:
    min over W, b of |x + s (W z + b) - x_dense|^2 + ridge |W - W_0|^2        s: layer scale, z: the layer's own input
Errors do not add up, because the fit of a block sees the error of the blocks before it and corrects it. SparseGPT
(arXiv 2301.00774) and ZipLM (arXiv 2302.04089) go through a network in the same way; here the target is the residual
stream of the dense network.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.pruning.pruned_blocks import PrunedBlock, row_of_blocks
from models.pruning.recovery import ridge_solution
from models.pruning.token_reduction import TokenState
from models.structure import Plan, Structure

ROWS = 32_768
"""Approximate number of token vectors per fit: several times the width of the widest layer, and still fast enough."""
RIDGE = 1e-2
"""Ridge, relative to the mean variance of the layer's inputs."""


def can_recover_in_sequence(plan: Plan, structure: Structure) -> bool:
    """Return True if every token of the pruned network is either a token of the dense network or a fused token.

    The network must also have a single stage of plain blocks.
    """
    if structure.fixed or len(structure.stages) > 1:
        return False
    reductions = [block.tokens for block in plan.blocks if block.tokens is not None]
    return not any(tokens.reducer == "merge" or tokens.score == "selector" for tokens in reductions)


def recover_in_sequence(small: nn.Module, plan: Plan, dense: nn.Module, images: Tensor, *, tokens: int) -> None:
    """Refit the pruned module `small` layer by layer, in place.

    plan: the plan that `small` was pruned with.
    dense: the dense network, built with a plan that removes nothing, so that it has the same kind of blocks.
    images: (n, C, H, W), from the calibration split; only as many are used as give about `ROWS` token vectors.
    tokens: number of tokens of one image in the dense network.
    """
    images = images[: max(1, ROWS // tokens)]
    columns = torch.tensor(plan.embed)
    with torch.inference_mode():
        lane = Lane(_entering(small, images), TokenState(), None)
        target = _entering(dense, images)
        sources = {kept.source: block for kept, block in zip(plan.blocks, row_of_blocks(small), strict=True)}
        for source, block in enumerate(row_of_blocks(dense)):
            middle, target = _dense_block(block, target)
            if source in sources:
                _fit_block(sources[source], lane, middle[..., columns], target[..., columns])


@dataclass
class Lane:
    """State of the pruned network between two steps.

    x: residual stream, (B, N', D).
    places: (B, N'), index of each token in the dense network, -1 for a fused token; None while no token was removed.
    """

    x: Tensor
    state: TokenState
    places: Tensor | None


class _Entered(Exception):
    """Stops a forward pass as soon as the input of the first block is known."""


def _entering(network: nn.Module, images: Tensor) -> Tensor:
    """Return the input of the first block, (B, N, D)."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(inputs[0])
        raise _Entered

    handle = row_of_blocks(network).register_forward_pre_hook(stop)
    try:
        for chunk in images.split(64):
            with contextlib.suppress(_Entered):
                network(chunk)
    finally:
        handle.remove()
    return torch.cat(found)


def _dense_block(block: PrunedBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual stream after the attention and after the MLP, each (B, N, D)."""
    seen: list[Tensor] = []

    def transform(x: Tensor) -> Tensor:
        seen.append(x)
        return block.transform(x)

    state = TokenState()
    after = block.walk(x, lambda x: block.reduce(x, state), lambda x: block.attend(x, state), transform)
    return (seen[0] if seen else after), after


def _fit_block(block: PrunedBlock, lane: Lane, middle: Tensor, after: Tensor) -> None:
    """Fit the projection and fc2 of one block, and move `lane` to the output of this block."""

    def attend(x: Tensor) -> Tensor:
        assert block.attention is not None
        projection = block.attention.projection
        inputs = _inputs_of(projection, lambda: block.attend(x, lane.state))
        _fit(projection, inputs, _missing(lane, x, middle), block.after1, present=_present(lane))
        update: Tensor = projection(inputs)
        return update

    def transform(x: Tensor) -> Tensor:
        assert block.mlp is not None
        inputs = _inputs_of(block.mlp.fc2, lambda: block.transform(x))
        _fit(block.mlp.fc2, inputs, _missing(lane, x, after), block.after2, present=_present(lane))
        update: Tensor = block.mlp.fc2(inputs)
        return update

    lane.x = block.walk(lane.x, lambda x: _reduce(block, lane, x), attend, transform)


def _reduce(block: PrunedBlock, lane: Lane, x: Tensor) -> Tensor:
    """Apply the block's token reduction to x (B, N', D). Return the remaining tokens and updates `lane.places`."""
    reduction = block.reduction
    assert reduction is not None
    batch, tokens = x.shape[:2]
    places = lane.places if lane.places is not None else torch.arange(tokens).expand(batch, -1)
    with reduction.recorded() as chosen:
        left = block.reduce(x, lane.state)
    patches = places[:, reduction.prefix : reduction.prefix + reduction.patches]
    kept = [places[:, : reduction.prefix], patches.gather(1, chosen[0])]
    fused = left.shape[1] - sum(part.shape[1] for part in kept)
    lane.places = torch.cat([*kept, torch.full((batch, fused), -1)], dim=1)
    return left


def _present(lane: Lane) -> Tensor | None:
    """Return which tokens exist in the dense network too, bool (B, N'); None if all do."""
    return None if lane.places is None else lane.places >= 0


def _missing(lane: Lane, x: Tensor, dense: Tensor) -> Tensor:
    """Return the dense residual stream minus x, token by token, (B, N', D).

    x: current residual stream of the pruned network, (B, N', D). dense: that of the dense network, (B, N, D).
    """
    if lane.places is None:
        return dense - x
    index = lane.places.clamp(min=0).unsqueeze(-1).expand(-1, -1, dense.shape[-1])
    return dense.gather(1, index) - x


def _inputs_of(linear: nn.Linear, run: Callable[[], object]) -> Tensor:
    found: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0]))
    try:
        run()
    finally:
        handle.remove()
    return found[0]


def _fit(linear: nn.Linear, inputs: Tensor, wanted: Tensor, after: nn.Module, *, present: Tensor | None) -> None:
    """Solve scale * (W z + b) = wanted for W and b by least squares, in place.

    A ridge pulls W towards its current value.
    inputs: z, (B, N', K). wanted: (B, N', D). after: module that holds the layer scale, if there is one.
    present: (B, N') bool, the tokens to fit on; None: all.
    """
    for module in after.modules():
        scale = getattr(module, "gamma", None)
        if isinstance(scale, Tensor):
            wanted = wanted / torch.where(scale.abs() < 1e-6, torch.ones_like(scale), scale)
    z, t = (inputs.flatten(0, 1), wanted.flatten(0, 1)) if present is None else (inputs[present], wanted[present])
    z_mean, t_mean = z.mean(0), t.mean(0)
    z, t = z - z_mean, t - t_mean
    covariance, together = (z.T @ z).double() / len(z), (t.T @ z).double() / len(z)
    ridge = RIDGE * float(covariance.diagonal().mean()) + 1e-12
    weight = ridge_solution(covariance, together, linear.weight.double(), ridge)
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(t_mean.double() - weight @ z_mean.double())
