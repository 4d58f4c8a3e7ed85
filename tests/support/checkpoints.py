"""A small vision transformer, and model folders with its checkpoint as an upload stores them."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.loading.checkpoint import fill
from models.loading.checkpoint_file import read_checkpoint
from models.loading.load_model import open_model
from models.loading.weight_sets import chosen_weights
from models.networks.network import Network

NAME = "vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 4,
}


def vit(seed: int, name: str = NAME, **options: Any) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, **{**OPTIONS, **options}).eval()


def load_checkpoint(module: nn.Module, path: Path) -> list[str]:
    """Load the weights of a file into a module, in place, and return what was assumed."""
    own = {name: value.shape for name, value in module.state_dict().items()}
    weights = chosen_weights(read_checkpoint(path), own, None)
    return weights.said + fill(module, weights.tensors)


def prefixed(prefix: str, model: Any) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in model.state_dict().items()}


def opened(folder: Path, content: Any, options: dict[str, Any] | None = None, **more: Any) -> Network:
    """Store a checkpoint as an upload does, and open the model. content: bytes of a file, or an object to save."""
    description = {"name": NAME, "options": OPTIONS if options is None else options, **more}
    (folder / "model.json").write_text(json.dumps(description))
    if isinstance(content, bytes):
        (folder / "weights.pth").write_bytes(content)
    else:
        torch.save(content, folder / "weights.pth")
    return open_model(folder)


def agrees(network: Network, model: Any) -> bool:
    """Return whether a network gives the outputs of a model."""
    images = torch.randn(2, *network.structure.image, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.allclose(network.outputs(images), model.eval()(images), atol=1e-5)
