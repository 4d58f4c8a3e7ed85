"""Opens a folder as timm's hub has them: config.json with `architecture` and `pretrained_cfg`, and safetensors."""

from pathlib import Path
from typing import Any

from torch import nn

from models.errors import InvalidRequest, UnsafeFile
from models.loading.checkpoint import load_checkpoint
from models.loading.timm_builder import build


def is_timm_folder(config: dict[str, Any]) -> bool:
    """Return whether a config.json is one of timm."""
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def open_timm_folder(folder: Path, config: dict[str, Any]) -> nn.Module:
    """Return the timm model of a folder with its weights, its classifier and its preprocessing (`pretrained_cfg`).

    timm reads `model_args` as constructor arguments, and the number of classes from config.json.

    Raises: UnsafeFile without safetensors; InvalidRequest; UnknownName; CheckpointMismatch.
    """
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UnsafeFile(
            f"The folder holds {len(files)} .safetensors files. A folder of timm's hub has one, model.safetensors."
            " vitfit does not read pickles of such a folder. Save the weights as safetensors."
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
    module = build(config["architecture"], options, pretrained=False)
    load_checkpoint(module, files[0])
    vars(module)["pretrained_cfg"] = {**(getattr(module, "pretrained_cfg", None) or {}), **described}
    return module
