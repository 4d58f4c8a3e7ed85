"""Read how a picture is prepared from the files that Hugging Face saves beside a model.

preprocessor_config.json and processor_config.json describe the image processor. Each of its steps is followed, or the
model is refused: a network that sees pictures in another form gives other answers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.data.preprocessing import Preprocessing
from models.errors import DamagedFile, InvalidRequest, TooLarge, VitfitError
from models.loading.size_limits import check_sizes

MOST_BYTES = 16 << 20
"""Size of the largest JSON file in a model folder. An index of shards has one line for each tensor."""
FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Names of Pillow's resampling filters, by the number that image processors store."""
BYTE = 1 / 255
APART = 0.1
"""Largest mean difference of a prepared picture from the processor's own, in the unit of the network's input."""
GIVE = 'Give the preprocessing yourself: --preprocessing \'{"size": ..., "mean": ..., "std": ...}\'.'


def processor_of(folder: Path) -> dict[str, Any]:
    """Return the configuration of the image processor in a folder; an empty one if there is none."""
    for name in FILES:
        if (folder / name).is_file():
            found = read_json(folder / name)
            inner = found.get("image_processor")
            return inner if isinstance(inner, dict) else found
    return {}


def preprocessing_of(folder: Path, config: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing that the image processor of a folder does.

    config: the content of the model's config.json; it gives the size if the processor does not. Without a processor,
    pictures are resized to this size, and mean and standard deviation are 0.5.

    Raises: DamagedFile; InvalidRequest for a step that vitfit cannot follow.
    """
    processor = processor_of(folder)
    check_sizes(config, "config.json", are_numbers=True)
    check_sizes(processor, "preprocessor_config.json", are_numbers=True)
    try:
        return _preprocessing(processor, config)
    except VitfitError:
        raise
    except Exception as error:  # a value of another type can fail anywhere
        raise InvalidRequest(
            "vitfit cannot read the preprocessing in preprocessor_config.json or config.json"
            f" ({type(error).__name__}: {str(error)[:200]}). A value has another type than transformers writes."
            f" {GIVE}",
        ) from error


def _preprocessing(processor: dict[str, Any], config: dict[str, Any]) -> Preprocessing:
    vision = config.get("vision_config") or config
    channels = int(vision.get("num_channels", 3))
    size, crop, center = _sizes(processor, vision)
    mean, std = _normalisation(processor, channels)
    return Preprocessing(
        size=(channels, *size),
        mean=mean,
        std=std,
        crop=crop,
        interpolation=RESAMPLING.get(processor.get("resample", 3), "bicubic"),
        crop_mode="center" if center else "squash",
        channel_order="bgr" if processor.get("do_flip_channel_order") else "rgb",
    )


def _sizes(processor: dict[str, Any], vision: dict[str, Any]) -> tuple[tuple[int, int], float, bool]:
    """Return (height, width), the share that the centre crop keeps, and whether the aspect ratio is kept."""
    side = vision.get("image_size", 224)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    size, crop = processor.get("size"), processor.get("crop_size")
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    crops = bool(processor.get("do_center_crop")) and crop is not None
    if crops and isinstance(crop, dict):
        height, width = crop["height"], crop["width"]
    elif isinstance(size, dict) and "height" in size:
        height, width = size["height"], size["width"]
    elif isinstance(shortest, int):
        height = width = shortest
    share = processor.get("crop_pct")
    if isinstance(share, int | float) and isinstance(shortest, int):  # ConvNeXt: resized to shortest / crop_pct
        return (shortest, shortest), float(share), True
    resized = size.get("height", shortest) if isinstance(size, dict) else shortest
    if crops and isinstance(resized, int):
        return (int(height), int(width)), min(1.0, height / resized), isinstance(shortest, int)
    return (int(height), int(width)), 1.0, False


def _normalisation(processor: dict[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for pixels in [0, 1].

    A processor multiplies pixels in [0, 255] by its factor first: (x f - mean) / std, with f = 1 / 255 in most cases.
    """
    mean, std = processor.get("image_mean") or [0.5] * channels, processor.get("image_std") or [0.5] * channels
    if processor and not processor.get("do_normalize", "image_mean" in processor):
        mean, std = [0.0] * channels, [1.0] * channels
    factor = processor.get("rescale_factor", BYTE) if processor.get("do_rescale", True) else 1.0
    scale = BYTE / float(factor)
    return tuple(value * scale for value in mean), tuple(value * scale for value in std)


def check_processor(folder: Path, preprocessing: Preprocessing) -> None:
    """Compare the preprocessing with that of the processor itself, on a picture.

    Raises: InvalidRequest when the two differ.
    """
    if not processor_of(folder):
        return
    picture = _picture(2 * max(preprocessing.size[1:]))
    expected = _prepared(folder, picture)
    if expected is None:
        return
    got = preprocessing.apply_to_picture(picture)
    apart = float((expected - got).abs().mean()) if expected.shape == got.shape else float("inf")
    if apart > APART:
        raise InvalidRequest(
            f"The image processor of the folder prepares a picture in another way than vitfit can: the results have the"
            f" shapes {tuple(expected.shape)} and {tuple(got.shape)}, and differ by {apart:.3g} on average (allowed:"
            f" {APART}). {GIVE}",
            processor=processor_of(folder).get("image_processor_type"),
        )


def _prepared(folder: Path, picture: Image.Image) -> Tensor | None:
    """Return what the processor of `transformers` makes of a picture; None if it knows no such processor."""
    import transformers

    try:
        processor = transformers.AutoImageProcessor.from_pretrained(  # a folder; no download  # nosec B615
            folder, local_files_only=True, trust_remote_code=False
        )  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError):
        return None
    except Exception as error:  # the configuration is untrusted, and its values may have any type
        raise _unusable(error) from error
    try:
        return torch.from_numpy(np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])).float()
    except Exception as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> InvalidRequest:
    return InvalidRequest(
        "transformers cannot use the image processor of the folder (preprocessor_config.json):"
        f" {type(error).__name__}: {str(error)[:200]}. {GIVE}"
    )


def _picture(side: int) -> Image.Image:
    """Return a picture with smooth colours, in which the four corners and the channels differ."""
    down, right = np.mgrid[0:side, 0:side] / max(side - 1, 1)
    channels = (down, right, 0.5 + 0.5 * np.sin(6 * down * right))
    return Image.fromarray((255 * np.stack(channels, -1)).astype(np.uint8))


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: DamagedFile; TooLarge."""
    if (size := file.stat().st_size if file.is_file() else 0) > MOST_BYTES:
        raise TooLarge(
            f"The file {file.name} has {size:,} bytes. The limit is {MOST_BYTES:,} bytes. Use the file that"
            " transformers saved.",
            bytes=size,
        )
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        why = "it is too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise DamagedFile(f"vitfit cannot read {file.name} ({why}). Upload the folder again.") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"The file {file.name} must hold a JSON object. Use the file that transformers saved.")
    return value
