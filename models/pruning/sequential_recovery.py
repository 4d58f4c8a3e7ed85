"""Sequential recovery: refits each layer on the inputs that it really gets in the pruned network.

`models.pruning.recovery` fits every layer on inputs of the dense network. In the pruned network these inputs are
different, because earlier layers were pruned and tokens were removed. Here the calibration images run through both
networks, block by block. Each projection and each fc2 gets the least-squares solution that moves the residual stream of
the remaining tokens as close as possible to that of the dense network:
    min over W, b of |x + s (W z + b) - x_dense|^2 + ridge |W - W_0|^2        s: layer scale, z: the layer's own input
Before it, the layers that read the stream (q/k/v, fc1) get the solution whose outputs are nearest to those of the dense
network, because the stream that they read is not the dense one.
The ridge of each layer is the one whose solution from every second image fits the other images best. If the images are
few, or the layer is wide, it is large, and the weight W_0 that fits the inputs of the dense network hardly changes.
At the end the classifiers are fitted to the outputs that they have in the dense network.
Errors do not add up, because the fit of a block sees the error of the blocks before it and corrects it. SparseGPT
(arXiv 2301.00774) and ZipLM (arXiv 2302.04089) go through a network in the same way; here the target is the residual
stream of the dense network.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.pruning.layer_fit import fit_layer
from models.pruning.prune import qkv_rows
from models.pruning.pruned_blocks import PrunedBlock, row_of_blocks
from models.pruning.token_reduction import TokenState
from models.structure import BlockPlan, Plan, Structure

ROWS = 32_768
"""Approximate number of token vectors per fit: several times the width of the widest layer, and still fast enough."""


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
        sources = {kept.source: (block, kept) for kept, block in zip(plan.blocks, row_of_blocks(small), strict=True)}
        for source, block in enumerate(row_of_blocks(dense)):
            wanted = _dense_block(block, target)
            target = wanted.after
            if source in sources:
                _fit_block(*sources[source], lane, wanted.narrowed(columns))


def fit_classifiers(
    small: nn.Module, dense: nn.Module, heads: Sequence[tuple[nn.Linear, nn.Linear]], images: Tensor
) -> None:
    """Refit the classifiers of the pruned module to the outputs of those of the dense module, in place.

    heads: the classifiers of the pruned module, each with that of the dense module. images: (n, C, H, W).
    """
    with torch.inference_mode():
        inputs = [_inputs_of(head, lambda: _run(small, images)) for head, _ in heads]
        wanted = [_outputs_of(head, lambda: _run(dense, images)) for _, head in heads]
        for (head, _), z, t in zip(heads, inputs, wanted, strict=True):
            fit_layer(head, z.unsqueeze(1), t.unsqueeze(1), nn.Identity(), present=None)


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


@dataclass(frozen=True)
class Wanted:
    """What one block of the dense network computes, each (B, N, ...).

    qkv, fc1: the outputs of these layers. middle, after: the residual stream after the attention and after the MLP.
    """

    qkv: Tensor
    middle: Tensor
    fc1: Tensor
    after: Tensor

    def narrowed(self, columns: Tensor) -> "Wanted":
        """Return the same with these dims of the stream only."""
        return Wanted(self.qkv, self.middle[..., columns], self.fc1, self.after[..., columns])


def _dense_block(block: PrunedBlock, x: Tensor) -> Wanted:
    assert block.attention is not None and block.mlp is not None
    qkv: list[Tensor] = []
    fc1: list[Tensor] = []
    with (
        block.attention.qkv.register_forward_hook(lambda _m, _inputs, y: qkv.append(y)),
        block.mlp.fc1.register_forward_hook(lambda _m, _inputs, y: fc1.append(y)),
    ):
        middle = x + block.after1(block.attend(x, TokenState()))
        after = middle + block.after2(block.transform(middle))
    return Wanted(qkv[0], middle, fc1[0], after)


def _fit_block(block: PrunedBlock, plan: BlockPlan, lane: Lane, wanted: Wanted) -> None:
    """Fit the layers of one block, and move `lane` to the output of this block."""

    def attend(x: Tensor) -> Tensor:
        assert block.attention is not None
        qkv, projection = block.attention.qkv, block.attention.projection
        rows = torch.tensor(qkv_rows(plan, wanted.qkv.shape[-1] // 3))
        _fit_reader(qkv, _inputs_of(qkv, lambda: block.attend(x, lane.state)), wanted.qkv[..., rows], lane)
        inputs = _inputs_of(projection, lambda: block.attend(x, lane.state))
        fit_layer(projection, inputs, _missing(lane, x, wanted.middle), block.after1, present=_present(lane))
        update: Tensor = projection(inputs)
        return update

    def transform(x: Tensor) -> Tensor:
        assert block.mlp is not None
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        _fit_reader(fc1, _inputs_of(fc1, lambda: block.transform(x)), wanted.fc1[..., list(plan.neurons)], lane)
        inputs = _inputs_of(fc2, lambda: block.transform(x))
        fit_layer(fc2, inputs, _missing(lane, x, wanted.after), block.after2, present=_present(lane))
        update: Tensor = fc2(inputs)
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
    return _there(lane, dense) - x


def _there(lane: Lane, dense: Tensor) -> Tensor:
    """Return the rows of the tokens that remain, (B, N', K). dense: (B, N, K). A fused token gets any row."""
    if lane.places is None:
        return dense
    index = lane.places.clamp(min=0).unsqueeze(-1).expand(-1, -1, dense.shape[-1])
    return dense.gather(1, index)


def _run(network: nn.Module, images: Tensor) -> None:
    for chunk in images.split(64):
        network(chunk)


def _inputs_of(linear: nn.Linear, run: Callable[[], object]) -> Tensor:
    """Return the inputs that a layer gets while `run` runs, one run behind the other."""
    found: list[Tensor] = []
    with linear.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0])):
        run()
    return found[0] if len(found) == 1 else torch.cat(found)


def _outputs_of(linear: nn.Linear, run: Callable[[], object]) -> Tensor:
    """Return the outputs that a layer gives while `run` runs, one run behind the other."""
    found: list[Tensor] = []
    with linear.register_forward_hook(lambda _m, _inputs, y: found.append(y)):
        run()
    return found[0] if len(found) == 1 else torch.cat(found)


def _fit_reader(linear: nn.Linear, inputs: Tensor, wanted: Tensor, lane: Lane) -> None:
    """Fit a layer that reads the stream to the outputs that it has in the dense network, (B, N, outputs)."""
    fit_layer(linear, inputs, _there(lane, wanted), nn.Identity(), present=_present(lane))
