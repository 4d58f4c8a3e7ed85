"""Build the timm model of a checkpoint: options that are not given are read from the shapes of the weights."""

import math
from collections.abc import Mapping
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Size, nn

from models.errors import InvalidRequest
from models.loading.checkpoint import fill
from models.loading.timm_builder import build, shapes_of
from models.loading.weight_sets import chosen_weights

Shapes = Mapping[str, Size]


def build_for(
    content: Mapping[Any, Any], name: str, options: dict[str, Any], wanted: str | None = None
) -> tuple[nn.Module, list[str]]:
    """Return a timm model with the weights of a checkpoint, and sentences that say what was assumed.

    content: as `read_checkpoint` returns it. wanted: which of several sets of weights, as in `chosen_weights`.

    Raises: UnknownName, InvalidRequest, TooLarge, CheckpointMismatch, DamagedFile.
    """
    shapes = shapes_of(name, options)
    own = {key: value.shape for key, value in shapes.state_dict().items()}
    weights = chosen_weights(content, own, wanted)
    found = {key: value.shape for key, value in weights.tensors.items() if hasattr(value, "shape")}
    guessed, wrong = _guessed_options(shapes, found, options)
    module = build(name, {**options, **guessed}, pretrained=False)
    return module, [*weights.said, *_guess_said(guessed), *fill(module, weights.tensors, wrong)]


def _guessed_options(module: nn.Module, weights: Shapes, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that a checkpoint needs beside the given ones, and sentences about contradictions.

    module: the model with the given options. A contradiction is a given option that the checkpoint does not have.

    Raises: InvalidRequest if the number of heads is needed and no shape tells it.
    """
    own = {name: value.shape for name, value in module.state_dict().items()}
    if 2 * len(own.keys() & weights.keys()) < min(len(own), len(weights)):
        return {}, []  # another architecture
    mine, theirs = _sizes(module, own), _sizes(module, weights)
    other = {name: value for name, value in theirs.items() if mine.get(name) != value}
    wrong = [
        f"The option {name} is {given[name]}, but the checkpoint has {name} {value}. Leave out the option, or give"
        f" {name} {value}."
        for name, value in other.items()
        if name in given and mine.get(name) is not None
    ]
    guessed = {name: value for name, value in other.items() if name not in given}
    if "embed_dim" in guessed and "num_heads" not in theirs and "num_heads" not in given:
        width = guessed["embed_dim"]
        allowed = [heads for heads in range(1, 65) if width % heads == 0]
        raise InvalidRequest(
            f"The checkpoint has embed_dim {width} and the model has {mine.get('embed_dim')}. So its number of heads"
            " may differ too, and no shape tells this number. Give the option num_heads with which the checkpoint was"
            f" trained, one of: {', '.join(map(str, allowed))}. The model's own number is {_heads(module)}.",
            field="options",
            allowed=allowed,
        )
    return guessed, wrong


def _guess_said(guessed: Mapping[str, Any]) -> list[str]:
    """Return a sentence about the options that were guessed."""
    if not guessed:
        return []
    listed = ", ".join(f"{name} {value}" for name, value in guessed.items())
    return [f"Options that were not given are read from the shapes of the checkpoint's weights: {listed}."]


def _sizes(module: nn.Module, shapes: Shapes) -> dict[str, Any]:
    """Return the options that shapes tell: those of a plain vision transformer, or only classes and channels."""
    described = getattr(module, "pretrained_cfg", None) or {}
    found: dict[str, Any] = {}
    classifier, first = _first(described.get("classifier")), _first(described.get("first_conv"))
    if classifier:
        head = shapes.get(f"{classifier}.weight")
        found["num_classes"] = 0 if head is None else head[0]
    if first and (weight := shapes.get(f"{first}.weight")) is not None and len(weight) == 4:
        found["in_chans"] = weight[1]
    if isinstance(module, VisionTransformer):
        found |= _plain_sizes(module, shapes)
    return found


def _heads(module: nn.Module) -> int | None:
    numbers = (getattr(part, "num_heads", None) for part in module.modules())
    return next((number for number in numbers if isinstance(number, int)), None)


def _first(names: Any) -> str | None:
    name = names[0] if isinstance(names, list | tuple) and names else names
    return name if isinstance(name, str) else None


def _plain_sizes(module: VisionTransformer, shapes: Shapes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    patch = shapes.get("patch_embed.proj.weight")
    if patch is None or len(patch) != 4:
        return found
    width = found["embed_dim"] = patch[0]
    if patch[2] == patch[3]:
        found["patch_size"] = patch[2]
    if numbers := {int(part) for name in shapes if (part := _block(name)).isdecimal()}:
        found["depth"] = max(numbers) + 1
    if norm := shapes.get("blocks.0.attn.q_norm.weight"):
        found["num_heads"] = width // norm[0]
    into, out = shapes.get("blocks.0.mlp.fc1.weight"), shapes.get("blocks.0.mlp.fc2.weight")
    if into and out and into[0] == out[-1] and int(width * (into[0] / width)) == into[0]:
        found["mlp_ratio"] = into[0] / width
    return found | _token_sizes(module, shapes, found.get("patch_size")) | _pooling(module, shapes)


def _block(name: str) -> str:
    return name.split(".")[1] if name.startswith("blocks.") else ""


def _token_sizes(module: VisionTransformer, shapes: Shapes, patch: int | None) -> dict[str, Any]:
    """Return the class token, the registers, and the image size that the number of positions tells."""
    found: dict[str, Any] = {"class_token": "cls_token" in shapes}
    registers = shapes.get("reg_token")
    found["reg_tokens"] = registers[1] if registers else 0
    positions = shapes.get("pos_embed")
    if positions is None or len(positions) != 3 or patch is None:
        return found
    extra = found["class_token"] + found["reg_tokens"] + ("dist_token" in shapes)
    for is_bare in (module.no_embed_class, not module.no_embed_class):
        patches = positions[1] - (0 if is_bare else extra)
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            if extra and "dist_token" not in shapes:
                found["no_embed_class"] = is_bare
            return {**found, "img_size": math.isqrt(patches) * patch}
    return found


def _pooling(module: VisionTransformer, shapes: Shapes) -> dict[str, Any]:
    """Return the pooling: its norm stands behind it for means, and before it for a class token."""
    if "attn_pool.latent" in shapes:
        return {"global_pool": "map"}
    if "fc_norm.weight" in shapes:
        means = ("avg", "avgmax", "max")
        return {"global_pool": module.global_pool if module.global_pool in means else "avg"}
    if "norm.weight" not in shapes:
        return {}
    if "cls_token" not in shapes:
        return {"global_pool": "avg", "fc_norm": False}
    is_token = "fc_norm.weight" not in module.state_dict() and module.global_pool not in ("map", "prr")
    return {"global_pool": module.global_pool if is_token else "token"}
