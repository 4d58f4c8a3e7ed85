"""Clip art by subject, and photographs. Each picture belongs to one split only."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.real.backbone import MEAN, SIDE, STD

MOST_BYTES = 200_000
"""Larger files are left out: a few of them have hundreds of millions of pixels."""


@dataclass(frozen=True)
class Split:
    """images: (n, 3, 224, 224), normalised. subjects: (n,), the folder of each picture."""

    images: Tensor
    subjects: Tensor


def clip_art(folder: Path, counts: Sequence[int], seed: int = 0) -> list[Split]:
    """Return disjoint splits of the pictures below `folder`, drawn by chance. Their subject is their first folder."""
    files = sorted(file for file in folder.rglob("*.png") if file.stat().st_size <= MOST_BYTES)
    random.Random(seed).shuffle(files)
    names = sorted({file.relative_to(folder).parts[0] for file in files})
    splits, start = [], 0
    for count in counts:
        taken = files[start : start + count]
        start += count
        images = torch.stack([picture(file) for file in taken])
        splits.append(Split(images, torch.tensor([names.index(file.relative_to(folder).parts[0]) for file in taken])))
    return splits


def photographs(folder: Path) -> Tensor:
    """Return five squares of each photograph below `folder`, (n, 3, 224, 224): its corners and its middle."""
    files = sorted(file for file in folder.rglob("*.jpg") if not file.is_symlink())
    found = []
    for file in files:
        with Image.open(file) as opened:
            whole = opened.convert("RGB")
        side = min(whole.size) * 2 // 3
        right, low = (length - side for length in whole.size)
        for left, top in ((0, 0), (right, 0), (0, low), (right, low), (right // 2, low // 2)):
            square = whole.crop((left, top, left + side, top + side))
            found.append(normalised(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return torch.stack(found)


def picture(file: Path) -> Tensor:
    """Return a picture on white as (3, 224, 224), normalised. It is scaled and cut to a square."""
    with Image.open(file) as opened:
        drawn = opened.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    flat = Image.alpha_composite(white, drawn).convert("RGB")
    scale = SIDE / min(flat.size)
    flat = flat.resize([max(SIDE, round(side * scale)) for side in flat.size], Image.Resampling.BICUBIC)
    left, top = ((side - SIDE) // 2 for side in flat.size)
    return normalised(flat.crop((left, top, left + SIDE, top + SIDE)))


def normalised(square: Image.Image) -> Tensor:
    values = np.asarray(square, dtype=np.float32) / 255
    return ((torch.from_numpy(values) - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1).contiguous()
