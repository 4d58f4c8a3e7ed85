"""Layers that a rotated network has besides those of its architecture, between the residual stream and its ends."""

from torch import Tensor, nn

from models.families.family import Family, part


class FeatureMap(nn.Linear):
    """A linear layer from the rotated stream to features: (..., k) -> (..., D). It makes no classes.

    A model without a classifier ends with it.
    """


class StreamWriter(nn.Module):
    """A norm before the blocks, as in CLIP, and the linear layer that writes its output to the rotated stream.

    (..., D) -> (..., k). The norm keeps the original width, because it reads the tokens before the stream begins.
    """

    def __init__(self, norm: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x: Tensor) -> Tensor:
        written: Tensor = self.linear(self.norm(x))
        return written


def stream_writer(model: nn.Module, family: Family) -> StreamWriter | None:
    """Return the `StreamWriter` of a model, or None if it has none."""
    norms = (part(model, path) for path in family.stem_norms)
    return next((norm for norm in norms if isinstance(norm, StreamWriter)), None)
