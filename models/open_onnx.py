"""Opens an ONNX file as a network that can be cut. No PyTorch model is needed."""

from pathlib import Path
from typing import Any

from models.graph.from_onnx import OnnxModel, read_onnx
from models.open_graph import open_graph
from models.preprocessing import Preprocessing
from models.torch_network import TorchNetwork

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FEATURES = ("hidden", "feature", "embed", "pool")
"""In the name of an output that is no logits."""


def open_onnx(file: Path, name: str, preprocessing: dict[str, Any] | None) -> TorchNetwork:
    """preprocessing: as in a model.json; without it what the file's metadata say, else ImageNet's.

    Raises: DamagedFile, UnsafeFile, UnsupportedModel, InvalidRequest.
    """
    model = read_onnx(file)
    classes = 0 if any(word in model.output.lower() for word in FEATURES) else model.outputs
    return open_graph(model.graph, name, _preprocessing(model, preprocessing), classes, model.batch, model.image)


def _preprocessing(model: OnnxModel, wanted: dict[str, Any] | None) -> Preprocessing:
    if wanted is not None:
        return Preprocessing.from_json(wanted)
    if any(key.startswith("preprocessing.") for key in model.metadata):
        return Preprocessing.from_metadata(model.metadata)
    mean, std = IMAGENET if model.image[0] == 3 else ((0.5,), (0.5,))
    return Preprocessing(size=model.image, mean=mean, std=std)
