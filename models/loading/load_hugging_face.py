"""Opens a Hugging Face folder (config.json, model.safetensors, preprocessor_config.json) with the `hugging-face` extra.

Nothing in the folder is executed: no remote code and no pickles. The hub is not contacted. Of CLIP and SigLIP, only the
vision tower is used.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.data.preprocessing import Preprocessing
from models.errors import CheckpointMismatch, DamagedFile, InvalidRequest, UnsafeFile, UnsupportedModel
from models.loading.load_graph import open_graph
from models.networks.network import Network

TOWERS = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Names of Pillow's resampling filters, by the number that image processors store."""


class Outputs(nn.Module):
    """Wraps a Hugging Face model: returns the logits of images; for a backbone, one feature vector for each image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(pixel_values=images)
        if getattr(found, "logits", None) is not None:
            logits: Tensor = found.logits
            return logits
        if getattr(found, "pooler_output", None) is not None:
            pooled: Tensor = found.pooler_output
            return pooled
        tokens: Tensor = found.last_hidden_state
        return tokens[:, 0]


def open_hugging_face(folder: Path, name: str, preprocessing: dict[str, Any] | None) -> Network:
    """Opens a Hugging Face folder. preprocessing: as in model.json; None: as the folder's image processor says.

    Raises: InvalidRequest without the extra; UnsafeFile for remote code or pickles; CheckpointMismatch, DamagedFile,
    UnsupportedModel.
    """
    config = _json(folder / "config.json")
    if "auto_map" in config:
        raise UnsafeFile(
            f"The config.json of {name} asks for code of its own (auto_map). vitfit never runs such code. Use an"
            " architecture that the package transformers contains."
        )
    if not any(folder.glob("*.safetensors")):
        raise UnsafeFile(
            f"The folder {name} holds no .safetensors file. vitfit does not read pickles of a Hugging Face folder."
            " Save the weights as safetensors."
        )
    model = _model(folder, name, config)
    wanted = Preprocessing.from_json(preprocessing) if preprocessing else preprocessing_of(folder, config)
    classes = int(model.config.num_labels) if "ForImageClassification" in type(model).__name__ else 0
    network = open_graph(Outputs(model), name, wanted, classes)
    if classes:
        labels = getattr(model.config, "id2label", None) or {}
        network = network.with_class_names(str(labels.get(i, i)) for i in range(classes))
    return network


def _model(folder: Path, name: str, config: dict[str, Any]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidRequest(
            f"The model {name} is a Hugging Face folder, but the package transformers, which reads it, is not"
            " installed. Install it: pip install 'transformers>=5'."
        ) from error
    architecture = str((config.get("architectures") or [""])[0])
    kind = TOWERS.get(str(config.get("model_type")), "AutoModel")
    if "ForImageClassification" in architecture:
        kind = "AutoModelForImageClassification"
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (ValueError, ImportError) as error:
        raise UnsupportedModel(
            f"The package transformers cannot open {name} ({str(error)[:300]}). Use an architecture that it contains.",
            reasons=[f"model type {config.get('model_type')}"],
        ) from error
    except (OSError, RuntimeError) as error:
        raise CheckpointMismatch(
            f"The weights of {name} do not fit its config.json ({str(error)[:300]}). Upload both files of the same"
            " model."
        ) from error
    wrong = [*info.get("missing_keys", ()), *(str(one) for one in info.get("mismatched_keys", ()))]
    if wrong:
        raise CheckpointMismatch(
            f"The weights of {name} do not fit its config.json. {len(wrong)} tensors are missing or have another shape"
            f" ({wrong[0]}, ...). Upload both files of the same model.",
            missing=list(map(str, wrong)),
        )
    return model.eval()


def preprocessing_of(folder: Path, config: dict[str, Any]) -> Preprocessing:
    """Reads the preprocessing from the folder's image processor.

    A size that it lacks is taken from the model's config.
    """
    file = folder / "preprocessor_config.json"
    processor = _json(file) if file.is_file() else {}
    vision = config.get("vision_config") or config
    side = vision.get("image_size", 224)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    size, crop = processor.get("size"), processor.get("crop_size")
    if isinstance(crop, dict) and processor.get("do_center_crop"):
        height, width = crop["height"], crop["width"]
    elif isinstance(size, dict) and "height" in size:
        height, width = size["height"], size["width"]
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    crops = bool(processor.get("do_center_crop")) and isinstance(shortest, int)
    channels = int(vision.get("num_channels", 3))
    return Preprocessing(
        size=(channels, int(height), int(width)),
        mean=tuple(processor.get("image_mean") or [0.5] * channels),
        std=tuple(processor.get("image_std") or [0.5] * channels),
        crop=min(1.0, height / shortest) if crops and shortest else 1.0,
        interpolation=RESAMPLING.get(processor.get("resample", 3), "bicubic"),
        crop_mode="center" if crops else "squash",
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DamagedFile(f"vitfit cannot read {file.name} ({str(error)[:200]}). Upload the folder again.") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"The file {file.name} must hold a JSON object. Use the file that transformers saved.")
    return value
