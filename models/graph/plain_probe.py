"""Finds out what a part of a graph computes by running it on chosen inputs: affine maps, norms and activations.

The operators in which a part is written do not matter. A row of the identity matrix as input returns one row of the
weight matrix, whether a file has three products or one, adds its biases separately, or folds scales into its weights.
The result is checked against the graph itself (models/graph/plain_layers.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers.activations import QuickGELU
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.nn import functional

from models.graph.tracing.trace import Traced

EPSILONS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""Epsilons of norms that occur in known architectures."""
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.GELU,
    lambda: nn.GELU("tanh"),
    QuickGELU,
    nn.ReLU,
    nn.SiLU,
    nn.Hardswish,
)
NEAR = 1e-4
"""Largest difference between two tensors that count as equal, relative to the largest absolute value of the second."""


def noise(*shape: int) -> Tensor:
    """Return the same normal noise on every call. PyTorch's global random generator is not used."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class NotPlain(Exception):
    """Raised when a part differs from what a plain vision transformer has at that position."""


def dims_of(traced: Traced, node: Node) -> tuple[int, ...]:
    """Return the dims that a node's tensor has for one image.

    If the rows of a matrix are the tokens of all images, the result is (tokens, ...). Raises: NotPlain when the first
    dim does not count images.
    """
    first, *rest = traced.tracer.shape(node)
    rows, left = divmod(first, traced.tracer.batch.size)
    if left or not rows:
        raise NotPlain("the first dim of a tensor does not count images")
    return tuple(rest) if rows == 1 else (rows, *rest)


class Part:
    """The nodes between `source` and `target`, as a function of the value of `source`."""

    def __init__(self, traced: Traced, source: Node, target: Node) -> None:
        """Raises: NotPlain when `target` also depends on the images by a path that does not go through `source`."""
        self.graph, self.source, self.target = traced.graph, source, target
        self.images = traced.images
        self._flat = len(traced.tracer.shape(source)) <= len(dims_of(traced, source))
        self._dims = dims_of(traced, target)
        self.nodes = self._nodes()

    def _nodes(self) -> list[Node]:
        needed: set[Node] = set()
        waiting = [self.target]
        while waiting:
            node = waiting.pop()
            if node in needed or node is self.source or node is self.images:
                continue
            needed.add(node)
            waiting += node.all_input_nodes
            if node.target != "size" and self.images in node.all_input_nodes and self.source is not self.images:
                raise NotPlain(f"{self.target} depends on more than {self.source}")
        return [node for node in self.graph.graph.nodes if node in needed]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the value of the target for a value `x` of the source.

        Both have the shape (images, ...), also if images and tokens share the first dim in the graph.
        """
        run = Interpreter(self.graph)
        run.env = {self.images: torch.empty(len(x), 0), self.source: x.flatten(0, 1) if self._flat else x}
        with torch.no_grad():  # the results become weights that are trained later, so they must carry no history
            for node in self.nodes:
                run.env[node] = run.run_node(node)
        found: Tensor = run.env[self.target]
        return found.reshape(len(x), *self._dims)


@dataclass(frozen=True)
class Affine:
    """An affine map: weight (outputs, inputs), bias (outputs)."""

    weight: Tensor
    bias: Tensor

    def scaled(self, factor: float) -> "Affine":
        if math.isclose(factor, 1.0, rel_tol=1e-5):
            return self
        return Affine(self.weight * factor, self.bias * factor)


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    bias: Tensor
    eps: float


def affine(
    part: Callable[[Tensor], Tensor],
    width: int,
    tokens: int,
    lay: Callable[[Tensor], Tensor] = lambda x: x,
    *,
    read: Callable[[Tensor], Tensor] = lambda y: y,
) -> Affine:
    """Return the affine map of a part that does the same to each of `tokens` tokens.

    lay: turns (images, tokens, width) into the input of the part.
    read: turns the output of the part into (images, tokens, outputs).

    Raises: NotPlain when the part is not affine, or treats its tokens differently.
    """
    images = 1 + -(-width // tokens)
    rows = torch.zeros(images * tokens, width)
    rows[tokens : tokens + width] = torch.eye(width)
    found = read(part(lay(rows.view(images, tokens, width)))).reshape(images * tokens, -1)
    affine_map = Affine((found[tokens : tokens + width] - found[0]).T.contiguous(), found[0].clone())
    others = noise(1, tokens, width)
    expected = others @ affine_map.weight.T + affine_map.bias
    if not near(read(part(lay(others))).reshape(expected.shape), expected):
        raise NotPlain("a layer does not do the same to each token")  # rotary positions, for example
    return affine_map


def norm(part: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Norm:
    """Return the weight, bias and epsilon of a layer norm over the last dim. shape: the dims of one image.

    Raises: NotPlain when the part is not a layer norm.
    """
    width = shape[-1]
    if width % 2:
        raise NotPlain("the width is odd")
    signs = torch.tensor([1.0, -1.0]).repeat(width // 2)
    small = 1e-3  # its square is close to most epsilons, so the output shows which epsilon is used
    rows = torch.stack([torch.zeros(width), 1e3 * signs, small * signs, noise(width)])
    found = part(rows.view(4, *[1] * (len(shape) - 1), width).expand(4, *shape).contiguous()).reshape(4, -1, width)[
        :, 0
    ]
    bias = found[0]
    weight = (found[1] - bias) * signs
    largest = int(weight.abs().argmax())
    share = float(((found[2] - bias) * signs)[largest] / weight[largest])
    if not 0 < share < 1.01:
        raise NotPlain("it is not a layer norm")
    seen = small**2 * (1 / min(share, 1.0) ** 2 - 1)
    eps = min(EPSILONS, key=lambda one: abs(torch.tensor(max(seen, 1e-12) / one).log().item()))
    if not near(found, functional.layer_norm(rows, (width,), weight, bias, eps)):
        raise NotPlain("it is not a layer norm")
    return Norm(weight.clone(), bias.clone(), eps)


def activation(part: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> nn.Module:
    """Return the activation that a part computes. shape: the dims of one image.

    Raises: NotPlain when it is none of `ACTIVATIONS`.
    """
    count = torch.Size(shape).numel()
    values = torch.linspace(-8, 8, count).view(1, *shape)
    found = part(values)
    for make in ACTIVATIONS:
        if found.shape == values.shape and bool((make()(values) - found).abs().max() < 1e-5):
            return make()
    raise NotPlain("the activation is unknown")


def near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= NEAR * other.abs().max().clamp(min=1e-6))
