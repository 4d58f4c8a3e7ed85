"""Loads a checkpoint file into a module. The file may hold only tensors, and each of them must fit."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import (
    CheckpointMismatch,
    DamagedFile,
    UnsafeFile,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
SHOWN_KEYS = 5


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Loads weights of any float precision into the module, in place; they are converted to the module's precision.

    Raises: UnsafeFile, DamagedFile; CheckpointMismatch with the keys that are missing, unexpected or of another shape.
    """
    weights = _unwrapped(_read(path))
    _refuse_quantised(weights)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{key}: {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if weights[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            _listed("missing", missing),
            _listed("unexpected", unexpected),
            _listed("of another shape", sorted(shapes)),
        ]
        raise CheckpointMismatch(
            f"The checkpoint does not fit the model. Its tensors differ: {'; '.join(p for p in parts if p)}. Give the"
            " model the options (img_size, num_classes, depth, ...) with which the checkpoint was trained.",
            missing=missing,
            unexpected=unexpected,
            shapes=sorted(shapes),
        )
    odd = [key for key, value in weights.items() if not _same_kind(value, own[key])]
    if odd:
        raise CheckpointMismatch(
            f"The tensor {odd[0][:200]!r} of the checkpoint has type {weights[odd[0]].dtype}. The model needs type"
            f" {own[odd[0]].dtype}. A float tensor may have any of these types:"
            f" {', '.join(str(kind).removeprefix('torch.') for kind in FLOATS)}. Convert the tensor and save the"
            " checkpoint again.",
        )
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise DamagedFile(
            f"The checkpoint has NaN or infinite weights in the tensor {broken[0]} and in {len(broken) - 1} more"
            " tensors. All weights must be finite. Use another checkpoint."
        )
    module.load_state_dict(weights)


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


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except Exception as error:  # the header is untrusted JSON, so any error can occur
            raise DamagedFile(
                f"The checkpoint is not a complete safetensors file ({str(error)[:200]}). Upload it again."
            ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFile(
            "The checkpoint is a pickle that tries to run code. vitfit loads only tensors. Save the checkpoint as"
            " safetensors, or with torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise DamagedFile(f"vitfit cannot read the checkpoint ({str(error)[:200]}). Upload it again.") from error
    if not isinstance(loaded, dict):
        raise CheckpointMismatch(
            f"The checkpoint holds a {type(loaded).__name__}. It must hold a dictionary of tensors. Save it with"
            " torch.save(model.state_dict(), ...)."
        )
    return loaded


def _unwrapped(weights: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by their names in the model.

    Training scripts often store the weights in a dictionary beside the optimizer, or with the prefix `module.`.
    """
    for wrapper in WRAPPERS:
        if isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
            break
    if weights and all(isinstance(key, str) and key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    strange = [
        key
        for key, value in weights.items()
        if not isinstance(key, str) or not (isinstance(value, Tensor) or "_packed_params" in key)
    ]
    if strange:
        raise CheckpointMismatch(
            f"The entry {str(strange[0])[:200]!r} of the checkpoint is not a tensor with a name. A checkpoint may hold"
            " only named tensors. Save the weights alone."
        )
    odd = next((key for key, value in weights.items() if not _is_plain(value)), None)
    if odd is not None:
        raise CheckpointMismatch(
            f"The tensor {odd[:200]!r} of the checkpoint is sparse, nested, quantised or without values. vitfit loads"
            " only dense tensors with values. Convert the tensor and save the checkpoint again."
        )
    return weights


def _is_plain(value: Tensor) -> bool:
    return not (value.is_nested or value.is_quantized or value.is_meta) and value.layout == torch.strided


def _same_kind(value: Tensor, own: Tensor) -> bool:
    """Returns True if the dtype fits: any usual float dtype for a float tensor, the same dtype for other tensors."""
    return value.dtype in FLOATS if own.is_floating_point() else value.dtype == own.dtype


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{more})"
