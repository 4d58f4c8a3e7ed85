"""Trains token selectors (SPViT, arXiv 2112.13890, sections 3.3 and 4), with the masks of DynamicViT (arXiv
2106.02034).

    loss = CE(labels) + 2/3 sum over stages (mean share kept - rho)^2 + 0.5 KL(teacher || student) + 0.5 MSE(last
    features)

Without labels there is no CE term. Tokens are masked, not removed, so that gradients reach the selectors. The selectors
are put into use one by one, from the last stage to the first. The backbone is frozen at first; after that it is trained
with 1 % of the selectors' learning rate.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional

from models.data.dataset import Batch
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork, of_known_family
from models.statistics.class_logits import class_logits
from models.training.finetune import Recipe, distillation_loss
from models.training.loop import train
from models.training.masked_blocks import MaskedBlocks, choose_by_gumbel, mask_tokens, selectors_of, unmask_tokens

KEEP_WEIGHT, DISTILL_WEIGHT, FEATURE_WEIGHT = 2 / 3, 0.5, 0.5
BACKBONE_SHARE = 0.01
FROZEN = 1 / 6
"""Share of the training in which the backbone is frozen: 5 of 30 epochs."""
INSERTED = 0.3
"""All selectors are in use after less than this share of the training."""


def train_selectors(
    network: Network,
    teacher: Network,
    data: Batch,
    recipe: Recipe,
    *,
    checkpoint: Path,
    after_epoch: Callable[[int, float], None],
    frozen: float = FROZEN,
) -> TorchNetwork:
    """Return a copy of `network` with trained selectors. Its plan must use selectors.

    recipe.learning_rate: learning rate of the selectors.
    recipe.distill: factor on the paper's weight of the KL term.
    frozen: share of the training, in [0, 1], in which the backbone is frozen. After that it is trained a little too.
    The rho of a stage is the share of the original patch tokens that its plan keeps. Training resumes as in `finetune`.
    Raises: InvalidRequest if a reduction has no selector.
    """
    known, teacher = (of_known_family(one, "the training of token selectors") for one in (network, teacher))
    student = known.with_module(copy.deepcopy(known.module))
    reductions = student.reductions()
    targets = [reduction.kept / reductions[0].patches for reduction in reductions]
    masked = mask_tokens(student, choose_by_gumbel)
    learnt = {id(parameter) for selector in selectors_of(student.module) for parameter in selector.parameters()}
    own, backbone = _halves(student.module, learnt)
    rates = (recipe.learning_rate, BACKBONE_SHARE * recipe.learning_rate)
    groups = [{"params": part, "lr": rate} for part, rate in zip((own, backbone), rates, strict=True)]
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=recipe.learning_rate, weight_decay=0.01)
    columns = torch.tensor(network.plan.embed) if network.plan is not None else None

    def loss_of(module: nn.Module, rows: Tensor, progress: float) -> Tensor:
        for parameter in backbone:
            parameter.requires_grad_(progress >= frozen)
        masked.first = first_in_use(progress, masked.stages)
        images = data.images[rows]
        answers, features = teacher_outputs(teacher, images)
        features = features if columns is None else features[..., columns]
        outputs = module(images)
        labels = None if data.labels is None else data.labels[rows]
        loss = answer_loss(outputs, answers, labels, recipe.distill)
        loss = loss + KEEP_WEIGHT * keep_loss(masked, targets[masked.first :])
        return loss + FEATURE_WEIGHT * feature_loss(masked, features)

    train(
        student.module,
        optimizer,
        len(data.images),
        recipe.course,
        loss=loss_of,
        checkpoint=checkpoint,
        after_epoch=after_epoch,
    )
    unmask_tokens(student)
    for parameter in backbone:
        parameter.requires_grad_(True)
    return student


def _halves(module: nn.Module, learnt: set[int]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [p for p in parameters if id(p) in learnt], [p for p in parameters if id(p) not in learnt]


def first_in_use(progress: float, stages: int) -> int:
    """Return the index of the first stage that is in use at this point of the training.

    The last stage is in use from the start; the others follow one by one. progress: in [0, 1).
    """
    return max(0, stages - 1 - int(stages * progress / INSERTED))


def teacher_outputs(teacher: TorchNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's logits (B, C) and the tokens after its last block (B, N, D).

    They are computed again in each epoch, because the tokens of all images would take too much memory.
    """
    seen: list[Tensor] = []
    hook = teacher.blocks()[-1].register_forward_hook(lambda _m, _inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            return teacher.module(images), seen[0]
    finally:
        hook.remove()


def answer_loss(outputs: Tensor, answers: Tensor, labels: Tensor | None, distill: float) -> Tensor:
    """Return 0.5 * distill * KL(teacher || student), plus the cross-entropy if there are labels.

    outputs, answers: logits of student and teacher, (B, C).
    """
    divergence = DISTILL_WEIGHT * distill * distillation_loss(outputs, answers, None, 1.0)
    return divergence if labels is None else functional.cross_entropy(class_logits(outputs), labels) + divergence


def keep_loss(masked: MaskedBlocks, targets: Sequence[float]) -> Tensor:
    """Return the sum of (share of kept patch tokens - target)^2 over the stages in use.

    The share is the mean over all images and tokens. targets: one for each stage in use.
    """
    assert masked.masks is not None
    stages = zip(masked.masks.stages, targets, strict=True)
    return torch.stack([(kept.mean() - target) ** 2 for kept, target in stages]).sum()


def feature_loss(masked: MaskedBlocks, features: Tensor) -> Tensor:
    """Return the mean squared distance to the teacher's tokens after the last block, over the tokens kept to the end.

    features: the teacher's tokens, (B, N, D). Both sides are normalised per token, so that the scale of the residual
    stream does not matter.
    """
    assert masked.masks is not None and masked.masks.tokens is not None
    kept, prefix = masked.masks.present.detach(), masked.blocks.prefix
    patches = slice(prefix, prefix + kept.shape[1])
    width = (features.shape[-1],)
    mine, theirs = (functional.layer_norm(x[:, patches], width) for x in (masked.masks.tokens, features))
    distance = ((mine - theirs) ** 2).mean(dim=-1)
    return (distance * kept).sum() / kept.sum().clamp(min=1)
