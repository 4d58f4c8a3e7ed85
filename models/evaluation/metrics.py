"""Metrics on logits: agreement with the dense network, and accuracy. n images, C classes."""

import torch
from torch import Tensor

from models.statistics.class_logits import class_logits


def agreement(dense: Tensor, pruned: Tensor) -> float:
    """Return minus the mean KL(p_dense || p_pruned) over images, in nats; at most 0, higher is better.

    dense, pruned: logits (n, C).
    """
    p, q = (torch.log_softmax(class_logits(logits).double(), 1) for logits in (dense, pruned))
    return -float((p.exp() * (p - q)).sum(1).mean())


def feature_agreement(dense: Tensor, pruned: Tensor) -> float:
    """Return minus the mean of |dense - pruned|^2 / |dense|^2 over images; at most 0, higher is better.

    For networks without a classifier. dense, pruned: features (n, D).
    """
    distance = ((dense - pruned).double() ** 2).sum(1)
    return -float((distance / (dense.double() ** 2).sum(1).clamp(min=1e-12)).mean())


def same_answer(dense: Tensor, pruned: Tensor, classes: int) -> float:
    """Return the share of images for which both networks predict the same class.

    For networks without a classifier (`classes` is 0), returns the mean cosine similarity of the features.
    """
    if classes:
        return correct(pruned, class_logits(dense).argmax(1)) / len(dense)
    return float(torch.nn.functional.cosine_similarity(dense, pruned, dim=1).mean())


def correct(logits: Tensor, labels: Tensor) -> int:
    """Return the number of images whose predicted class is their label."""
    return int((class_logits(logits).argmax(1) == labels).sum())
