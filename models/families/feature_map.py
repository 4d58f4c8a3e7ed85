"""The linear layer that turns a rotated residual stream back into features, in a model without a classifier."""

from torch import nn


class FeatureMap(nn.Linear):
    """A linear layer from the rotated stream to features: (..., k) -> (..., D). It makes no classes."""
