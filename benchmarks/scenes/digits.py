"""Scenes of 64 x 64 pixels: one real handwritten digit at a random place among texture and distracting strokes.

Clean digits are too easy to show differences between methods. This file and scikit-learn's digits are enough to make
the same scenes again.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from benchmarks.scenes.drawing import placed, texture, uniform

SIDE = 64
SOURCES = {"train": 1000, "selection": 297, "test": 500}
"""Number of digits in each split. A scene of one split never shows a digit of another split."""
OCTAVES = (4, 8, 16, 32)
STROKES = 6
CHUNK = 32
"""Number of scenes that are drawn at once. Scenes that fit into the cache are drawn several times faster."""
EASY_SIZE, HARD_SIZE = (36.0, 60.0), (18.0, 34.0)
"""Smallest and largest side of the digit in pixels, at difficulty 0 and at difficulty 1."""


@dataclass(frozen=True)
class Sources:
    """Digits of one split: images (n, 1, 8, 8) in [0, 1], and labels (n,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Sources":
        return Sources(self.images.to(device), self.labels.to(device))


def sources(split: str, seed: int = 0) -> Sources:
    """Return the digits of `train`, `selection` or `test`. The split is seeded and stratified.

    Raises: KeyError for another name.
    """
    digits = load_digits()
    rest, rows = np.arange(len(digits.target)), {}
    for name in ("test", "selection"):
        rest, rows[name] = train_test_split(
            rest, test_size=SOURCES[name], random_state=seed, stratify=digits.target[rest]
        )
    rows["train"] = rest
    images = torch.from_numpy(digits.images[rows[split]] / 16).float().unsqueeze(1)
    return Sources(images, torch.from_numpy(digits.target[rows[split]].astype(np.int64)))


def scenes(digits: Sources, count: int, difficulty: Tensor | float, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` scenes, uint8 (count, 64, 64, 1), and their labels.

    difficulty: one number in [0, 1], or one for each scene, (count,).
    """
    device = digits.images.device
    draw = torch.Generator(device).manual_seed(seed)
    hard = torch.as_tensor(difficulty, dtype=torch.float32, device=device).expand(count)
    rows = torch.randint(len(digits.labels), (count,), generator=draw, device=device)
    shown = _sized(digits.images[rows], hard, draw)
    contrast = 1 - hard * 0.4 * uniform((count,), draw)
    background = (
        texture(count, SIDE, OCTAVES, draw) * (hard * (0.2 + 0.3 * uniform((count,), draw)))[:, None, None, None]
    )
    strokes = _strokes(count, hard, draw)
    scene = torch.maximum(background, strokes)
    scene = scene + (contrast[:, None, None, None] - scene).clamp(min=0) * shown
    scene = scene + 0.04 * hard[:, None, None, None] * torch.randn(scene.shape, generator=draw, device=device)
    pixels = (scene.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1), digits.labels[rows]


def _sized(images: Tensor, hard: Tensor, draw: torch.Generator) -> Tensor:
    """Place each digit (n, 1, 8, 8) in its scene, (n, 1, 64, 64). Digits of harder scenes are smaller."""
    low, high = ((1 - hard) * easy + hard * tough for easy, tough in zip(EASY_SIZE, HARD_SIZE, strict=True))
    return placed(images, SIDE, low + (high - low) * uniform((len(images),), draw), draw)


def _strokes(count: int, hard: Tensor, draw: torch.Generator) -> Tensor:
    """Return up to STROKES straight pen strokes, (n, 1, 64, 64). Harder scenes have more strokes."""
    shape = (count, STROKES, 1, 1)
    start_x, start_y = SIDE * uniform(shape, draw), SIDE * uniform(shape, draw)
    length, angle = 5 + 15 * uniform(shape, draw), 6.2832 * uniform(shape, draw)
    width, ink = 0.7 + 1.3 * uniform(shape, draw), 0.3 + 0.5 * uniform(shape, draw)
    ink = ink * (uniform(shape, draw) < hard[:, None, None, None])
    strokes = zip(*(p.split(CHUNK) for p in (start_x, start_y, length, angle, width, ink)), strict=True)
    return torch.cat([_drawn(*stroke).amax(1, keepdim=True) for stroke in strokes])


def _drawn(  # noqa: PLR0917  called with a tuple of its arguments
    start_x: Tensor, start_y: Tensor, length: Tensor, angle: Tensor, width: Tensor, ink: Tensor
) -> Tensor:
    """Return the ink of each stroke at each pixel, (n, s, 64, 64). All arguments are (n, s, 1, 1).

    The ink depends on the distance between the pixel and the axis of the stroke.
    """
    axis = torch.arange(SIDE, device=angle.device) + 0.5
    x, y = axis - start_x, axis[:, None] - start_y
    along = x * angle.cos() + y * angle.sin()
    aside = y * angle.cos() - x * angle.sin()
    beyond = along - along.clamp(min=0).minimum(length)
    distance = aside.mul_(aside).add_(beyond.mul_(beyond)).sqrt_()
    return distance.neg_().add_(1.2 + width).clamp_(0, 1).mul_(ink)
