"""Tests of options that are read from the shapes of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import timm

from models.errors import CheckpointMismatch, InvalidRequest
from models.loading.build_for_checkpoint import build_for
from tests.support.checkpoints import NAME, OPTIONS, agrees, opened, vit

HEADS = {"num_heads": 3}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_classes": 0},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"in_chans": 1},
        {"mlp_ratio": 2.5},
    ],
    ids=str,
)
def test_all_sizes_are_read_from_the_shapes_and_said(tmp_path: Path, more: dict[str, Any]) -> None:
    model = vit(1, **more)
    network = opened(tmp_path, model.state_dict(), HEADS)
    assert agrees(network, model)
    (said,) = network.assumptions
    expected = {name: value for name, value in {**OPTIONS, **more}.items() if name != "num_heads"}
    assert all(f"{name} {value}" in said for name, value in expected.items())


def test_a_head_gives_the_number_of_classes(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=10)
    network = opened(tmp_path, model.state_dict(), {})
    assert agrees(network, model) and network.structure.classes == 10
    assert network.assumptions == (
        "Options that were not given are read from the shapes of the checkpoint's weights: num_classes 10.",
    )


def test_given_options_that_fit_are_not_said_again(tmp_path: Path) -> None:
    assert opened(tmp_path, vit(1).state_dict()).assumptions == ()


def test_norms_of_heads_tell_the_number_of_heads(tmp_path: Path) -> None:
    model = vit(1, qk_norm=True, num_heads=6)
    module: Any
    module, said = build_for(model.state_dict(), NAME, {"qk_norm": True})
    assert module.blocks[0].attn.num_heads == 6 and "num_heads 6" in said[0]


def test_a_number_of_heads_that_no_shape_tells_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"embed_dim 48 .* option num_heads .*1, 2, 3, 4, 6, 8"):
        opened(tmp_path, vit(1).state_dict(), {})


@pytest.mark.parametrize(
    ("wrong", "has"), [({"num_classes": 10}, 4), ({"img_size": 64}, 32), ({"depth": 1}, 2), ({"patch_size": 16}, 8)]
)
def test_a_contradiction_names_both_values(tmp_path: Path, wrong: dict[str, int], has: int) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(CheckpointMismatch, match=f"option {name} is {value}, but the checkpoint has {name} {has}"):
        opened(tmp_path, vit(1).state_dict(), {**OPTIONS, **wrong})


def test_a_hierarchical_model_tells_its_classes_but_not_its_image_size() -> None:
    name = "swin_tiny_patch4_window7_224"
    model = timm.create_model(name, num_classes=7)
    module: Any
    module, said = build_for(model.state_dict(), name, {})
    assert module.head.fc.out_features == 7 and said[0].endswith("num_classes 7.")
    other = timm.create_model(name, num_classes=7, img_size=112)
    with pytest.raises(CheckpointMismatch, match=r"relative_position_bias_table.*img_size"):
        build_for(other.state_dict(), name, {})
