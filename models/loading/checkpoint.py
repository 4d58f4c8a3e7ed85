"""Put the weights of a checkpoint into a module. They may be only tensors, and each of them must fit."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.errors import CheckpointMismatch, DamagedFile

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN_KEYS = 5
TRANSFORMERS = ("encoder.layer.", "embeddings.patch_embeddings.", "vision_model.encoder.layers.")
"""Parts of names that weights of the package transformers have."""


def fill(module: nn.Module, weights: dict[str, Tensor], reasons: Sequence[str] = ()) -> list[str]:
    """Put weights of any float precision into the module, in place; they are converted to the module's precision.

    reasons: sentences that say why the weights may not fit. Return a sentence if the precision changes.

    Raises: CheckpointMismatch with the keys that are missing, unexpected or of another shape; DamagedFile.
    """
    own = module.state_dict()
    _refuse_quantised(weights)
    _refuse_other_names(own, weights, reasons)
    odd = [key for key, value in weights.items() if not _same_kind(value, own[key])]
    if odd:
        raise CheckpointMismatch(
            f"The tensor {odd[0][:200]!r} of the checkpoint has type {weights[odd[0]].dtype}. The model needs type"
            f" {own[odd[0]].dtype}. A float tensor may have any of these types:"
            f" {', '.join(map(name_of, FLOATS))}. Convert the tensor and save the checkpoint again.",
        )
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise DamagedFile(
            f"The checkpoint has NaN or infinite weights in the tensor {broken[0]} and in {len(broken) - 1} more"
            " tensors. All weights must be finite. Use another checkpoint."
        )
    module.load_state_dict(weights)
    return precision_said(value.dtype for value in weights.values())


def precision_said(kinds: Iterable[torch.dtype]) -> list[str]:
    """Return a sentence if weights have another precision than float32, with which vitfit computes."""
    other = sorted({name_of(kind) for kind in kinds if kind in FLOATS and kind != torch.float32})
    if not other:
        return []
    return [f"The weights are stored as {' and '.join(other)}: vitfit takes them as float32."]


def name_of(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _refuse_other_names(own: dict[str, Tensor], weights: dict[str, Tensor], reasons: Sequence[str]) -> None:
    """Raises: CheckpointMismatch unless both have the same names and shapes."""
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = sorted(
        f"{key}: {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if weights[key].shape != own[key].shape
    )
    if not (missing or unexpected or shapes):
        return
    parts = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", shapes)]
    differ = "; ".join(filter(None, parts))
    if len(missing) > len(own) // 2:
        text = (
            f"The checkpoint is of another architecture or depth: it has only {len(own) - len(missing)} of the model's"
            f" {len(own)} tensors. Its tensors differ: {differ}. Give the name of the model from which the checkpoint"
            f" comes, and the options (depth, ...) with which it was trained.{_origin(weights)}"
        )
    elif reasons:
        text = f"The checkpoint does not fit the model. {' '.join(reasons)} Its tensors differ: {differ}."
    else:
        text = (
            f"The checkpoint does not fit the model. Its tensors differ: {differ}. Give the model the options"
            " (img_size, num_classes, depth, ...) with which the checkpoint was trained."
        )
    raise CheckpointMismatch(text, missing=missing, unexpected=unexpected, shapes=shapes)


def _origin(weights: Iterable[str]) -> str:
    """Return a hint if the names of the weights are those of transformers."""
    if any(f".{name}" in f".{key}" for name in TRANSFORMERS for key in weights):
        return " The names are those of the package transformers: give the folder with config.json instead."
    return ""


def _refuse_quantised(weights: dict[str, Tensor]) -> None:
    """Raises: CheckpointMismatch for a quantised checkpoint.

    Its integers would load without an error, but as weights of a wrong scale.
    """
    integers = [key for key, value in weights.items() if key.endswith("weight") and not value.is_floating_point()]
    if integers or any("_packed_params" in key for key in weights):
        name = integers[0] if integers else next(key for key in weights if "_packed_params" in key)
        raise CheckpointMismatch(
            f"The checkpoint is already quantised (tensor {name}). vitfit needs float weights. Upload the weights"
            " before quantisation, and ask for int8 in the job: precisions=['int8'].",
            tensor=name,
        )


def _same_kind(value: Tensor, own: Tensor) -> bool:
    """Return True if the dtype fits: any usual float dtype for a float tensor, the same dtype for other tensors."""
    return value.dtype in FLOATS if own.is_floating_point() else value.dtype == own.dtype


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{more})"
