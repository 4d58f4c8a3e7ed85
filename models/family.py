"""A `Family` says where one architecture keeps its parts. The engine reads it; there is no other code per architecture."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Family:
    """Names are attribute paths: of the model, or (those of a block) of a block."""

    name: str
    title: str
    matches: Callable[[nn.Module], bool]
    refusals: Callable[[nn.Module], list[str]]
    """Why this model of the family cannot be handled; empty when it can."""

    # the model
    blocks: str
    patch: str
    """The convolution that makes patch tokens."""
    tables: tuple[str, ...]
    """Learned parameters whose last dim is the embedding width."""
    stem_norms: tuple[str, ...]
    last_norm: str
    """The norm over all tokens before pooling (may be an identity)."""
    tail_norms: tuple[str, ...]
    """Norms after pooling."""
    classifiers: tuple[str, ...]
    width_attributes: tuple[str, ...]
    """Plain integers of the model that state its width."""

    # a block
    norm1: str
    qkv: str
    """One linear layer whose outputs are q, k, v, each heads x dim."""
    q_norm: str
    k_norm: str
    heads: str
    scale: str
    projection: str
    layer_scale1: str
    norm2: str
    fc1: str
    activation: str
    fc2: str
    layer_scale2: str
    drop_paths: tuple[str, str]

    # questions that the engine asks a model
    grid: Callable[[nn.Module], tuple[int, int]]
    image: Callable[[nn.Module], tuple[int, int]]
    """Height and width of the input; not always a multiple of the patch."""
    prefix: Callable[[nn.Module], int]
    pooling: Callable[[nn.Module], str]
    """"token", "avg" (tokens after the prefix) or "all" (prefix too)."""


def part(module: nn.Module, path: str) -> nn.Module:
    """The submodule at an attribute path."""
    return module.get_submodule(path)


def replace_part(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def is_present(module: object) -> bool:
    """timm leaves an Identity where a part is switched off."""
    return module is not None and not isinstance(module, nn.Identity)
