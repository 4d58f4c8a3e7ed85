"""Tests of unusual operators that compute the same as usual ones.

vitfit prunes both kinds alike, or refuses the unusual one. Before pruning, each model here equals a usual model.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.preprocessing import Preprocessing
from models.graph.network import GraphNetwork
from models.structure import Reducer
from tests.models.graph.test_tokens import without_tokens
from tests.support.plans import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEADS, PATCHES = 48, 3, 64
IMAGE = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.qkv(x).reshape(x.shape[0], -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.proj(self.mixed(*self.parts(x)).transpose(1, 2).flatten(2))
        return found


class Block(nn.Module):
    def __init__(self, attention: type[Attention]) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), attention()
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        found: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return found


class Transformer(nn.Module):
    def __init__(
        self, attention: type[Attention] = Attention, read: Callable[[Tensor], Tensor] | None = None, prefix: int = 1
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.zeros(1, prefix, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, PATCHES + prefix, WIDTH))
        self.blocks = nn.ModuleList([Block(Attention), *(Block(attention) for _ in range(3))])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)
        self.read = read or (lambda x: x[:, 0])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(images), -1, -1), x], dim=1) + self.places
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(self.read(self.norm(x)))
        return found


def cut(model: Transformer, reducer: Reducer = "fuse") -> tuple[GraphNetwork, Tensor]:
    network = GraphNetwork(model.eval(), "unusual", IMAGE, 10)
    images = torch.randn(HEADS, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network.outputs(images), Transformer.forward(model, images), atol=1e-5)
    plan = without_tokens(plan_of(network.structure, 0.7), network.structure, reducer)
    return network, network.pruned(plan, None).outputs(images)


class FromTheEnd(Attention):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.qkv(x)
        three = y[..., :WIDTH], y[..., WIDTH : 2 * WIDTH], y[..., -WIDTH:]
        return tuple(one.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for one in three)


class Narrowed(Attention):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.qkv(x)
        three = (y.narrow(-1, i * WIDTH, WIDTH) for i in range(3))
        return tuple(one.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for one in three)


class AllRows(Attention):
    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        flat = self.qkv(x.flatten(0, 1)).unflatten(0, (images, tokens))
        q, k, v = flat.reshape(images, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        found: Tensor = self.proj(self.mixed(q, k, v).transpose(1, 2).flatten(2))
        return found


MEAN = lambda x: x[:, 1:].mean(1)  # noqa: E731
ALIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "slice from the end": ({"read": lambda x: x[:, -PATCHES:].mean(1)}, {"read": MEAN}),
    "slice up to the end": ({"read": lambda x: x[:, :-PATCHES].mean(1)}, {}),
    "narrow": ({"read": lambda x: x.narrow(-2, 1, PATCHES).mean(1)}, {"read": MEAN}),
    "narrow from the end": ({"read": lambda x: x.narrow(1, -PATCHES, PATCHES).mean(1)}, {"read": MEAN}),
    "split": ({"read": lambda x: x.split([1, PATCHES], dim=1)[1].mean(1)}, {"read": MEAN}),
    "split, dim from the end": ({"read": lambda x: x.split([1, PATCHES], dim=-2)[0].squeeze(1)}, {}),
    "split, patches unread": (
        {"read": lambda x: x.split([2, PATCHES], dim=1)[0].mean(1), "prefix": 2},
        {"read": lambda x: x[:, :2].mean(1), "prefix": 2},
    ),
    "unflatten": ({"read": lambda x: x.unflatten(1, (PATCHES + 1, 1)).squeeze(2)[:, 0]}, {}),
    "q, k, v from the end": ({"attention": FromTheEnd}, {}),
    "q, k, v narrowed": ({"attention": Narrowed}, {}),
    "rows of all images": ({"attention": AllRows}, {}),
}  # fmt: skip


@pytest.mark.parametrize("reducer", ["drop", "fuse"])
@pytest.mark.parametrize("name", list(ALIKE))
def test_what_says_the_same_is_cut_alike(name: str, reducer: Reducer) -> None:
    unusual, usual = (Transformer(**options) for options in ALIKE[name])
    (_, found), (_, wanted) = cut(unusual, reducer), cut(usual, reducer)
    assert torch.allclose(found, wanted, atol=1e-5)


class HeadsFirst(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, HEADS, WIDTH // HEADS).permute(2, 3, 0, 1, 4).unbind(0)
        found: Tensor = self.proj(self.mixed(q, k, v).permute(1, 2, 0, 3).flatten(2))
        return found


class Causal(Attention):
    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Stacked(Attention):
    """An attention that multiplies a stack of q and k by a table. The first dim of the stack counts q and k."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(PATCHES + 1, WIDTH // HEADS))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (torch.stack([q, k]) * self.table).unbind(0)
        return functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"read": lambda x: (torch.softmax(x @ x[:, :1].transpose(1, 2), 1) * x).sum(1)}, "a sum or a norm"),
        ({"read": lambda x: x.sum(1) / (PATCHES + 1)}, "a sum or a norm"),
        ({"attention": Causal}, "have an order"),
        ({"attention": Stacked}, "first dim does not count images"),
    ],
    ids=["weighted sum", "sum over a number", "causal", "table of q and k"],
)
def test_what_would_change_with_their_number_keeps_all_tokens(options: dict[str, Any], said: str) -> None:
    network = GraphNetwork(Transformer(**options).eval(), "unusual", IMAGE, 10)
    free = [stage.free_tokens for stage in network.structure.stages for _ in stage.blocks]
    assert said in network._flow.reason and not any(free[:-1])


def test_blocks_whose_attention_lies_otherwise_do_not_choose() -> None:
    network = GraphNetwork(Transformer(HeadsFirst).eval(), "unusual", IMAGE, 10)
    assert list(network._flow.streams) == [0]
