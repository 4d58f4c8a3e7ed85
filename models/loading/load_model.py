"""Opens a model folder.

The folder holds `model.json` and at most one model file: `weights.safetensors` or `weights.pth` for a timm model,
`model.onnx`, or `model.zip`.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from models.data.preprocessing import Preprocessing
from models.errors import (
    InvalidRequest,
    UnsupportedModel,
)
from models.families.describe_stages import classes_of
from models.loading.checkpoint import load_checkpoint
from models.loading.image_processor import read_json
from models.loading.load_graph import open_graph
from models.loading.load_hugging_face import open_hugging_face
from models.loading.load_onnx import open_onnx
from models.loading.load_timm_folder import is_timm_folder, open_timm_folder
from models.loading.model_archive import unpack_model
from models.loading.timm_builder import build
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork


def open_model(folder: Path) -> Network:
    """Opens the model of a folder.

    The model can be a timm model with or without a checkpoint, an ONNX file, or a zip. The zip holds an ONNX file with
    its external data, or a Hugging Face folder.

    Raises: UnknownName, InvalidRequest, UnsupportedModel, CheckpointMismatch, UnsafeFile, DamagedFile.
    """
    description = json.loads((folder / "model.json").read_text())
    network = _opened(folder, description)
    preprocessing = network.preprocessing
    if network.structure.image != tuple(preprocessing.size):
        raise InvalidRequest(
            f"The preprocessing makes images of size {preprocessing.size}, but the model takes"
            f" {network.structure.image}. Both are (channels, height, width) and must be equal. Change"
            " preprocessing.size, or change the options img_size and in_chans of the model.",
        )
    classes = description.get("classes")
    if classes is not None and network.structure.classes and len(classes) != network.structure.classes:
        raise InvalidRequest(
            f"The request gives {len(classes)} class names, but the model has {network.structure.classes} classes."
            " Give one name for each class."
        )
    return network.with_class_names(map(str, classes)) if classes else network


def _opened(folder: Path, description: dict[str, Any]) -> Network:
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
    assumed = [] if checkpoint is None else load_checkpoint(module, checkpoint)
    preprocessing = Preprocessing.from_json(wanted) if wanted else Preprocessing.of_model(module)
    return network_of(module, name, preprocessing).with_assumptions(assumed)


def _packed(folder: Path, name: str, preprocessing: dict[str, Any] | None) -> Network:
    files = sorted(folder.glob("*.onnx"))
    if len(files) == 1:
        return open_onnx(files[0], name, preprocessing)
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if not is_timm_folder(config):
            return open_hugging_face(folder, name, preprocessing)
        module = open_timm_folder(folder, config)
        wanted = Preprocessing.from_json(preprocessing) if preprocessing else Preprocessing.of_model(module)
        network = network_of(module, name, wanted)
        names = config.get("label_names")
        if isinstance(names, list) and len(names) == network.structure.classes:
            return network.with_class_names(map(str, names))
        return network
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise InvalidRequest(
        f"The archive holds {found or 'no files'}. It must hold one .onnx file with its data, or a Hugging Face folder"
        " with its config.json. Pack one of the two.",
        files=found,
    )


def untrained(name: str, **options: Any) -> Network:
    """Returns a timm model with random weights, which suffices for shapes, MACs and latencies.

    Raises: UnknownName, InvalidRequest.
    """
    module = build(name, options, pretrained=False)
    return network_of(module, name, Preprocessing.of_model(module))


def network_of(module: nn.Module, name: str, preprocessing: Preprocessing) -> Network:
    """Returns a module as a network.

    If a family describes the module, every part of it can be pruned. Any other module is read from its graph.

    Raises: UnsupportedModel with the reasons of both attempts.
    """
    try:
        return TorchNetwork(module, name, preprocessing)
    except UnsupportedModel as unknown:
        try:
            return open_graph(module, name, preprocessing, classes_of(module))
        except UnsupportedModel as error:
            reasons = [*unknown.facts.get("reasons", ()), *error.facts.get("reasons", ())]
            raise UnsupportedModel(f"{unknown.detail} {error.detail}", reasons=reasons) from error
