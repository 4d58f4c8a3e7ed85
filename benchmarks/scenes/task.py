"""The tasks: for each its scenes, its model, and the numbers of scenes in its splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import timm
import torch
from torch import Tensor, nn

from benchmarks.scenes import digits, letters
from benchmarks.train_digits import OPTIONS, PREPROCESSING
from models.data.preprocessing import Preprocessing

COUNTS = {"train": 10_000, "selection": 2_000, "test": 5_000}
SEEDS = (990_003, 990_002, 990_001)
"""Seeds of the train, selection and test scenes that are written to the file. Training runs use other seeds."""


class Characters(Protocol):
    """What the scenes of one split show."""

    def to(self, device: torch.device) -> Self: ...


@dataclass(frozen=True)
class Task:
    """characters: split -> what its scenes show. draw: (characters, count, difficulty, seed) -> scenes and labels."""

    options: dict[str, Any]
    preprocessing: Preprocessing
    classes: Sequence[str]
    characters: Callable[[str], Any]
    draw: Callable[[Any, int, Tensor | float, int], tuple[Tensor, Tensor]]
    sources: str
    """What the scenes are made of, in words."""
    name: str = "vit_tiny_patch16_224"

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return timm.create_model(self.name, pretrained=False, **self.options)

    def split(self, name: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the scenes of a split as they are written to the file, uint8 (n, H, W, C), and their labels."""
        return self.draw(self.characters(name), count or COUNTS[name], 1.0, SEEDS[list(COUNTS).index(name)])


TASKS: dict[str, Task] = {
    "clutter": Task(
        OPTIONS,
        PREPROCESSING,
        [str(digit) for digit in range(10)],
        digits.sources,
        digits.scenes,
        "1,000 of scikit-learn's digits for training, 297 for selection, 500 for test",
    ),
    "letters": Task(
        {
            "img_size": letters.SIDE,
            "patch_size": 8,
            "embed_dim": 160,
            "depth": 12,
            "num_heads": 5,
            "num_classes": len(letters.CHARACTERS),
            "init_values": 0.1,
        },
        Preprocessing((3, letters.SIDE, letters.SIDE), (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic"),
        list(letters.CHARACTERS),
        lambda _split: letters.glyphs(),
        letters.scenes,
        f"{len(letters.CHARACTERS)} characters in {len(letters.FONTS)} fonts of matplotlib, the same in all splits",
    ),
}
