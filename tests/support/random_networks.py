"""Random small vision transformers, built from the parts that people combine. Each seed gives another network."""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 32
IMAGE = (3, SIZE, SIZE)
Part = Callable[[Tensor], Tensor]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Part) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):
    """Attention in one of the ways in which people write it."""

    def __init__(self, draw: random.Random, width: int, tokens: int) -> None:
        super().__init__()
        self.heads = draw.choice([h for h in (1, 2, 3, 4, 6) if width % h == 0])
        self.dim = width // self.heads
        self.groups = draw.choice([g for g in (1, 2, 3) if self.heads % g == 0 and g < self.heads] or [self.heads])
        self.groups = self.groups if draw.random() < 0.2 else self.heads
        self.fused, self.fast = self.groups == self.heads and draw.random() < 0.5, draw.random() < 0.5
        bias = draw.random() < 0.8
        kept = self.groups * self.dim
        self.qkv = nn.Linear(width, 3 * width, bias) if self.fused else nn.Linear(width, width, bias)
        self.k, self.v = nn.Linear(width, kept, bias), nn.Linear(width, kept, bias)
        self.projection = nn.Linear(width, width, draw.random() < 0.9)
        self.norms = nn.ModuleList([nn.LayerNorm(self.dim), nn.LayerNorm(self.dim)]) if draw.random() < 0.2 else None
        table = torch.randn(self.heads, tokens, tokens)
        masks = [None, None, table, torch.full((tokens, tokens), -1e4).triu(1)]
        mask = draw.choice(masks)
        self.mask = None if mask is None else nn.Parameter(mask)
        self.rotary = draw.random() < 0.2 and self.dim % 2 == 0
        angles = torch.outer(torch.arange(tokens).float(), torch.rand(self.dim // 2))
        self.register_buffer("turn", torch.cat([angles, angles], 1))

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.qkv(x).view(count, tokens, self.heads, self.dim).transpose(1, 2)
            k, v = (m(x).view(count, tokens, self.groups, self.dim).transpose(1, 2) for m in (self.k, self.v))
            if self.groups < self.heads:
                k, v = (one.repeat_interleave(self.heads // self.groups, 1) for one in (k, v))
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        if self.rotary:
            q, k = self._turned(q), self._turned(k)
        if self.fast:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        else:
            scores = (q * self.dim**-0.5) @ k.transpose(-2, -1)
            scores = scores if self.mask is None else scores + self.mask
            mixed = scores.softmax(-1) @ v
        projected: Tensor = self.projection(mixed.transpose(1, 2).reshape(count, tokens, width))
        return projected

    def _turned(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        turn: Tensor = self.turn  # type: ignore[assignment]
        return x * turn.cos() + torch.cat([-other, one], -1) * turn.sin()


class Mlp(nn.Module):
    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        hidden = width * draw.choice([1, 2, 4])
        self.gate = nn.Linear(width, hidden) if draw.random() < 0.25 else None
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width, draw.random() < 0.9)
        ways: list[Part] = [
            functional.gelu,
            lambda x: functional.gelu(x, approximate="tanh"),
            functional.relu,
            functional.silu,
            functional.hardswish,
            lambda x: x * torch.sigmoid(1.702 * x),
            lambda x: functional.relu(x) ** 2,
            lambda x: functional.leaky_relu(x, 0.1),
            lambda x: functional.elu(x),
            lambda x: functional.softplus(x),
        ]
        self.way = draw.choice(ways)

    def forward(self, x: Tensor) -> Tensor:
        active = self.way(self.up(x))
        lowered: Tensor = self.down(active if self.gate is None else active * self.gate(x))
        return lowered


class Block(nn.Module):
    def __init__(self, draw: random.Random, width: int, tokens: int) -> None:
        super().__init__()
        norms: list[Callable[[], nn.Module]] = [
            lambda: nn.LayerNorm(width),
            lambda: nn.LayerNorm(width, eps=1e-3),
            lambda: nn.LayerNorm(width, elementwise_affine=False),
            lambda: RmsNorm(width),
        ]
        norm = draw.choice(norms)
        self.norm1, self.norm2 = norm(), norm()
        self.attention, self.mlp = Attention(draw, width, tokens), Mlp(draw, width)
        self.behind = draw.random() < 0.2
        self.scale = nn.Parameter(torch.rand(width)) if draw.random() < 0.3 else None

    def forward(self, x: Tensor) -> Tensor:
        for norm, part in ((self.norm1, self.attention), (self.norm2, self.mlp)):
            update = part(x if self.behind else norm(x))
            x = x + (update if self.scale is None else update * self.scale)
            x = norm(x) if self.behind else x
        return x


def _first(draw: random.Random) -> Part:
    mean, deviation = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1) + 0.5
    ways: list[Part] = [
        lambda x: x,
        lambda x: x,
        lambda x: (x - mean) / deviation,
        lambda x: x.clamp(-1.5, 2.0),
        lambda x: (x * 4).to(torch.int32).float() / 4,
        lambda x: torch.round(x * 8) / 8,
        lambda x: torch.floor(x * 4),
        lambda x: functional.pad(x, (2, 0, 0, 2))[:, :, 2:, :SIZE],
        lambda x: x.abs().sqrt(),
        lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
        lambda x: torch.stack((*x.split([1, 2], 1)[1].unbind(1), x[:, 0]), 1),
        lambda x: functional.max_pool2d(functional.pad(x, (2, 2, 2, 2)), 3, 1, dilation=2),
        lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=draw_bool),
        lambda x: functional.interpolate(x, scale_factor=0.5).repeat(1, 1, 2, 2),
        lambda x: x.unsqueeze(-3).squeeze(2).mean(1, keepdim=True).expand(-1, 3, -1, -1) + x,
        lambda x: torch.where(x > 0, x, 0.5 * x),
        lambda x: torch.minimum(torch.maximum(x, -mean), deviation),
        lambda x: x.flip(3),
        lambda x: x.roll(3, 2),
    ]
    draw_bool = draw.random() < 0.5
    return draw.choice(ways)


class RandomNetwork(nn.Module):
    """A network whose parts, sizes and weights the seed decides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        draw = random.Random(seed)
        width, patch = draw.choice([24, 36, 48]), draw.choice([8, 16])
        side = SIZE // patch
        self.first = _first(draw)
        convolution = nn.Conv2d(3, width, patch, patch, bias=draw.random() < 0.8)
        stem = [nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, width, patch // 2, patch // 2)]
        self.stem = nn.Sequential(convolution) if draw.random() < 0.7 else nn.Sequential(*stem)
        self.prefix = nn.Parameter(torch.randn(1, draw.choice([1, 1, 3]), width)) if draw.random() < 0.7 else None
        tokens = side * side + (0 if self.prefix is None else self.prefix.shape[1])
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.2) if draw.random() < 0.9 else None
        depth = draw.choice([1, 2, 3])
        blocks = [Block(draw, width, tokens) for _ in range(depth)]
        self.blocks = nn.Sequential(*(blocks if draw.random() < 0.85 else [blocks[0]] * depth))
        self.norm = nn.LayerNorm(width) if draw.random() < 0.9 else nn.Identity()
        pools: list[Part] = [
            lambda x: x[:, 0],
            lambda x: x.mean(1),
            lambda x: x.amax(1),
            lambda x: x[:, 1:].mean(dim=1),
            lambda x: torch.cat([x[:, 0], x[:, 1:].mean(1)], -1),
        ]
        place = draw.randrange(len(pools))
        self.pool = pools[place]
        self.head = nn.Linear(width * (2 if place == 4 else 1), draw.choice([1, 2, 7]), draw.random() < 0.9)
        ends: list[Part] = [lambda x: x] * 5 + [
            lambda x: x.softmax(-1),
            lambda x: x.sigmoid(),
            lambda x: functional.normalize(x, dim=-1) * 8,
            lambda x: x / 2 + x.tanh(),
            lambda x: x.log_softmax(-1),
        ]
        self.end, self.several = draw.choice(ends), draw.random() < 0.2
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:  # fresh biases and norms are all equal, so mistakes in them would not show
                nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.3)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(self.first(images)).flatten(2).transpose(1, 2)
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x if self.positions is None else x + self.positions))
        logits = self.end(self.head(self.pool(x)))
        return (logits, x) if self.several else logits


def random_network(seed: int) -> nn.Module:
    return RandomNetwork(seed).eval()
