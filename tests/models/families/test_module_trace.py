"""Tests of the trace of one image: what it finds, and the refusal of models that it does not explain."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from models.errors import UnsupportedModel
from models.families.module_trace import Call, op_of
from models.networks.torch_network import TorchNetwork
from models.structure import Structure
from tests.support.families import SMALL, small_family
from tests.support.networks import small_network


def test_weights_that_no_operation_explains_are_refused() -> None:
    network = small_family("pit")
    attention = network.module.get_submodule("transformers.0.blocks.0.attn")
    attention.register_parameter("gain", nn.Parameter(torch.ones(3)))
    with pytest.raises(UnsupportedModel, match="explains"):
        TorchNetwork(network.module, "pit", network.preprocessing)


def test_an_operation_with_weights_that_cannot_be_counted_is_refused() -> None:
    network = small_family("swin")
    network.module.get_submodule("layers.1.downsample").norm = nn.PReLU()
    with pytest.raises(UnsupportedModel, match=r"PReLU.*cannot count"):
        TorchNetwork(network.module, "swin", network.preprocessing)


def test_an_image_that_the_model_cannot_take_is_refused() -> None:
    network = small_family("pit")
    embedding: Any = network.module.get_submodule("patch_embed")
    embedding.img_size = (8, 8)
    with pytest.raises(UnsupportedModel, match="does not run"):
        TorchNetwork(network.module, "pit", network.preprocessing)


def test_a_convolution_of_groups_is_one_product_per_group() -> None:
    op = op_of(Call("conv", nn.Conv2d(6, 12, 3, groups=6), (1, 6, 8, 8), (1, 12, 4, 4)), "conv")
    assert op is not None
    assert (op.macs, op.params) == (12 * 16 * 9, 12 * 9 + 12)


def test_tokens_windows_and_keys_are_read() -> None:
    pvt, swin = small_family("pvt_v2").structure, small_family("swin, padded windows").structure
    assert [b.tokens for b in pvt.blocks] == [256, 64, 64, 16, 4, 4]
    assert [b.attention.keys for b in pvt.blocks] == [4, 4, 4, 4, None, None]  # type: ignore[union-attr]
    found = [(b.attention.windows, b.attention.window) for b in swin.blocks[::2]]  # type: ignore[union-attr]
    assert found == [(9, 49), (4, 49), (1, None)]  # 7 x 7 windows: padded on 18 x 18 and 9 x 9, one on 5 x 5


@pytest.mark.parametrize("variant", SMALL)
def test_structures_survive_json(variant: str) -> None:
    structure = small_family(variant).structure
    again = Structure.from_json(json.loads(json.dumps(structure.to_json())))
    assert again == structure and again.key == structure.key


def test_a_plain_structure_has_the_key_that_it_had_before_there_were_stages() -> None:
    """Stored trials and tables use these keys."""
    structure = small_network().structure
    assert "fixed" not in structure.to_json()
    assert not {"layers", "window", "table", "reduction"} & set(
        structure.to_json()["stages"][0]["blocks"][0]["attention"]
    )


def test_no_hook_is_left_behind() -> None:
    module = small_family("swin").module
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
