"""Opens a Hugging Face folder (config.json, model.safetensors, preprocessor_config.json) with the package transformers.

Nothing in the folder is executed: no remote code and no pickles. `weight_files.py` makes safetensors of pickled weights
first. The hub is not contacted. Of CLIP and SigLIP, only the vision tower is used. The network is compared with the
model that transformers itself builds, and the preprocessing with the folder's own image processor.
"""

from pathlib import Path
from typing import Any

import torch

from models.data.preprocessing import Preprocessing
from models.errors import CheckpointMismatch, InvalidRequest, UnsafeFile, UnsupportedModel
from models.export.onnx_export import relative_difference
from models.graph.onnx.proof import TOLERANCE
from models.loading.hugging_face_outputs import OneOutput, one_output
from models.loading.image_processor import check_processor, preprocessing_of, processor_of, read_json
from models.loading.load_graph import open_graph
from models.loading.size_limits import check_parameters, check_sizes
from models.networks.network import Network
from models.offline import wanted_network

TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
"""Classes for models whose own class needs more than images, by model type."""


def open_hugging_face(folder: Path, name: str, preprocessing: dict[str, Any] | None) -> Network:
    """Open a Hugging Face folder. preprocessing: as in model.json; None: as the folder's image processor says.

    Raises: InvalidRequest if the package transformers is not installed; UnsafeFile for remote code; CheckpointMismatch,
    DamagedFile, UnsupportedModel.
    """
    config = read_json(folder / "config.json")
    check_sizes(config, "config.json", are_numbers=True)
    if "auto_map" in config:
        raise UnsafeFile(
            f"The config.json of {name} asks for code of its own (auto_map). vitfit never runs such code. Use an"
            " architecture that the package transformers contains."
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointMismatch(
            f"The folder {name} holds no weights. A Hugging Face folder has model.safetensors, or shards and"
            " model.safetensors.index.json. Save the model with save_pretrained, and give the folder again."
        )
    model = _model(folder, name, config)
    wanted = Preprocessing.from_json(preprocessing) if preprocessing else preprocessing_of(folder, config)
    if not preprocessing:
        check_processor(folder, wanted)
    module, assumed = one_output(model, name, wanted.size)
    if not preprocessing and not processor_of(folder):
        assumed.append(
            "The folder has no preprocessor_config.json: vitfit resizes pictures to the model's size, and uses mean 0.5"
            " and standard deviation 0.5."
        )
    classes = int(model.config.num_labels) if module.output == "logits" else 0
    network = open_graph(module, name, wanted, classes).with_assumptions(assumed)
    _prove(module, network)
    if classes:
        labels = getattr(model.config, "id2label", None) or {}
        network = network.with_class_names(str(labels.get(i, i)) for i in range(classes))
    return network


def _prove(module: OneOutput, network: Network) -> None:
    """Compare the network with the model of transformers. Raises: UnsupportedModel when their outputs differ."""
    images = torch.randn(3, *network.structure.image, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = module(images)
    got = network.outputs(images)
    apart = relative_difference(expected, got)
    if not apart <= TOLERANCE:
        raise UnsupportedModel(
            f"vitfit's network gives other outputs than {type(module.model).__name__} of transformers: they differ by"
            f" {100 * apart:.2g} % of the largest output (allowed: {100 * TOLERANCE:g} %). Please report this model.",
            reasons=["the outputs differ from those of transformers"],
        )


def _model(folder: Path, name: str, config: dict[str, Any]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidRequest(
            f"The model {name} is a Hugging Face folder, but the package transformers, which reads it, is not"
            " installed. Install it: pip install 'transformers>=5'."
        ) from error
    kind = _class_of(transformers, config)
    _count(transformers, kind, folder, name)
    try:
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # the library may fail anywhere
        raise _refusal(error, name, config) from error
    wrong = [*info.get("missing_keys", ()), *(str(one) for one in info.get("mismatched_keys", ()))]
    if wrong:
        raise CheckpointMismatch(
            f"The weights of {name} do not fit its config.json. {len(wrong)} tensors are missing or have another shape"
            f" ({wrong[0]}, ...). Upload both files of the same model.",
            missing=list(map(str, wrong)),
        )
    return model.eval()


def _count(transformers: Any, kind: Any, folder: Path, name: str) -> None:
    """Build the model without values, and count its parameters. Raises: TooLarge, UnsupportedModel, UnsafeFile."""
    try:
        config = transformers.AutoConfig.from_pretrained(  # a folder; no download  # nosec B615
            folder, local_files_only=True, trust_remote_code=False
        )
        if own := getattr(kind, "config_class", None):  # the vision tower has a part of the configuration
            config = own.from_pretrained(folder, local_files_only=True)
        build = getattr(kind, "from_config", None) or kind._from_config
        with torch.device("meta"):
            params = sum(value.numel() for value in build(config, dtype=torch.float32).parameters())
    except MemoryError:
        raise
    except Exception as error:
        raise _refusal(error, name, read_json(folder / "config.json")) from error
    check_parameters(params, repr(name))


def _refusal(error: Exception, name: str, config: dict[str, Any]) -> UnsafeFile | UnsupportedModel | CheckpointMismatch:
    if wanted_network(error):
        return UnsafeFile(
            f"The config.json of {name} names another model or file, which would have to be downloaded. vitfit"
            " downloads nothing for an upload. Save the model with all of its parts: model.save_pretrained(FOLDER)."
        )
    said = f"{type(error).__name__}: {str(error)[:300]}"
    if isinstance(error, OSError | RuntimeError) and not isinstance(error, RecursionError | NotImplementedError):
        return CheckpointMismatch(
            f"The weights of {name} do not fit its config.json ({said}). Upload both files of the same model."
        )
    return UnsupportedModel(
        f"The package transformers cannot open {name} ({said}). Correct its config.json, or use an architecture that"
        " the package contains.",
        reasons=[f"model type {str(config.get('model_type'))[:100]}"],
    )


def _class_of(transformers: Any, config: dict[str, Any]) -> Any:
    """Return the class that the folder names. A model with a text tower is opened as its vision tower."""
    named = config.get("architectures") or [""]
    if not isinstance(named, list):
        raise InvalidRequest(
            f"In config.json, 'architectures' is {str(named)[:100]}. It must be a list with the name of a class. Use"
            " the file that transformers saved.",
            field="architectures",
        )
    architecture = str(named[0])
    kind = str(config.get("model_type"))
    own = getattr(transformers, architecture, None)
    if own is not None and not (isinstance(own, type) and issubclass(own, transformers.PreTrainedModel)):
        raise UnsupportedModel(
            f"In config.json, 'architectures' is {architecture[:100]!r}, which is no model of transformers. Use the"
            " file that transformers saved.",
            reasons=[f"architecture {architecture[:100]}"],
        )
    if kind in TOWERS and not architecture.endswith(("VisionModel", "WithProjection", "ForImageClassification")):
        return getattr(transformers, TOWERS[kind])
    return own if own is not None else getattr(transformers, TOWERS.get(kind, "AutoModel"))
