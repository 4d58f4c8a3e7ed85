"""Check that preprocessing equals timm's evaluation transform, and that it refuses what it cannot do."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from models.data.preprocessing import Preprocessing
from models.errors import BadData, InvalidRequest

RGB = Preprocessing(size=(3, 32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), crop=0.9)
GREY = Preprocessing(size=(1, 32, 32), mean=(0.5,), std=(0.5,))


def pixels(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (8, 8), (45, 45), (37, 90), (90, 37), (33, 61)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop": 1.0},
        {"crop": 1.15},
        {"size": (3, 32, 48), "crop": 1.3},
        {"crop_mode": "squash"},
        {"interpolation": "bilinear"},
        {"size": (3, 32, 48)},
        {"size": (3, 48, 32), "crop": 0.875},
    ],
)
def test_equals_timms_evaluation_transform(shape: tuple[int, int], changes: dict[str, Any]) -> None:
    preprocessing = dataclasses.replace(RGB, **changes)
    transform = create_transform(
        preprocessing.size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop,
        crop_mode=preprocessing.crop_mode,
    )
    images = pixels(*shape, 3)
    expected = torch.stack([transform(Image.fromarray(image)) for image in images])
    torch.testing.assert_close(preprocessing.apply(images), expected, rtol=0, atol=1e-6)


def test_grey_becomes_three_equal_channels() -> None:
    even = dataclasses.replace(RGB, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = pixels(40, 40, 1)
    result = even.apply(images)
    assert result.shape == (2, 3, 32, 32)
    assert torch.equal(result[:, 0], result[:, 2])
    assert torch.equal(result, even.apply(images.repeat(3, axis=3)))


def test_colour_becomes_luma() -> None:
    red = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert GREY.apply(red).unique().tolist() == pytest.approx([(76 / 255 - 0.5) / 0.5])  # ITU-R 601: 0.299 of red


def test_no_images_give_an_empty_batch() -> None:
    assert GREY.apply(np.zeros((0, 8, 8, 1), dtype=np.uint8)).shape == (0, 1, 32, 32)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 8, 8, 1), dtype=np.float32), "float32"),
        (np.zeros((8, 8, 1), dtype=np.uint8), "3 dimensions"),
        (np.zeros((1, 8, 8, 4), dtype=np.uint8), "4 channels"),
        (np.zeros((1, 1, 65, 1), dtype=np.uint8), "at most 64 times"),
    ],
)
def test_refuses_what_is_no_picture(images: np.ndarray, words: str) -> None:
    with pytest.raises(BadData, match=words):
        GREY.apply(images)


def test_refuses_pictures_whose_range_is_unknown() -> None:
    deep = Image.fromarray(np.full((8, 8), 60000, dtype=np.int32))
    with pytest.raises(BadData, match="8 or 16 bits"):
        GREY.apply_to_picture(deep)


def test_six_channels_are_resized_one_by_one() -> None:
    six = Preprocessing((6, 32, 32), (0.5,) * 6, (0.25,) * 6)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 6), dtype=np.uint8)
    prepared = six.apply(images)
    for channel in range(6):
        grey = Preprocessing((1, 32, 32), (0.5,), (0.25,)).apply(images[:, :, :, channel : channel + 1])
        torch.testing.assert_close(prepared[:, channel : channel + 1], grey)
    with pytest.raises(BadData, match="3 channels, and the model takes 6"):
        six.apply(images[:, :, :, :3])


def test_of_model_follows_the_model_not_only_its_configuration() -> None:
    digits = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, in_chans=1, depth=1)
    assert Preprocessing.of_model(digits) == Preprocessing((1, 64, 64), (0.5,), (0.5,), 0.9, "bicubic")
    deit = timm.create_model("deit_tiny_patch16_224", depth=1)
    found = Preprocessing.of_model(deit)
    assert (found.size, found.mean) == ((3, 224, 224), (0.485, 0.456, 0.406))
    clip: Any = timm.create_model("vit_base_patch16_siglip_224", depth=1, embed_dim=48, num_heads=4)
    assert Preprocessing.of_model(clip).crop_mode == clip.pretrained_cfg["crop_mode"]


def test_one_channel_model_gets_the_average_of_three() -> None:
    model = timm.create_model("deit_tiny_patch16_224", depth=1, in_chans=1)
    assert Preprocessing.of_model(model).mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))


def test_metadata_are_flat_strings_and_come_back() -> None:
    metadata = RGB.to_metadata()
    assert json.loads(metadata["preprocessing.size"]) == [3, 32, 32]
    assert all(isinstance(value, str) for value in metadata.values())
    assert Preprocessing.from_metadata(metadata | {"author": "someone"}) == RGB
    with pytest.raises(InvalidRequest, match="metadata"):
        Preprocessing.from_metadata({"author": "someone"})


def test_json_without_a_crop_mode_is_read() -> None:
    value = {"size": [1, 32, 32], "mean": [0.5], "std": [0.5], "crop": 1.0, "interpolation": "bicubic"}
    assert Preprocessing.from_json(value) == GREY


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (1, 0, 32)}, "size"),
        ({"size": (1, 32, 10**6)}, "size"),
        ({"size": (1, 32.5, 32)}, "size"),
        ({"size": (0, 32, 32), "mean": (), "std": ()}, "size"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (float("nan"),)}, "mean"),
        ({"mean": ("half",)}, "mean"),
        ({"std": (0.0,)}, "std"),
        ({"crop": 0.0}, "crop"),
        ({"crop": 1e-320}, "crop"),
        ({"crop": 2.1}, "crop"),
        ({"interpolation": "magic"}, "interpolation"),
        ({"crop_mode": "border"}, "crop_mode"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        dataclasses.replace(GREY, **changes)
