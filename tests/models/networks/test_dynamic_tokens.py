"""Tests of the dynamic form, which keeps the tokens above a threshold, image by image.

The ONNX file agrees with PyTorch, and the structures count the operations that really run.
"""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.errors import InvalidRequest
from models.networks.dynamic_tokens import (
    DynamicNetwork,
    check_dynamic,
    export_dynamic,
    kept_distribution,
    run_dynamic,
    structure_of,
)
from models.networks.torch_network import TorchNetwork
from models.structure import Reducer
from models.training.masked_blocks import mask_tokens, selectors_of
from tests.models.pruning.test_token_selector import selecting
from tests.support.networks import VARIANTS, images_for, random_plan, small_network


def dynamic(variant: str = "class token", reducer: Reducer = "weighted", bias: float = 0.0) -> TorchNetwork:
    """Return a network whose selectors vote about half for and half against, so that images differ.

    bias > 0 keeps more tokens.
    """
    network = selecting(small_network(**VARIANTS[variant]), reducer)
    for selector in selectors_of(network.module):
        seen: list[Tensor] = []
        hook = selector.vote.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output.detach()))
        run_dynamic(network, images_for(network, 8, seed=5))
        hook.remove()
        margin = torch.cat([(votes[..., 0] - votes[..., 1]).flatten() for votes in seen]).median()
        with torch.no_grad():
            selector.vote.bias[0] += bias - margin
    return network


def over_threshold(scores: Tensor, present: Tensor, _kept: int) -> Tensor:
    """Choose every token above the threshold, and the best token in any case."""
    there = scores.masked_fill(present == 0, -1.0)
    return ((there >= 0.5) | (there == there.amax(dim=1, keepdim=True))).to(scores.dtype)


@pytest.mark.parametrize("variant", ["class token", "registers", "average pooling", "oblong"])
@pytest.mark.parametrize("reducer", ["weighted", "fuse", "drop"])
def test_it_gives_what_masking_by_the_threshold_gives(variant: str, reducer: Reducer) -> None:
    if (variant, reducer) == ("average pooling", "drop"):
        pytest.skip("cannot be masked")
    network, images = dynamic(variant, reducer), images_for(small_network(**VARIANTS[variant]), 6)
    logits, kept = run_dynamic(network, images)
    masked = mask_tokens(network, over_threshold)
    torch.testing.assert_close(logits, network.outputs(images), rtol=1e-3, atol=1e-4)
    assert masked.masks is not None
    assert kept.T.tolist() == [stage.sum(1).tolist() for stage in masked.masks.stages]
    assert len({tuple(row.tolist()) for row in kept}) > 1, "images should differ"


@pytest.mark.parametrize("variant", ["class token", "average pooling"])
@pytest.mark.parametrize("reducer", ["weighted", "drop"])
def test_the_file_agrees_image_by_image(variant: str, reducer: Reducer, tmp_path: Path) -> None:
    network = dynamic(variant, reducer)
    images, file = images_for(network, 12, seed=3), tmp_path / "model.dynamic-tokens.onnx"
    export_dynamic(network, file)
    parity = check_dynamic(network, file, images)
    assert parity.passed and parity.other_counts == 0 and parity.max_relative < 1e-4
    kept = kept_distribution(network, images)
    assert len({tuple(row.tolist()) for row in kept}) > 3
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert not operators & {"If", "Loop", "Scan", "ScatterND", "ScatterElements"}
    assert {node.domain for node in onnx.load(file).graph.node} <= {""}


@pytest.mark.parametrize(("bias", "expected"), [(1e4, [36, 36]), (-1e4, [1, 1])])
def test_all_tokens_may_stay_and_one_always_does(bias: float, expected: list[int], tmp_path: Path) -> None:
    """If no token is removed, there is no fused token, and the network equals the original.

    A file that was traced on one image handles both cases.
    """
    network = dynamic(bias=bias)
    images = images_for(network, 3)
    logits, kept = run_dynamic(network, images)
    assert kept.tolist() == [expected] * 3
    export_dynamic(network, tmp_path / "m.onnx")
    assert check_dynamic(network, tmp_path / "m.onnx", images).passed
    if bias > 0:
        torch.testing.assert_close(logits, small_network().outputs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reducer", ["weighted", "drop"])
def test_the_structure_of_an_image_counts_what_it_costs(reducer: Reducer) -> None:
    network, original = dynamic(reducer=reducer), small_network().structure
    assert network.plan is not None
    images, module = images_for(network, 4), DynamicNetwork(network)
    for image, kept in zip(images, kept_distribution(network, images), strict=True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(image.unsqueeze(0))
        assert structure_of(network.plan, original, kept.tolist()).macs == counter.get_total_flops() // 2


def test_an_image_that_keeps_everything_pays_for_its_selectors_and_no_package() -> None:
    network, original = dynamic(), small_network().structure
    assert network.plan is not None
    structure = structure_of(network.plan, original, [36, 36])
    assert [block.tokens_out for block in structure.blocks] == [37] * 4
    assert structure.macs > original.macs


def test_only_networks_with_selectors_have_a_dynamic_form() -> None:
    network = small_network()
    with pytest.raises(InvalidRequest, match="selectors"):
        DynamicNetwork(network.pruned(random_plan(network.structure, 1), None))
