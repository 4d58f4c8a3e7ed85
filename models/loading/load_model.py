"""Opens a model folder.

The folder holds `model.json` and at most one model file: `weights.safetensors` or `weights.pth` for a timm model,
`model.onnx`, or `model.zip`.
"""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from models.data.preprocessing import Preprocessing
from models.errors import (
    InvalidRequest,
    UnsupportedModel,
)
from models.families.describe_stages import classes_of
from models.graph.onnx import proof
from models.loading.build_for_checkpoint import build_for
from models.loading.checkpoint_file import refuse_other_files
from models.loading.image_processor import read_json
from models.loading.load_graph import open_graph
from models.loading.load_hugging_face import open_hugging_face
from models.loading.load_onnx import open_onnx
from models.loading.load_timm_folder import is_timm_folder, open_timm_folder
from models.loading.model_archive import unpack_model
from models.loading.timm_builder import build
from models.loading.trainer_folder import model_in
from models.loading.weight_files import as_safetensors, read_weights, weight_files
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.offline import offline

UPLOADED = ("weights.safetensors", "weights.pth", "model.zip")
"""Names of the files with weights in a model folder."""


def open_model(folder: Path) -> Network:
    """Open the model of a folder.

    The model can be a timm model with or without a checkpoint, an ONNX file, or a zip. The zip holds an ONNX file with
    its external data, or a Hugging Face folder.

    Raises: UnknownName, InvalidRequest, UnsupportedModel, CheckpointMismatch, UnsafeFile, DamagedFile.
    """
    description = json.loads((folder / "model.json").read_text())
    # timm may download the weights of its own models, but nothing that a file of the user names
    with contextlib.nullcontext() if description.get("pretrained") and not _uploads(folder) else offline():
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
        refuse_other_files(file)
        return _onnx(file, description)
    if (archive := folder / "model.zip").exists():
        with tempfile.TemporaryDirectory(prefix="vitfit-model-") as unpacked:
            unpack_model(archive, Path(unpacked))
            return _packed(Path(unpacked), description)
    if files := _model_files(folder):  # a zip has been opened above
        return _timm_checkpoint(files, description)
    _refuse_choice(description)
    module = build(name, description.get("options") or {}, pretrained=bool(description.get("pretrained")))
    return network_of(module, name, _preprocessing(module, wanted))


def _uploads(folder: Path) -> bool:
    """Return whether the folder has a file of a user, beside model.json."""
    return any((folder / name).exists() for name in (*UPLOADED, "model.onnx"))


def _model_files(folder: Path) -> list[Path]:
    return [path for name in UPLOADED if (path := folder / name).exists()][:1]


def _timm_checkpoint(files: list[Path], description: dict[str, Any]) -> Network:
    """Open weights of a timm model: one file, or several shards."""
    name, options = description["name"], description.get("options") or {}
    module, assumed = build_for(read_weights(files), name, options, description.get("weights") or None)
    return network_of(module, name, _preprocessing(module, description.get("preprocessing"))).with_assumptions(assumed)


def _preprocessing(module: nn.Module, wanted: dict[str, Any] | None) -> Preprocessing:
    return Preprocessing.from_json(wanted) if wanted else Preprocessing.of_model(module)


def _packed(unpacked: Path, description: dict[str, Any]) -> Network:
    name, preprocessing = description["name"], description.get("preprocessing")
    onnx = sorted(unpacked.glob("*.onnx"))
    if len(onnx) == 1:
        return _onnx(onnx[0], description)
    folder, said = model_in(unpacked)
    files = weight_files(folder)
    if not (folder / "config.json").is_file():
        _check_has_weights(files, unpacked, name)
        return _timm_checkpoint(files, description).with_assumptions(said)
    _check_options(description, (), f"the file config.json of {name} describes the model")
    config = read_json(folder / "config.json")
    if is_timm_folder(config):
        return _timm_folder(folder, config, description).with_assumptions(said)
    _refuse_choice(description)
    said += as_safetensors(folder, files)
    return open_hugging_face(folder, name, preprocessing).with_assumptions(said)


@offline()
def prove_on_images(folder: Path, network: Network, images: Tensor) -> None:
    """Compare a network with the ONNX file that it was read from, on real images (n, C, H, W).

    A model of another kind has no file to compare with.

    Raises: UnsupportedModel if the outputs differ.
    """
    if (file := folder / "model.onnx").exists():
        proof.prove_on_images(file, network, images)
    elif (archive := folder / "model.zip").exists():
        with tempfile.TemporaryDirectory(prefix="vitfit-model-") as unpacked:
            unpack_model(archive, Path(unpacked))
            for file in list(Path(unpacked).glob("*.onnx"))[:1]:
                proof.prove_on_images(file, network, images)


def _onnx(file: Path, description: dict[str, Any]) -> Network:
    """Open an ONNX file. Its only option is `outputs`, a list of names."""
    _refuse_choice(description)
    _check_options(description, ("outputs",), "an ONNX file describes the model itself")
    outputs = (description.get("options") or {}).get("outputs")
    if outputs is not None and not (isinstance(outputs, list) and all(isinstance(name, str) for name in outputs)):
        raise InvalidRequest(
            f'The option outputs is {outputs!r}. It must be a list of names of outputs, such as ["logits"]. Change it.',
            field="options.outputs",
        )
    return open_onnx(file, description["name"], description.get("preprocessing"), outputs)


def _check_options(description: dict[str, Any], allowed: tuple[str, ...], why: str) -> None:
    """Raises: InvalidRequest for options that would change nothing."""
    unknown = [name for name in description.get("options") or {} if name not in allowed]
    if unknown:
        raise InvalidRequest(
            f"The options {', '.join(unknown)} have no effect, because {why}. Allowed options:"
            f" {', '.join(allowed) or 'none'}. Leave the others out.",
            field="options",
            allowed=list(allowed),
        )


def _timm_folder(folder: Path, config: dict[str, Any], description: dict[str, Any]) -> Network:
    module, said = open_timm_folder(folder, config, description.get("weights") or None)
    wanted = _preprocessing(module, description.get("preprocessing"))
    network = network_of(module, description["name"], wanted).with_assumptions(said)
    names = config.get("label_names")
    if isinstance(names, list) and len(names) == network.structure.classes:
        return network.with_class_names(map(str, names))
    return network


def _refuse_choice(description: dict[str, Any]) -> None:
    """Raises: InvalidRequest if the request chooses among sets of weights, and the model has no checkpoint."""
    if weights := description.get("weights"):
        raise InvalidRequest(
            f"The request chooses the weights {weights!r}, but only a checkpoint of a timm model can have several sets"
            " of weights. Leave --weights out, or give such a checkpoint.",
            field="weights",
            value=weights,
        )


def _check_has_weights(files: list[Path], folder: Path, name: str) -> None:
    """Raises: InvalidRequest if a folder without config.json has no weights, or weights of an unknown model."""
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    if not files:
        raise InvalidRequest(
            f"The archive holds {found or 'no files'}. It must hold one .onnx file with its data, or a Hugging Face"
            " folder with its config.json. Pack one of the two.",
            files=found,
        )
    if not timm.is_model(name):
        raise InvalidRequest(
            f"The archive holds weights ({files[0].name}) but no config.json, and {name!r} is no model of timm. Add the"
            " config.json. If the weights are those of a timm model, give its name, and the archive as --checkpoint.",
            files=found,
        )


def untrained(name: str, **options: Any) -> Network:
    """Return a timm model with random weights, which suffices for shapes, MACs and latencies.

    Raises: UnknownName, InvalidRequest.
    """
    module = build(name, options, pretrained=False)
    return network_of(module, name, Preprocessing.of_model(module))


def network_of(module: nn.Module, name: str, preprocessing: Preprocessing) -> Network:
    """Return a module as a network.

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
