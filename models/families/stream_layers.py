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


class MapWriter(nn.Module):
    """A grouped convolution whose channels are the first content of a stream, and the linear layer that writes it.

    (B, C, H, W) -> (B, k, H', W'). The grouped convolution keeps its channels, because each of them has a kernel of its
    own.
    """

    def __init__(self, conv: nn.Conv2d, linear: nn.Conv2d) -> None:
        """linear: a convolution with a kernel of one place."""
        super().__init__()
        self.conv, self.linear = conv, linear

    def forward(self, x: Tensor) -> Tensor:
        written: Tensor = self.linear(self.conv(x))
        return written


class OffsetConv(nn.Module):
    """A padded convolution that reads x + b, with a constant b for each channel: conv(pad(x)) + offset.

    The bias of a norm is such a constant. At the border, a part of the kernel reads the padding, which does not have
    the constant. So what b adds is different there, and the module has it for each place: offset (1, D, H', W').
    """

    def __init__(self, conv: nn.Conv2d, offset: Tensor) -> None:
        super().__init__()
        self.conv, self.offset = conv, nn.Parameter(offset)

    def forward(self, x: Tensor) -> Tensor:
        read: Tensor = self.conv(x) + self.offset
        return read


def stream_writer(model: nn.Module, family: Family) -> StreamWriter | None:
    """Return the `StreamWriter` of a model, or None if it has none."""
    norms = (part(model, path) for path in family.stem_norms)
    return next((norm for norm in norms if isinstance(norm, StreamWriter)), None)
