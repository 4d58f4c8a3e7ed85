"""Class scores of networks with a single logit."""

import torch
from torch import Tensor


def class_logits(outputs: Tensor) -> Tensor:
    """Return logits with at least two columns. outputs: logits (n, C) -> (n, max(C, 2)).

    A network with one logit x has two classes, with the probabilities 1 - sigmoid(x) and sigmoid(x). The softmax of the
    logits (0, x) gives the same probabilities. Without this, a softmax over one column would always be 1, so all scores
    would be perfect.
    """
    if outputs.shape[-1] != 1:
        return outputs
    return torch.cat([torch.zeros_like(outputs), outputs], dim=-1)
