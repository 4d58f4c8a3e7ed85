"""Scores of logits: agreement with the dense model, accuracy. n images, C classes."""

import torch
from torch import Tensor


def agreement(dense: Tensor, pruned: Tensor) -> float:
    """Minus the mean KL(p_dense || p_pruned) over images, natural logarithm. dense, pruned: logits (n, C)."""
    p, q = torch.log_softmax(dense.double(), 1), torch.log_softmax(pruned.double(), 1)
    return -float((p.exp() * (p - q)).sum(1).mean())


def correct(logits: Tensor, labels: Tensor) -> int:
    """How many images get their label."""
    return int((logits.argmax(1) == labels).sum())
