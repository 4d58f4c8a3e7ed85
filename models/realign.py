"""Recovery in sequence: each layer is re-fitted for what really reaches it in the pruned network.

`models.recover` fits every layer to inputs as the dense network has them. What was lost before, and the tokens that left, have
changed them by then. Here the calibration images go through both networks block by block, and each projection and fc2
gets the least-squares answer that brings the residual stream of the tokens that are left back to where the dense one is:
    min over W, b of |x + s (W z + b) - x_dense|^2 + ridge |W - W_0|^2        s: layer scale, z: the layer's own input
The error of one block is then an input to the fit of the next one, instead of adding up (as SparseGPT, arXiv 2301.00774, and
ZipLM, arXiv 2302.04089, go through a network; here the target is the dense stream itself).
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.plan import identity
from models.pruned import PrunedBlock, PrunedBlocks
from models.reduction import TokenState
from models.torch_network import TorchNetwork

ROWS = 32_768
"""Token vectors that a fit sees, about: several times the widest layer, and affordable."""
RIDGE = 1e-2
"""Relative to the mean variance of the inputs."""


def can_realign(network: TorchNetwork) -> bool:
    """One row of plain blocks, whose tokens are those of the dense network or packages of them."""
    plan, structure = network.plan, network.structure
    if plan is None or structure.fixed or len(structure.stages) > 1:
        return False
    reductions = [block.tokens for block in plan.blocks if block.tokens is not None]
    return not any(tokens.reducer == "merge" or tokens.score == "selector" for tokens in reductions)


def realigned(network: TorchNetwork, dense: TorchNetwork, images: Tensor) -> TorchNetwork:
    """A copy of the pruned `network`, re-fitted in sequence on images (n, C, H, W); `dense` is what it was pruned from.

    Raises: AssertionError where `can_realign` says no.
    """
    assert can_realign(network) and network.plan is not None
    images = images[: max(1, ROWS // dense.structure.tokens)]
    whole = dense.pruned(identity(dense.structure), None)
    small = copy.copy(network)
    small.module = copy.deepcopy(network.module)
    columns = torch.tensor(network.plan.embed)
    with torch.inference_mode():
        lane = Lane(_entering(small, images), TokenState(), None)
        target = _entering(whole, images)
        sources = {plan.source: block for plan, block in zip(network.plan.blocks, small.pruned_blocks(), strict=True)}
        for source, block in enumerate(whole.pruned_blocks()):
            middle, target = _dense_block(block, target)
            if source in sources:
                _fit_block(sources[source], lane, middle[..., columns], target[..., columns])
    return small


@dataclass
class Lane:
    """The pruned network's side. x (B, N', D); places (B, N'): which dense token each one is, -1 for a package; None: all."""

    x: Tensor
    state: TokenState
    places: Tensor | None


class _Entered(Exception):
    """What enters the first block is known: the rest of the pass is not needed."""


def _entering(network: TorchNetwork, images: Tensor) -> Tensor:
    """What enters the first block, (B, N, D)."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(inputs[0])
        raise _Entered

    (blocks,) = [module for module in network.module.modules() if isinstance(module, PrunedBlocks)]
    handle = blocks.register_forward_pre_hook(stop)
    try:
        for chunk in images.split(64):
            with contextlib.suppress(_Entered):
                network.module(chunk)
    finally:
        handle.remove()
    return torch.cat(found)


def _dense_block(block: PrunedBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """The stream after the attention and after the MLP."""
    middle = x
    if block.attention is not None and block.norm1 is not None:
        middle = x + block.after1(block.attention(block.norm1(x)))
    if block.mlp is not None and block.norm2 is not None:
        return middle, middle + block.after2(block.mlp(block.norm2(middle)))
    return middle, middle


def _fit_block(block: PrunedBlock, lane: Lane, middle: Tensor, after: Tensor) -> None:
    """Fits projection and fc2 of one block, and moves the lane behind it."""
    if block.reduction is not None and block.reduction.at == "start":
        _reduce(block, lane)
    if block.attention is not None and block.norm1 is not None:
        inputs = _inputs_of(block.attention.projection, lambda: _attend(block, lane))
        _fit(block.attention.projection, inputs, _wanted(lane, middle), block.after1, _present(lane))
        lane.x = lane.x + block.after1(block.attention.projection(inputs))
    if block.reduction is not None and block.reduction.at == "middle":
        _reduce(block, lane)
    if block.mlp is not None and block.norm2 is not None:
        mlp, entering = block.mlp, block.norm2(lane.x)
        inputs = _inputs_of(mlp.fc2, lambda: mlp(entering))
        _fit(mlp.fc2, inputs, _wanted(lane, after), block.after2, _present(lane))
        lane.x = lane.x + block.after2(mlp.fc2(inputs))


def _attend(block: PrunedBlock, lane: Lane) -> None:
    assert block.attention is not None and block.norm1 is not None
    entering, bias = block.norm1(lane.x), lane.state.attention_bias(block.prefix)
    if block.watch is None:
        block.attention(entering, bias)
    else:
        _, attention, keys = block.attention.with_attention(entering, bias)
        block.watch(attention, keys, lane.state)


def _reduce(block: PrunedBlock, lane: Lane) -> None:
    """Moves the lane behind a token reduction."""
    reduction = block.reduction
    assert reduction is not None
    batch, tokens = lane.x.shape[:2]
    places = lane.places if lane.places is not None else torch.arange(tokens).expand(batch, -1)
    chosen: list[Tensor] = []
    reduction.chosen = chosen
    lane.x = reduction(lane.x, lane.state)
    reduction.chosen = None
    patches = places[:, reduction.prefix : reduction.prefix + reduction.patches]
    kept = [places[:, : reduction.prefix], patches.gather(1, chosen[0])]
    package = lane.x.shape[1] - sum(part.shape[1] for part in kept)
    lane.places = torch.cat([*kept, torch.full((batch, package), -1)], dim=1)


def _present(lane: Lane) -> Tensor | None:
    """(B, N') bool: tokens that have a counterpart."""
    return None if lane.places is None else lane.places >= 0


def _wanted(lane: Lane, dense: Tensor) -> Tensor:
    """What is missing to the dense stream (B, N, D), for each token of the lane. (B, N', D)."""
    if lane.places is None:
        return dense - lane.x
    index = lane.places.clamp(min=0).unsqueeze(-1).expand(-1, -1, dense.shape[-1])
    return dense.gather(1, index) - lane.x


def _inputs_of(linear: nn.Linear, run: Callable[[], object]) -> Tensor:
    found: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0]))
    try:
        run()
    finally:
        handle.remove()
    return found[0]


def _fit(linear: nn.Linear, inputs: Tensor, wanted: Tensor, after: nn.Module, present: Tensor | None) -> None:
    """Least squares for scale * (W z + b) = wanted, pulled towards the present W. inputs (B, N', K), wanted (B, N', D)."""
    for module in after.modules():
        scale = getattr(module, "gamma", None)
        if isinstance(scale, Tensor):
            wanted = wanted / torch.where(scale.abs() < 1e-6, torch.ones_like(scale), scale)
    z, t = (inputs.flatten(0, 1), wanted.flatten(0, 1)) if present is None else (inputs[present], wanted[present])
    z_mean, t_mean = z.mean(0), t.mean(0)
    z, t = z - z_mean, t - t_mean
    covariance, together = (z.T @ z).double() / len(z), (t.T @ z).double() / len(z)
    ridge = RIDGE * float(covariance.diagonal().mean()) + 1e-12
    system = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    target = together + ridge * linear.weight.double()
    weight = torch.cholesky_solve(target.T, torch.linalg.cholesky(system)).T
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(t_mean.double() - weight @ z_mean.double())
