"""Mean and covariance of the input of a layer."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputStatistics:
    """Mean (D,) and covariance (D, D) of the input of a linear layer, over tokens and images, in float64."""

    mean: Tensor
    covariance: Tensor


class Moments:
    """Accumulates mean and covariance over batches of rows, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None
        self.sum: Tensor | float = 0.0
        self.product: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows (R, D). Products are computed in the precision of the rows, and summed over batches in float64."""
        if self.shift is None:
            self.shift = rows.mean(0)
        rows = rows - self.shift  # with a large mean, rounding errors would exceed the variance
        self.count += rows.shape[0]
        self.sum = self.sum + rows.double().sum(0)
        self.product = self.product + (rows.T @ rows).double()

    def statistics(self) -> InputStatistics:
        assert isinstance(self.sum, Tensor) and isinstance(self.product, Tensor) and self.shift is not None
        offset = self.sum / self.count
        covariance = self.product / self.count - torch.outer(offset, offset)
        covariance.diagonal().clamp_(min=0)
        return InputStatistics(self.shift.double() + offset, covariance)
