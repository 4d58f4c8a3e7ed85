"""Opens a model folder: `model.json`, beside it `weights.safetensors` or `weights.pth` of a timm model, `model.onnx` or `model.zip`."""

import json
import math
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.describe_stages import classes_of
from models.errors import (
    CheckpointMismatch,
    DamagedFile,
    InvalidRequest,
    TooLarge,
    UnknownName,
    UnsafeFile,
    UnsupportedModel,
)
from models.open_graph import open_graph
from models.open_hugging_face import open_hugging_face
from models.open_onnx import open_onnx
from models.package import unpack_model
from models.preprocessing import Preprocessing
from models.torch_network import TorchNetwork

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
"""timm's constructor arguments that a user may set: shapes only, no code."""
MOST = 2**20
"""Of any number among the options; blocks: `MOST_BLOCKS`."""
MOST_BLOCKS = 1_000
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
SHOWN_KEYS = 5


def open_model(folder: Path) -> TorchNetwork:
    """A timm model with or without weights, an ONNX file, or a zip of either an ONNX file with its data or a Hugging Face folder.

    Raises: UnknownName, InvalidRequest, UnsupportedModel, CheckpointMismatch, UnsafeFile, DamagedFile.
    """
    description = json.loads((folder / "model.json").read_text())
    network = _opened(folder, description)
    preprocessing = network.preprocessing
    if network.structure.image != tuple(preprocessing.size):
        raise InvalidRequest(
            f"Preprocessing makes images of {preprocessing.size}, the model takes {network.structure.image}; "
            "set preprocessing.size to the model's, or img_size and in_chans to the preprocessing's",
        )
    classes = description.get("classes")
    if classes is not None and network.structure.classes and len(classes) != network.structure.classes:
        raise InvalidRequest(
            f"{len(classes)} class names were given for a model of {network.structure.classes} classes"
        )
    network.class_names = tuple(map(str, classes)) if classes else network.class_names
    return network


def _opened(folder: Path, description: dict[str, Any]) -> TorchNetwork:
    name, wanted = description["name"], description.get("preprocessing")
    if (file := folder / "model.onnx").exists():
        return open_onnx(file, name, wanted)
    if (archive := folder / "model.zip").exists():
        with tempfile.TemporaryDirectory(prefix="vitfit-model-") as unpacked:
            unpack_model(archive, Path(unpacked))
            return _packed(Path(unpacked), name, wanted)
    checkpoint = next((p for p in (folder / "weights.safetensors", folder / "weights.pth") if p.exists()), None)
    options = description.get("options") or {}
    module = build(name, options, pretrained=checkpoint is None and bool(description.get("pretrained")))
    if checkpoint is not None:
        load_checkpoint(module, checkpoint)
    return network_of(module, name, Preprocessing.from_json(wanted) if wanted else Preprocessing.of_model(module))


def _packed(folder: Path, name: str, preprocessing: dict[str, Any] | None) -> TorchNetwork:
    files = sorted(folder.glob("*.onnx"))
    if len(files) == 1:
        return open_onnx(files[0], name, preprocessing)
    if (folder / "config.json").is_file():
        return open_hugging_face(folder, name, preprocessing)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise InvalidRequest(
        f"The archive holds {found or 'nothing'}: one .onnx file with its data, or a Hugging Face folder with its config.json, "
        "is needed.",
        files=found,
    )


def untrained(name: str, **options: Any) -> TorchNetwork:
    """A timm model with random weights: enough for shapes, MACs and latencies. Raises: UnknownName, InvalidRequest."""
    module = build(name, options, pretrained=False)
    return network_of(module, name, Preprocessing.of_model(module))


def network_of(module: nn.Module, name: str, preprocessing: Preprocessing) -> TorchNetwork:
    """By its family where there is one, so that everything can be cut; any other model by its graph.

    Raises: UnsupportedModel with the reasons of both.
    """
    try:
        return TorchNetwork(module, name, preprocessing)
    except UnsupportedModel as unknown:
        try:
            return open_graph(module, name, preprocessing, classes_of(module))
        except UnsupportedModel as error:
            reasons = [*unknown.facts.get("reasons", ()), *error.facts.get("reasons", ())]
            raise UnsupportedModel(f"{unknown.detail} {error.detail}", reasons=reasons) from error


def build(name: str, options: dict[str, Any], pretrained: bool, seed: int = 0) -> nn.Module:
    """A timm model; random weights are seeded, so that a job can be repeated.

    Raises: UnknownName with timm's nearest names; InvalidRequest for an option, or when the hub cannot be reached.
    """
    if name not in timm.list_models() and not timm.is_model(name):
        raise UnknownName("model", name, timm.list_models())
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise InvalidRequest(f"Model option {unknown[0]!r} is not allowed. Allowed: {', '.join(sorted(OPTIONS))}.")
    _check_size(name, options)
    torch.manual_seed(seed)
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm checks little: shapes fail wherever they are first used
        if not pretrained or isinstance(error, TypeError | AssertionError):
            raise InvalidRequest(f"timm could not build {name!r} with options {options}: {error}") from error
        raise InvalidRequest(
            f"The pre-trained weights of {name!r} could not be fetched ({type(error).__name__}: {str(error)[:200]}). "
            "Upload a checkpoint, or ask for pretrained: false to use random weights."
        ) from error


def _check_size(name: str, options: dict[str, Any]) -> None:
    """Before any memory is taken. Raises: InvalidRequest for numbers that no network has; TooLarge."""
    for option, value in options.items():
        most = MOST_BLOCKS if option == "depth" else MOST
        if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= most):
            raise InvalidRequest(f"Model option {option!r} is {str(value)[:50]}; numbers up to {most:,} are allowed.")
    try:
        with torch.device("meta"):
            params = sum(value.numel() for value in timm.create_model(name, pretrained=False, **options).parameters())
    except Exception:  # what cannot be built is told by the attempt to build it
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * params > memory // 4:  # the original, what is pruned, and statistics
        raise TooLarge(
            f"This {name!r} has {params:,} parameters, {4 * params / 2**30:.0f} GiB; this machine, with {memory / 2**30:.0f} GiB "
            "of memory, works on a quarter of that. Take a smaller model, or a larger machine.", params=params,
        )  # fmt: skip


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Loads weights of any float precision into the module's own.

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
        parts = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("other shape", sorted(shapes))]
        raise CheckpointMismatch(
            f"The checkpoint does not fit the model: {'; '.join(p for p in parts if p)}. "
            "Give the options (img_size, num_classes, depth, ...) that the checkpoint was trained with.",
            missing=missing, unexpected=unexpected, shapes=sorted(shapes),
        )  # fmt: skip
    odd = [key for key, value in weights.items() if not _same_kind(value, own[key])]
    if odd:
        raise CheckpointMismatch(
            f"The checkpoint's tensor {odd[0][:200]!r} is {weights[odd[0]].dtype}; {own[odd[0]].dtype} is needed, or another of "
            f"{', '.join(str(kind).removeprefix('torch.') for kind in FLOATS)} for floats. Convert it before saving.",
        )  # fmt: skip
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise DamagedFile(
            f"The checkpoint has NaN or infinite weights in {broken[0]} and {len(broken) - 1} more tensors"
        )
    module.load_state_dict(weights)


def _refuse_quantised(weights: dict[str, Tensor]) -> None:
    """Integers would load as weights of another scale."""
    integers = [key for key, value in weights.items() if key.endswith("weight") and not value.is_floating_point()]
    if integers or any("_packed_params" in key for key in weights):
        name = integers[0] if integers else next(key for key in weights if "_packed_params" in key)
        raise CheckpointMismatch(
            f"The checkpoint is quantised already ({name}). Upload the weights as they were trained, and ask for int8 in "
            "the job: precisions=['int8'].", tensor=name,
        )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except Exception as error:  # its header is anybody's JSON
            raise DamagedFile(f"The checkpoint is not a whole safetensors file: {str(error)[:200]}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFile(
            "The checkpoint is a pickle that wants to run code; vitfit loads tensors only. "
            "Save it as safetensors, or with torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # a damaged pickle fails in every way that Python has
        raise DamagedFile(f"The checkpoint cannot be read: {str(error)[:200]}") from error
    if not isinstance(loaded, dict):
        raise CheckpointMismatch(f"The checkpoint holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def _unwrapped(weights: dict[str, Any]) -> dict[str, Tensor]:
    """Training scripts store the weights beside an optimizer, or under `module.`."""
    for wrapper in WRAPPERS:
        if isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
            break
    if weights and all(isinstance(key, str) and key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    strange = [
        key for key, value in weights.items()
        if not isinstance(key, str) or not (isinstance(value, Tensor) or "_packed_params" in key)
    ]  # fmt: skip
    if strange:
        raise CheckpointMismatch(
            f"The checkpoint's entry {str(strange[0])[:200]!r} is not a tensor; upload the weights alone"
        )
    odd = next((key for key, value in weights.items() if not _is_plain(value)), None)
    if odd is not None:
        raise CheckpointMismatch(
            f"The checkpoint's tensor {odd[:200]!r} is sparse, nested, quantised or without values; store plain tensors."
        )
    return weights


def _is_plain(value: Tensor) -> bool:
    return not (value.is_nested or value.is_quantized or value.is_meta) and value.layout == torch.strided


def _same_kind(value: Tensor, own: Tensor) -> bool:
    """Floats of any usual precision for floats; tables of whole numbers as they are."""
    return value.dtype in FLOATS if own.is_floating_point() else value.dtype == own.dtype


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{more})"
