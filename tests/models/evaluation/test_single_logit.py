"""Tests of networks with one logit: its sigmoid is the probability of class 1."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.evaluation.metrics import agreement, correct, same_answer
from models.export.onnx_export import compare_outputs
from models.training.finetune import distillation_loss

DENSE = torch.tensor([[2.0], [-1.0], [0.5], [-3.0]])
PRUNED = torch.tensor([[1.0], [-2.0], [-0.5], [-3.0]])


def both(logits: Tensor) -> Tensor:
    """The same network with two classes."""
    return torch.cat([-logits / 2, logits / 2], 1)


def test_scores_are_those_of_the_same_network_with_two_classes() -> None:
    assert agreement(DENSE, PRUNED) == pytest.approx(agreement(both(DENSE), both(PRUNED))) != 0
    assert same_answer(DENSE, PRUNED, 1) == 0.75
    assert correct(PRUNED, torch.tensor([1, 0, 0, 1])) == 3
    assert compare_outputs(DENSE, PRUNED).flips == 1


def test_the_training_loss_is_the_binary_cross_entropy() -> None:
    labels = torch.tensor([1, 0, 1, 0])
    expected = functional.binary_cross_entropy_with_logits(PRUNED[:, 0], labels.float())
    assert distillation_loss(PRUNED, DENSE, labels, 0.0) == pytest.approx(float(expected))
