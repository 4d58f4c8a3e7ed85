"""Which patches of an image a pruned network keeps, block by block: for people to look at.

n images, M patches of the whole grid, K of them kept. Tokens that are merged (reducer "merge") have no one place, and are
not told.
"""

import io
import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from models.data.preprocessing import Preprocessing
from models.networks.network import Network
from models.pruning.token_reduction import all_recorded

SIDE = 64
"""Longest side of a thumbnail, in pixels."""


@dataclass(frozen=True)
class KeptPatches:
    """places: int64 (n, K), ascending, row by row of the grid, of what is left after `block`."""

    block: int
    places: Tensor


def kept_patches(network: Network, images: Tensor) -> list[KeptPatches]:
    """Of each block that removes tokens, in their order, as the network runs images (n, C, H, W). Empty: it removes none."""
    planned = [
        place for place, block in enumerate(network.plan.blocks if network.plan else ()) if block.tokens is not None
    ]
    reductions = zip(planned, network.reductions(), strict=True)
    blocks = [(place, reduction) for place, reduction in reductions if reduction.reducer != "merge"]
    with all_recorded([reduction for _, reduction in blocks]) as choices:
        network.outputs(images, batch=len(images))
    chosen = [(place, made[0]) for (place, _), made in zip(blocks, choices, strict=True) if made]
    found, places = [], None
    for place, index in chosen:  # each chooses among what the one before has left, in the order in which that was left
        places = index if places is None else places.gather(1, index)
        found.append(KeptPatches(place, places.sort(dim=1).values))
    return found


def grid_of(patches: int, image: tuple[int, int, int]) -> tuple[int, int]:
    """(rows, columns) of patches that are laid over an image (C, H, W): the pair whose shape is nearest to the image's."""
    _, height, width = image
    pairs = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] * width / height)))


def thumbnail(image: Tensor, preprocessing: Preprocessing) -> bytes:
    """A PNG, at most SIDE pixels long, of a network's input (C, H, W): what was normalised becomes a picture again."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
