"""Opens an ONNX file as a network that can be pruned. It does not need the original PyTorch model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.data.preprocessing import Preprocessing
from models.errors import UnsupportedModel
from models.export.signature import Signature
from models.graph.network import GraphNetwork
from models.graph.onnx.proof import prove
from models.graph.onnx.reader import OnnxModel, read_onnx
from models.loading.image_processor import preprocessing_of, processor_of, read_json
from models.loading.load_graph import open_graph
from models.networks.network import Network

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SAME = 1e-3
FEATURES = ("hidden", "feature", "embed", "pool")
"""Words in the name of an output that mark it as features instead of logits."""


def open_onnx(
    file: Path, name: str, preprocessing: dict[str, Any] | None, outputs: Sequence[str] | None = None
) -> Network:
    """Open an ONNX file.

    preprocessing: as in model.json. None: it is read from the files of Hugging Face beside the file, or from the
    file's metadata. Without both, it is that of ImageNet. outputs: the names of the outputs to keep; None keeps all.

    Raises: DamagedFile, UnsafeFile, UnsupportedModel, InvalidRequest.
    """
    config = read_json(beside) if (beside := file.parent / "config.json").is_file() else {}
    described = Preprocessing.from_json(preprocessing) if preprocessing else _beside(file.parent, config)
    model = read_onnx(file, described.size if described else None, outputs)
    names = model.signature
    if is_features(names.judged_output):
        names = dataclasses.replace(names, scores="logits")
    classes = 0 if is_features(names.judged_output) else model.width
    network = open_graph(
        model.graph,
        name,
        described or _preprocessing(model),
        classes,
        batch=model.batch,
        image=model.image,
        signature=names,
    )
    if isinstance(network, GraphNetwork):  # a file opened as a plain transformer cannot mix images
        _check_images_apart(network)
    prove(file, model, network)
    labels = config.get("id2label")
    if isinstance(labels, dict) and len(labels) == classes:
        network = network.with_class_names(str(labels.get(str(i), i)) for i in range(classes))
    return network.with_assumptions(_assumptions(model, names, described is not None))


def is_features(output: str) -> bool:
    """Return whether the name of an output says that it holds features instead of logits."""
    return any(word in output.lower() for word in FEATURES)


def _assumptions(model: OnnxModel, names: Signature, is_described: bool) -> list[str]:
    said = []
    if not is_described and not _has_preprocessing(model):
        said.append(
            "Neither the ONNX file nor a file beside it says how to prepare a picture: vitfit uses the mean and the"
            " standard deviation of ImageNet. If this is wrong, give --preprocessing."
        )
    if len(names.outputs) > 1:
        said.append(
            f"The ONNX file has several outputs: {', '.join(names.outputs)}. vitfit delivers all of them, and judges"
            f" {names.judged_output!r}. With the option outputs you can keep fewer, and then vitfit can remove more."
        )
    if names.scores != "logits":
        said.append(
            f"The output {names.judged_output!r} of the ONNX file ends in a"
            f" {'softmax' if names.scores == 'probabilities' else 'sigmoid'}: vitfit judges these probabilities, and"
            " the delivered file gives them too."
        )
    if model.left_out:
        said.append(f"As asked, vitfit leaves out these outputs of the ONNX file: {', '.join(model.left_out)}.")
    return said


def _has_preprocessing(model: OnnxModel) -> bool:
    return any(key.startswith("preprocessing.") for key in model.metadata)


def _check_images_apart(network: Network) -> None:
    """Raises: UnsupportedModel for a file whose operators mix images.

    This happens if a file was exported for batch size 1 and its reshapes merge the batch axis and the token axis.
    """
    images = torch.randn(2, *network.structure.image, generator=torch.Generator().manual_seed(0))
    try:
        alone, together = network.outputs(images, 1), network.outputs(images, 2)
        mixes = bool((alone - together).abs().max() > SAME * alone.abs().max())
    except (RuntimeError, IndexError):  # sizes inside the file hold for one number of images only
        mixes = True
    if mixes:
        raise UnsupportedModel(
            "This ONNX file works only with one batch size. With another batch size, its operators mix the values of"
            " several images. Export the model with a free batch size (dynamic_axes). If vitfit made the file, upload"
            " model.dynamic.onnx instead.",
            reasons=["its operators mix images"],
        )


def _beside(folder: Path, config: dict[str, Any]) -> Preprocessing | None:
    """Return the preprocessing that the files of Hugging Face in the folder describe; None if they describe none."""
    is_described = processor_of(folder) or config.get("image_size") or config.get("vision_config")
    return preprocessing_of(folder, config) if is_described else None


def _preprocessing(model: OnnxModel) -> Preprocessing:
    if _has_preprocessing(model):
        return Preprocessing.from_metadata(model.metadata)
    mean, std = IMAGENET if model.image[0] == 3 else ((0.5,), (0.5,))
    return Preprocessing(size=model.image, mean=mean, std=std)
