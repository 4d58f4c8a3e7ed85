"""Finds the patches of an image that a pruned network keeps, block by block, so that they can be shown to a person.

n images, M patches of the full grid, K of them kept. Blocks with the reducer "merge" are left out, because a merged
token has no single position.
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
    """The patches that remain after one block.

    places: int64 (n, K), positions of these patches in the grid, counted row by row, in ascending order.
    """

    block: int
    places: Tensor


def kept_patches(network: Network, images: Tensor) -> list[KeptPatches]:
    """Run images (n, C, H, W), and return the kept patches for each block that removes tokens, in their order.

    The list is empty if the network removes no tokens.
    """
    planned = [
        place for place, block in enumerate(network.plan.blocks if network.plan else ()) if block.tokens is not None
    ]
    reductions = zip(planned, network.reductions(), strict=True)
    blocks = [(place, reduction) for place, reduction in reductions if reduction.reducer != "merge"]
    with all_recorded([reduction for _, reduction in blocks]) as choices:
        network.outputs(images, batch=len(images))
    chosen = [(place, made[0]) for (place, _), made in zip(blocks, choices, strict=True) if made]
    found, places = [], None
    for place, index in chosen:  # an index counts the tokens that the reduction before has left, in their order there
        places = index if places is None else places.gather(1, index)
        found.append(KeptPatches(place, places.sort(dim=1).values))
    return found


def grid_of(patches: int, image: tuple[int, int, int]) -> tuple[int, int]:
    """Return (rows, columns) of the patch grid of an image (C, H, W).

    Among all pairs whose product is `patches`, it is the one whose aspect ratio is closest to that of the image.
    """
    _, height, width = image
    pairs = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] * width / height)))


def thumbnail(image: Tensor, preprocessing: Preprocessing) -> bytes:
    """Turn a network's input (C, H, W) back into a picture, by undoing the normalisation.

    An input with other channels than grey or RGB is shown as the mean of its channels.

    Returns: a PNG whose longest side is at most SIDE pixels.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    values = image * std + mean
    if len(values) not in (1, 3):
        values = values.mean(dim=0, keepdim=True)
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
