"""Closed-form recovery: refits each layer that lost inputs, so that its output is as close as possible to the original.

For a layer y = W x + b that keeps the inputs S, the least-squares solution on the calibration images is
    W' = (W C[:, S] + ridge W[:, S]) (C[S, S] + ridge)^-1        C: covariance of x; the ridge pulls W' towards W[:, S]
    b' = b + W mean - W' mean[S]
The bias absorbs the mean of the removed inputs. The kept columns absorb the part of the removed inputs that correlates
with the kept ones. This is the update of OBS / ZipLM for whole columns. If C is diagonal, it is the mean fold of
variance-based pruning.

In a network whose width is cut in a rotated basis, q/k/v and fc1 lose inputs too. They read the first k coordinates of
the stream after a norm, which takes the mean of these coordinates away (models/rotation/stream_basis.py). With M, the
map (D, k) from the normalised stream to these inputs, they are fitted in the same way:
    W' = (W C M + ridge W[:, :k]) (M' C M + ridge)^-1,    b' = b + W mean - W' M' mean
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.pruning.prune import qkv_rows
from models.pruning.readers import Readers
from models.pruning.remembered_fits import Fit, RememberedFits
from models.statistics.layer_weights import LayerWeights
from models.statistics.moments import InputStatistics
from models.statistics.statistics import BlockStatistics
from models.structure import BlockPlan, Plan, Structure

RIDGE = 1e-3
"""Ridge, relative to the mean variance of the kept inputs. It is needed because calibration splits are small."""
FLOOR = 1e-8
"""Second term of the ridge, relative to the mean square of the inputs' means. It matters if inputs hardly vary."""


def refit(weight: Tensor, bias: Tensor | None, inputs: InputStatistics, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the new weight (O, S) and bias (O,), float64.

    weight: (O, D). bias: (O,). kept: indices of the S kept inputs among the D original ones.
    """
    index = torch.tensor(kept)
    full = weight.double()
    block = inputs.covariance[index][:, index]
    ridge = RIDGE * float(block.diagonal().mean()) + FLOOR * float((inputs.mean**2).mean()) + 1e-12
    new = ridge_solution(block, full @ inputs.covariance[:, index], full[:, index], ridge)
    shift = full @ inputs.mean - new @ inputs.mean[index]
    return new, shift if bias is None else bias.double() + shift


def ridge_solution(covariance: Tensor, target: Tensor, current: Tensor, ridge: float) -> Tensor:
    """Return the weight W (O, S) that minimises tr(W C W') - 2 tr(W T') + ridge |W - current|^2, float64.

    covariance: C, (S, S), of the inputs. target: T, (O, S), the wanted outputs times the inputs. current: (O, S).
    """
    system = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    return torch.cholesky_solve((target + ridge * current).T, torch.linalg.cholesky(system)).T


def recover(
    readers: Sequence[Readers],
    plan: Plan,
    weights: Sequence[LayerWeights],
    statistics: Sequence[BlockStatistics],
    *,
    structure: Structure,
    fits: RememberedFits,
) -> None:
    """Refit the projection and fc2 of every pruned block, in place.

    It also refits q/k/v and fc1 if they read only some of their inputs, or a narrower stream in a rotated basis, and
    the statistics hold the moments of these inputs.
    weights: layers of the dense network. structure: that of the dense network. fits: those of the networks before,
    which are used again where they fit.
    """
    fits.begin()
    refit_linear, refit_narrow = partial(_refit_linear, fits=fits), partial(_refit_narrower, fits=fits)
    stages = zip(plan.embed_of_stages(structure), structure.stages, strict=True)
    embeds = [embed for embed, stage in stages for _ in stage.blocks]
    for layers, wanted in zip(readers, plan.blocks, strict=True):
        dense, seen, embed = weights[wanted.source], statistics[wanted.source], embeds[wanted.source]
        width = dense.qkv.out_features // 3
        if "embed" in plan.rotated and len(embed) < dense.fc2.out_features and seen.inputs is not None:
            for made, layer in layers.qkv.items():
                refit_narrow(layer, dense.qkv, qkv_rows(wanted, width, made), seen.inputs.qkv)
            if layers.fc1 is not None:
                refit_narrow(layers.fc1, dense.fc1, wanted.neurons, seen.inputs.fc1)
        if seen.inputs is not None and wanted.qkv_inputs is not None:
            for made, layer in layers.qkv.items():
                rows = qkv_rows(wanted, width, made)
                refit_linear(layer, dense.qkv, rows, seen.inputs.qkv, kept=wanted.qkv_inputs)
        if layers.projection is not None:
            refit_linear(layers.projection, dense.projection, embed, seen.projection, kept=_projection_inputs(wanted))
        if layers.fc1 is not None and seen.inputs is not None and wanted.fc1_inputs is not None:
            refit_linear(layers.fc1, dense.fc1, wanted.neurons, seen.inputs.fc1, kept=wanted.fc1_inputs)
        if layers.fc2 is not None:
            refit_linear(layers.fc2, dense.fc2, embed, seen.neurons, kept=wanted.neurons)


def _projection_inputs(plan: BlockPlan) -> tuple[int, ...]:
    return plan.proj_inputs or tuple(i for head in plan.heads for i in head.v)


def _refit_linear(
    linear: nn.Linear,
    dense: nn.Linear,
    outputs: Sequence[int],
    inputs: InputStatistics,
    *,
    kept: Sequence[int],
    fits: RememberedFits,
) -> None:
    if len(kept) == dense.in_features:
        return

    def fit() -> Fit:
        rows = torch.tensor(outputs)
        return refit(dense.weight.detach()[rows], _bias(dense, rows), inputs, kept)

    _write(linear, fits.of((tuple(outputs), tuple(kept)), dense.weight, inputs, fit))


def _refit_narrower(
    linear: nn.Linear, dense: nn.Linear, outputs: Sequence[int], inputs: InputStatistics, *, fits: RememberedFits
) -> None:
    """Refit a layer that reads the first coordinates of a rotated stream, in place.

    inputs: moments of the normalised stream of the dense network.
    """

    def fit() -> Fit:
        rows = torch.tensor(outputs)
        return refit_narrower(dense.weight.detach()[rows], _bias(dense, rows), linear.weight.detach(), inputs)

    _write(linear, fits.of((tuple(outputs), linear.in_features), dense.weight, inputs, fit))


def _bias(dense: nn.Linear, rows: Tensor) -> Tensor | None:
    return dense.bias.detach()[rows] if dense.bias is not None else None


def _write(linear: nn.Linear, fit: Fit) -> None:
    with torch.no_grad():
        linear.weight.copy_(fit[0])
        if linear.bias is not None:
            linear.bias.copy_(fit[1])


def refit_narrower(
    weight: Tensor, bias: Tensor | None, current: Tensor, inputs: InputStatistics
) -> tuple[Tensor, Tensor]:
    """Return the new weight (O, k) and bias (O,) of a layer that reads the first k coordinates of a rotated stream.

    weight: (O, D). bias: (O,). current: (O, k), which the ridge pulls to. inputs: moments of the normalised stream of
    the dense network. Return float64.
    """
    width, full = current.shape[1], weight.double()
    reads = torch.zeros(weight.shape[1], width, dtype=torch.float64)
    reads[:width] = torch.eye(width, dtype=torch.float64) - 1 / width
    covariance = reads.T @ inputs.covariance @ reads
    ridge = RIDGE * float(covariance.diagonal().mean()) + 1e-12
    new = ridge_solution(covariance, full @ inputs.covariance @ reads, current.double(), ridge)
    shift = full @ inputs.mean - new @ (reads.T @ inputs.mean)
    return new, shift if bias is None else bias.double() + shift
