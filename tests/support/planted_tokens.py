"""A task whose answer stands in a few tokens: all others are noise of the same strength, at places that change per image."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from models.data.dataset import Batch
from models.networks.torch_network import TorchNetwork
from models.structure import TokenPlan, TokenScore, identity
from models.training.finetune import Recipe, finetune
from tests.support.networks import small_network

PLANTED, CLASSES, SIDE, PATCH = 2, 4, 24, 6
PATCHES = (SIDE // PATCH) ** 2


def planted_images(count: int, seed: int) -> tuple[Batch, Tensor]:
    """Images of noise in which PLANTED of the 16 patches show the pattern of the class; and which, bool (n, 16)."""
    patterns = torch.randn(CLASSES, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    where = torch.rand(count, PATCHES, generator=draw).argsort(dim=1)[:, :PLANTED]
    planted = torch.zeros(count, PATCHES, dtype=torch.bool).scatter(1, where, True)
    patches = torch.randn(count, PATCHES, 3, PATCH, PATCH, generator=draw)
    shown = patterns[labels][:, None] + 0.3 * patches
    patches = torch.where(planted[:, :, None, None, None], shown, patches)
    grid = patches.reshape(count, SIDE // PATCH, SIDE // PATCH, 3, PATCH, PATCH)
    images = grid.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, SIDE, SIDE)
    return Batch(images, labels, torch.arange(count)), planted


def planted_network(data: Batch, folder: Path) -> TorchNetwork:
    """A small ViT that has learnt the task."""
    fresh = small_network(
        img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, num_classes=CLASSES, init_values=None
    )
    recipe = Recipe(epochs=8, learning_rate=4e-3, batch=32, distill=0.0, seed=0)
    return finetune(fresh, fresh, data, recipe, folder / "teacher.pt", lambda *_: None)


def choosing(network: TorchNetwork, score: TokenScore, kept: tuple[int, ...], first: int = 0) -> TorchNetwork:
    """Drops tokens before block `first` and following; at 0 nothing has been mixed into other tokens yet."""
    whole = identity(network.structure)
    blocks = list(whole.blocks)
    for place, count in enumerate(kept, start=first):
        blocks[place] = dataclasses.replace(blocks[place], tokens=TokenPlan(count, "drop", "start", score))
    return network.pruned(dataclasses.replace(whole, blocks=tuple(blocks)), None)


def chosen_tokens(network: TorchNetwork, images: Tensor, stage: int = 0) -> Tensor:
    """Which patch tokens the first reduction keeps, bool (n, 16)."""
    reduction = network.reductions()[stage]
    with reduction.recorded() as chosen:
        network.outputs(images, batch=len(images))
    (index,) = chosen
    return torch.zeros(len(images), PATCHES, dtype=torch.bool).scatter(1, index, True)
