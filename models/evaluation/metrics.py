"""Scores of logits: agreement with the dense model, accuracy. n images, C classes."""

import torch
from torch import Tensor


def agreement(dense: Tensor, pruned: Tensor) -> float:
    """Minus the mean KL(p_dense || p_pruned) over images, natural logarithm. dense, pruned: logits (n, C)."""
    p, q = torch.log_softmax(dense.double(), 1), torch.log_softmax(pruned.double(), 1)
    return -float((p.exp() * (p - q)).sum(1).mean())


def feature_agreement(dense: Tensor, pruned: Tensor) -> float:
    """For networks without a classifier: minus the mean of |dense - pruned|^2 / |dense|^2. features (n, D)."""
    distance = ((dense - pruned).double() ** 2).sum(1)
    return -float((distance / (dense.double() ** 2).sum(1).clamp(min=1e-12)).mean())


def same_answer(dense: Tensor, pruned: Tensor, classes: int) -> float:
    """Share of images with the dense model's class; without classes, mean cosine of the features."""
    if classes:
        return correct(pruned, dense.argmax(1)) / len(dense)
    return float(torch.nn.functional.cosine_similarity(dense, pruned, dim=1).mean())


def correct(logits: Tensor, labels: Tensor) -> int:
    """How many images get their label."""
    return int((logits.argmax(1) == labels).sum())
