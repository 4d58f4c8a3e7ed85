"""Builds timm models from their name and options. The options and the size of the model are limited."""

from typing import Any

import timm
import torch
from torch import nn

from models.errors import InvalidRequest, UnknownName
from models.loading.size_limits import check_parameters, check_sizes

OPTIONS = frozenset(
    [
        "img_size",
        "patch_size",
        "in_chans",
        "num_classes",
        "global_pool",
        "embed_dim",
        "depth",
        "num_heads",
        "mlp_ratio",
        "qkv_bias",
        "qk_norm",
        "proj_bias",
        "init_values",
        "class_token",
        "no_embed_class",
        "dynamic_img_size",
        "reg_tokens",
        "pre_norm",
        "final_norm",
        "fc_norm",
        "pool_include_prefix",
        "depths",
        "embed_dims",
        "base_dims",
        "heads",
        "mlp_ratios",
        "sr_ratios",
        "linear",
        "stride",
        "window_size",
    ]
)
"""Constructor arguments of timm that a user may set. They describe shapes; none of them can run code."""


def build(name: str, options: dict[str, Any], pretrained: bool, seed: int = 0) -> nn.Module:
    """Return a timm model. Random weights come from `seed`, so that a job can be repeated.

    Raises: UnknownName with the closest names of timm; InvalidRequest for a wrong option or if the hub cannot be
    reached; TooLarge.
    """
    check_options(name, options)
    torch.manual_seed(seed)
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (
        Exception
    ) as error:  # timm checks few options; a wrong shape fails where it is first used, with any exception
        if not pretrained or isinstance(error, TypeError | AssertionError):
            raise InvalidRequest(
                f"timm could not build the model {name!r} with the options {options} ({error}). Correct the options."
            ) from error
        raise InvalidRequest(
            f"timm could not download the pre-trained weights of {name!r} ({type(error).__name__}: {str(error)[:200]})."
            " Upload a checkpoint, or set pretrained to false to use random weights."
        ) from error


def check_options(name: str, options: dict[str, Any]) -> None:
    """Check a name and its options. Raises: UnknownName, InvalidRequest, TooLarge."""
    if name not in timm.list_models() and not timm.is_model(name):
        raise UnknownName("model", name, timm.list_models())
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise InvalidRequest(
            f"The model option {unknown[0]!r} is not allowed. Use only these options: {', '.join(sorted(OPTIONS))}."
        )
    check_size(name, options)


def shapes_of(name: str, options: dict[str, Any]) -> nn.Module:
    """Return a timm model that has shapes and no values.

    If timm cannot build a model with these options alone, it is the model with timm's own options.

    Raises: UnknownName, InvalidRequest, TooLarge.
    """
    check_options(name, options)
    for chosen in (options, {}):
        try:
            with torch.device("meta"):
                return timm.create_model(name, pretrained=False, **chosen)
        except Exception:  # timm checks few options; `build` reports this error  # nosec B112
            continue
    return build(name, options, pretrained=False)


def check_size(name: str, options: dict[str, Any]) -> None:
    """Check the options before memory is allocated. Raises: InvalidRequest for numbers out of range; TooLarge."""
    check_sizes(options, "the options of the model")
    try:
        with torch.device("meta"):
            params = sum(value.numel() for value in timm.create_model(name, pretrained=False, **options).parameters())
    except Exception:  # `build` reports this error when it builds the model
        return
    check_parameters(params, repr(name))
