"""Tests of the loop that all trainings share: its learning rates over the steps.

The tests of each training check that it resumes.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.training.loop import Course, train


def test_each_group_has_its_own_highest_rate_and_ends_near_zero(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    groups = [{"params": [module.weight], "lr": 0.2}, {"params": [module.bias], "lr": 0.01}]
    optimizer, rates = torch.optim.AdamW(groups), []

    def loss(_module: nn.Module, rows: Tensor, _progress: float) -> Tensor:
        rates.append([group["lr"] for group in optimizer.param_groups])
        total: Tensor = module(torch.ones(len(rows), 2)).sum()
        return total

    train(
        module,
        optimizer,
        40,
        Course(epochs=5, batch=4, seed=0),
        loss=loss,
        checkpoint=tmp_path / "c.pt",
        after_epoch=lambda *_: None,
    )
    assert len(rates) == 50
    first, other = ([rate[group] for rate in rates] for group in (0, 1))
    assert first[0] < 0.05 * 0.2 and max(first) == pytest.approx(0.2, rel=0.01) and first[-1] < 0.01 * 0.2
    assert other == pytest.approx([rate / 20 for rate in first])
    peak = first.index(max(first))
    assert peak < 5 and all(a > b for a, b in zip(first[peak:], first[peak + 1 :], strict=False))
    assert not module.training
