"""Loads a checkpoint file into a module. The file may hold only tensors, and each of them must fit."""

import argparse
import collections
import importlib
import pathlib
import pickle
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import (
    CheckpointMismatch,
    DamagedFile,
    UnsafeFile,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "model", "state_dict", "model_state_dict", "module", "network", "net")
"""Names under which training scripts store the weights. The first one that is there is taken, as timm does: averaged
weights (EMA) come first."""
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "network.", "net.", "student.", "teacher.")
"""Prefixes that training scripts put before the names of weights. They may stand one after the other."""
MULTIARRAY: Any = importlib.import_module("numpy._core.multiarray")
ARRAYS = ("scalar", "_reconstruct")
HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.defaultdict,
    collections.OrderedDict,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    np.ndarray,
    *((getattr(MULTIARRAY, name), f"numpy.{core}.multiarray.{name}") for name in ARRAYS for core in ("core", "_core")),
    *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type)),
]
"""Classes that training scripts store beside the weights. They hold values and run no code."""
SHOWN_KEYS = 5


def load_checkpoint(module: nn.Module, path: Path) -> list[str]:
    """Loads weights of any float precision into the module, in place; they are converted to the module's precision.

    Return sentences that say what was assumed about the checkpoint.

    Raises: UnsafeFile, DamagedFile; CheckpointMismatch with the keys that are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    weights, assumed = _unwrapped(_read(path))
    weights, prefix = _without_prefix(weights, own.keys())
    if prefix:
        assumed.append(f"The names of the weights begin with {prefix!r}: vitfit leaves this prefix out.")
    _refuse_quantised(weights)
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
    return assumed


def _without_prefix(weights: dict[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Return the weights whose names begin with a prefix, without it, if this gives more of the wanted names.

    Other weights, such as those of a teacher beside a student, are then left out.
    """
    best, found = "", sum(name in wanted for name in weights)
    prefixes = {""}
    for _ in range(2):
        prefixes |= {known + prefix for known in prefixes for prefix in PREFIXES}
    for prefix in sorted(prefixes, key=lambda one: (len(one), one)):
        fitting = sum(name.startswith(prefix) and name[len(prefix) :] in wanted for name in weights)
        if fitting > found:
            best, found = prefix, fitting
    if not best:
        return weights, ""
    return {name[len(best) :]: value for name, value in weights.items() if name.startswith(best)}, best


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
        with torch.serialization.safe_globals(HARMLESS):
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


def _unwrapped(weights: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the tensors of a checkpoint by their names, and sentences about what was assumed.

    Training scripts often store the weights in a dictionary beside the optimizer.
    """
    there = [wrapper for wrapper in WRAPPERS if isinstance(weights.get(wrapper), dict)]
    assumed = []
    if there:
        weights = weights[there[0]]
    if len(there) > 1:
        assumed.append(f"The checkpoint has several sets of weights ({', '.join(there)}): vitfit takes {there[0]!r}.")
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
    return weights, assumed


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
