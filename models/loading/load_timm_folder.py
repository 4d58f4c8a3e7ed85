"""Opens a folder as timm's hub has them: config.json with `architecture` and `pretrained_cfg`, and weights."""

from pathlib import Path
from typing import Any

from torch import nn

from models.errors import InvalidRequest
from models.loading.build_for_checkpoint import build_for
from models.loading.weight_files import read_weights, weight_files


def is_timm_folder(config: dict[str, Any]) -> bool:
    """Return whether a config.json is one of timm."""
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def open_timm_folder(folder: Path, config: dict[str, Any], weights: str | None = None) -> tuple[nn.Module, list[str]]:
    """Return the timm model of a folder with its weights, its classifier and its preprocessing (`pretrained_cfg`).

    timm reads `model_args` as constructor arguments, and the number of classes from config.json. weights: which of
    several sets of weights. The second value are sentences that say what was assumed.

    Raises: InvalidRequest without weights; UnknownName; CheckpointMismatch; UnsafeFile; DamagedFile.
    """
    files = weight_files(folder)
    if not files:
        raise InvalidRequest(
            "The folder has a config.json of timm, but no weights. A folder of timm's hub has model.safetensors. Add"
            " this file."
        )
    described, arguments = config.get("pretrained_cfg") or {}, config.get("model_args") or {}
    if not isinstance(described, dict) or not isinstance(arguments, dict):
        raise InvalidRequest(
            "In config.json, pretrained_cfg and model_args must be JSON objects. Save the model again."
        )
    options = {**arguments}
    classes = config.get("num_classes", described.get("num_classes"))
    if classes is not None:
        options.setdefault("num_classes", classes)
    if config.get("global_pool"):
        options.setdefault("global_pool", config["global_pool"])
    module, said = build_for(read_weights(files), config["architecture"], options, weights)
    vars(module)["pretrained_cfg"] = {**(getattr(module, "pretrained_cfg", None) or {}), **described}
    return module, said
