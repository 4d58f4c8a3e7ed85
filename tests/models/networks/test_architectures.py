"""Whole paths of known architectures with random weights: all axes at once, through prune, recover, export and parity.

The MACs and parameters of the structure are those that torch counts, and those of the file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from models.data.preprocessing import Preprocessing
from models.export.onnx_export import compare_outputs, run_onnx
from models.loading.load_hugging_face import open_hugging_face
from models.loading.load_model import network_of
from models.loading.load_onnx import open_onnx
from models.networks.network import Network
from models.structure import Plan
from search.criteria import rank
from search.criteria.rotated import with_bases
from search.methods import METHODS
from search.spaces.compact import CompactSpace
from tests.support.counted import differs, macs_in_file
from tests.support.networks import images_for

pytestmark = pytest.mark.slow

NAMES = (
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_siglip_224",
    "eva02_tiny_patch14_224",
    "pvt_v2_b1",
    "swin_tiny_patch4_window7_224",
)
IMAGES = 6


def shaken(module: nn.Module) -> nn.Module:
    """Return a module with random weights that are large enough to make every part matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def of_timm(name: str) -> Network:
    options: dict[str, Any] = {"img_size": 224} if "dinov2" in name else {}
    module = shaken(timm.create_model(name, **options))
    return network_of(module, name, Preprocessing.of_model(module))


def of_onnx(folder: Path) -> Network:
    file = folder / "deit.onnx"
    of_timm("deit_small_patch16_224").export(file, None)
    return open_onnx(file, "deit.onnx", None)


def of_hugging_face(folder: Path) -> Network:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=224, patch_size=14
    )
    model = transformers.Dinov2Model(config)
    shaken(model)
    model.save_pretrained(folder / "dinov2")
    return open_hugging_face(folder / "dinov2", "dinov2", None)


def all_axes(network: Network, folder: Path) -> None:
    """Cut every axis of a network at once, recover it, and compare it with its file and with torch's counts."""
    images = images_for(network, IMAGES)
    bases = network.bases(images)
    source = network if bases is None else network.rotated(bases)
    statistics = source.statistics(images, source.input_kinds if bases is not None and bases.streams else ())
    ranking = with_bases(rank("reconstruction", source.weights(), statistics), bases)
    space = CompactSpace(source.structure, ranking, METHODS["joint"].axes)
    plan: Plan = space.plan(space.along([1.0] * len(space.dimensions), 0.5))
    small = source.pruned(plan, statistics)
    assert small.structure.macs < 0.7 * network.structure.macs
    assert differs(small, small.module) == []
    file = folder / "small.onnx"
    small.export(file, 1)
    assert macs_in_file(file) == small.structure.macs
    found = compare_outputs(small.outputs(images), run_onnx(file, images, 1))
    assert found.max_relative < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_all_axes_of_timm_s_networks(name: str, tmp_path: Path) -> None:
    all_axes(of_timm(name), tmp_path)


@pytest.mark.parametrize("make", [of_onnx, of_hugging_face])
def test_all_axes_of_files(make: Callable[[Path], Network], tmp_path: Path) -> None:
    all_axes(make(tmp_path), tmp_path)
