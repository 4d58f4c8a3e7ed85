"""A task in which a few tokens show the answer.

All other tokens are noise of the same strength. The positions change from image to image.
"""

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
    """Return images of noise in which PLANTED of the 16 patches show the pattern of the class.

    Return also which patches show it, bool (n, 16).
    """
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
    """Return a small ViT that has learnt the task."""
    fresh = small_network(
        img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, num_classes=CLASSES, init_values=None
    )
    recipe = Recipe(epochs=8, learning_rate=4e-3, batch=32, distill=0.0, seed=0)
    trained = finetune(fresh, fresh, data, recipe, checkpoint=folder / "teacher.pt", after_epoch=lambda *_: None)
    assert isinstance(trained, TorchNetwork)
    return trained


def choosing(network: TorchNetwork, score: TokenScore, kept: tuple[int, ...], first: int = 0) -> TorchNetwork:
    """Return a network that drops tokens before block `first` and the blocks after it.

    Before block 0, no token contains anything from other tokens.
    """
    whole = identity(network.structure)
    blocks = list(whole.blocks)
    for place, count in enumerate(kept, start=first):
        blocks[place] = dataclasses.replace(blocks[place], tokens=TokenPlan(count, "drop", "start", score))
    return network.pruned(dataclasses.replace(whole, blocks=tuple(blocks)), None)


def chosen_tokens(network: TorchNetwork, images: Tensor, stage: int = 0) -> Tensor:
    """Return which patch tokens the reduction of this stage keeps, bool (n, 16)."""
    reduction = network.reductions()[stage]
    with reduction.recorded() as chosen:
        network.outputs(images, batch=len(images))
    (index,) = chosen
    return torch.zeros(len(images), PATCHES, dtype=torch.bool).scatter(1, index, True)
