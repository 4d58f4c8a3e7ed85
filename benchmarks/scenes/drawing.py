"""What scenes are drawn from: characters at random places, smooth textures, and seeded random numbers."""

import torch
from torch import Tensor
from torch.nn import functional


def uniform(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Return random numbers in [0, 1)."""
    return torch.rand(shape, generator=draw, device=draw.device)


def placed(images: Tensor, side: int, size: Tensor, draw: torch.Generator) -> Tensor:
    """Turn, shear and scale each character (n, 1, h, w), and put it at a random place of its scene, (n, 1, side, side).

    size: side of each character in pixels, (n,).
    """
    count = len(images)
    room = (1 - size / side)[:, None]
    centre = room * (2 * uniform((count, 2), draw) - 1)  # coordinates in the grid run from -1 to 1
    angle, shear = (0.5 * uniform((count,), draw) - 0.25 for _ in range(2))
    turn = torch.stack([angle.cos(), -angle.sin() + shear, angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    turn = turn * (side / size)[:, None, None]
    shift = -(turn @ centre[:, :, None])
    grid = functional.affine_grid(torch.cat([turn, shift], 2), [count, 1, side, side], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", align_corners=False)


def texture(count: int, side: int, octaves: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Return smooth noise of several octaves with random weights, approximately in [0, 1], (n, 1, side, side)."""
    total = torch.zeros(count, 1, side, side, device=draw.device)
    weights = uniform((len(octaves), count), draw)
    weights = weights / weights.sum(0)
    for weight, cells in zip(weights, octaves, strict=True):
        noise = uniform((count, 1, cells, cells), draw)
        total += weight[:, None, None, None] * functional.interpolate(noise, size=(side, side), mode="bilinear")
    return total
