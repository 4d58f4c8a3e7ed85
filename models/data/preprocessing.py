"""Preprocessing of pictures for the network: timm's evaluation transform as a frozen dataclass."""

import json
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from models.errors import BadData, InvalidRequest
from models.record import Record, later

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash")  # timm also has "border", which no plain vision transformer uses
CHANNEL_ORDERS = ("rgb", "bgr")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
MAX_SIDE = 4096
MAX_CROP = 2.0
MAX_RESIZED = 8192  # upper limit of size / crop: the shorter side before the crop, in pixels
MAX_ASPECT = 64  # upper limit for the longer side of a picture, divided by its shorter side


@dataclass(frozen=True)
class Preprocessing(Record):
    """Resize, crop and normalise, as timm's evaluation transform does.

    Attributes:
        size: (C, H, W) of the network's input.
        mean: mean of each channel, for pixel values in [0, 1].
        std: standard deviation of each channel, for pixel values in [0, 1]; above 0.
        crop: share of the resized shorter side that the centre crop keeps. Above 1 (timm's VOLO), a black
            border is added.
        interpolation: one of `INTERPOLATIONS`.
        crop_mode: "center" keeps the aspect ratio, "squash" resizes both sides before the crop.
        channel_order: "rgb", or "bgr" for networks that take blue first. mean and std are in the same order.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    channel_order: str = later("rgb")

    def __post_init__(self) -> None:
        """Check all values. Raises: InvalidRequest on a value that no network can have."""
        for problem in _problems(self):
            raise InvalidRequest(f"Preprocessing: {problem}", preprocessing=self.to_json())

    def apply(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Convert images, uint8 (N, h, w, c), to the network's input, float32 (N, C, H, W).

        Grey (c = 1) is converted to RGB, or RGB (c = 3) to grey, if the network needs it. Other channels are resized
        one by one; then c must be C.

        Raises: BadData if the array is not uint8 NHWC or the channels cannot be converted.
        """
        if images.dtype != np.uint8 or images.ndim != 4:
            raise BadData(
                f"The images have type {images.dtype} and {images.ndim} dimensions. They must have type uint8 and"
                " 4 dimensions (N, height, width, channels). Convert them.",
                dtype=str(images.dtype),
                shape=list(images.shape),
            )
        pictures = {images.shape[3], self.size[0]} <= {1, 3}
        if not pictures and images.shape[3] != self.size[0]:
            raise BadData(
                f"The images have {images.shape[3]} channels, and the model takes {self.size[0]}. vitfit converts only"
                " grey (1 channel) to RGB (3 channels) and back. Give images with the channels that the model takes.",
                channels=images.shape[3],
            )
        if not len(images):
            return torch.empty((0, *self.size))
        if pictures:
            return torch.stack([self.apply_to_picture(_picture(image)) for image in images])
        return torch.stack([self._normalised(self._each_channel(image)) for image in images])

    def apply_to_picture(self, picture: Image.Image) -> Tensor:
        """Convert one picture to the network's input, float32 (C, H, W). C must be 1 or 3.

        Of 16 bits, the upper 8 are used, as Pillow does it for pictures with three channels.

        Raises: BadData for a picture with 32 bits per pixel, because its value range is not known, and for a long
            narrow picture, because its resized version would be huge.
        """
        if picture.mode in SIXTEEN_BIT_MODES:
            picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
        if picture.mode not in EIGHT_BIT_MODES:
            raise BadData(
                f"A picture has pixels of mode {picture.mode!r}. vitfit reads pictures with 8 or 16 bits per channel."
                " Convert the picture to 8-bit grey or RGB.",
                mode=picture.mode,
            )
        pixels = self._cropped(picture.convert("L" if self.size[0] == 1 else "RGB"))
        if self.channel_order == "bgr":
            pixels = pixels[:, :, ::-1]
        return self._normalised(pixels)

    def _each_channel(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize and crop each channel of (h, w, C) by itself. Returns: uint8 (H, W, C)."""
        channels = [np.ascontiguousarray(image[:, :, channel]) for channel in range(image.shape[2])]
        return np.concatenate([self._cropped(Image.fromarray(channel)) for channel in channels], axis=2)

    def _cropped(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """Resize and crop a grey or RGB picture. Returns: uint8 (H, W, c)."""
        if max(picture.size) > MAX_ASPECT * min(picture.size):
            raise BadData(
                f"A picture has {picture.width} x {picture.height} pixels. Its longer side may be at most {MAX_ASPECT}"
                " times its shorter side. Crop the picture.",
                width=picture.width,
                height=picture.height,
            )
        _, height, width = self.size
        picture = picture.resize(self._resized(picture.size), INTERPOLATIONS[self.interpolation])
        left, top = _start(picture.width, width), _start(picture.height, height)
        picture = picture.crop((left, top, left + width, top + height))
        return np.asarray(picture, dtype=np.uint8).reshape(height, width, -1)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) before the crop, rounded in the same way as in timm and torchvision."""
        height, width = (math.floor(side / self.crop) for side in self.size[1:])
        if self.crop_mode == "squash":
            return width, height
        if width != height:  # timm.data.transforms.ResizeKeepRatio
            scale = min(size[0] / width, size[1] / height)
            return round(size[0] / scale), round(size[1] / scale)
        shorter = min(size)  # torchvision.transforms.Resize with one number
        return int(width * size[0] / shorter), int(width * size[1] / shorter)

    def _normalised(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Convert uint8 (H, W, C) to float32 (C, H, W) with this mean and standard deviation."""
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
        return (torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255 - mean) / std

    def to_metadata(self) -> dict[str, str]:
        """Return flat strings for the metadata of an ONNX file. `from_metadata` reads them back."""
        return {f"preprocessing.{name}": json.dumps(value) for name, value in self.to_json().items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "Preprocessing":
        """Read the preprocessing from the metadata of a file. Raises: InvalidRequest if they do not describe one."""
        prefix = "preprocessing."
        found = {name.removeprefix(prefix): text for name, text in metadata.items() if name.startswith(prefix)}
        try:
            return cls.from_json({name: json.loads(text) for name, text in found.items()})
        except (ValueError, TypeError) as error:
            raise InvalidRequest(
                f"The metadata of the file do not describe the preprocessing ({error}). Give the preprocessing with the"
                " model.",
                found=sorted(found),
            ) from error

    @classmethod
    def of_model(cls, model: nn.Module) -> "Preprocessing":
        """Read timm's configuration, for the channels and the image size with which this model was built.

        If the model has one channel and its configuration has three, mean and std are averaged over the channels. timm
        adapts the weights of the first convolution to one channel in a similar way.
        """
        config = cast(dict[str, Any], getattr(model, "pretrained_cfg", None) or {})
        channels, height, width = _input_size(model, config)
        return cls(
            size=(channels, height, width),
            mean=_per_channel(config.get("mean", (0.5,)), channels),
            std=_per_channel(config.get("std", (0.5,)), channels),
            crop=float(config.get("crop_pct") or 1.0),
            interpolation=str(config.get("interpolation") or "bicubic"),
            crop_mode=str(config.get("crop_mode") or "center"),
        )


def _problems(value: Preprocessing) -> list[str]:
    """Return the problems as sentences. Each names the value and what is allowed."""
    problems = []
    if len(value.size) != 3 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in value.size):
        return [f"size {list(value.size)} must be [channels, height, width], each from 1 to {MAX_SIDE}."]
    for name, numbers in (("mean", value.mean), ("std", value.std)):
        if len(numbers) != value.size[0] or not all(map(_is_finite, numbers)):
            problems.append(f"{name} {list(numbers)} must be {value.size[0]} finite numbers, one for each channel.")
    if not all(_is_finite(number) and number > 0 for number in value.std):
        problems.append(f"std {list(value.std)} must hold numbers above 0.")
    if not (_is_finite(value.crop) and 0 < value.crop <= MAX_CROP):
        problems.append(f"crop {value.crop} must be above 0 and at most {MAX_CROP:g}.")
    elif max(value.size[1:]) / value.crop > MAX_RESIZED:
        problems.append(
            f"size {list(value.size)} and crop {value.crop} make vitfit resize images to sides of more than"
            f" {MAX_RESIZED} pixels, which is the limit. Raise crop."
        )
    if value.interpolation not in INTERPOLATIONS:
        problems.append(f"interpolation {value.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}.")
    if value.channel_order not in CHANNEL_ORDERS:
        problems.append(f"channel_order is {value.channel_order!r}. Use one of: {', '.join(CHANNEL_ORDERS)}.")
    if value.crop_mode not in CROP_MODES:
        problems.append(f"crop_mode {value.crop_mode!r} must be one of {', '.join(CROP_MODES)}.")
    return problems


def _start(length: int, kept: int) -> int:
    """Return the first pixel of a centre crop, with torchvision's rounding.

    It is negative if the picture is smaller than the crop, so that a black border is added.
    """
    return round((length - kept) / 2.0) if length >= kept else -((kept - length) // 2)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _picture(image: npt.NDArray[np.uint8]) -> Image.Image:
    """Convert one image, (h, w, 1) or (h, w, 3), to a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))


def _input_size(model: nn.Module, config: dict[str, Any]) -> tuple[int, int, int]:
    """Return (C, H, W).

    The patch embedding knows the actual size of the model; the configuration only knows the default.
    """
    channels, height, width = config.get("input_size", (3, 224, 224))
    embedding = getattr(model, "patch_embed", None)
    height, width = getattr(embedding, "img_size", None) or (height, width)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = channels if first is None else first.in_channels
    return int(channels), int(height), int(width)


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) == channels:
        return numbers
    return (sum(numbers) / len(numbers),) * channels
