"""Tests of the attention statistics.

They compare them with the model's own attention, and with attention that is planted on the grid.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.pruning.token_reducers import strongest_attention
from models.statistics.attention_statistics import AttentionSums, near
from models.statistics.statistics import Statistics, from_tensors, to_tensors
from tests.support.networks import VARIANTS, images_for, small_network


def own_attention(module: Any, images: Tensor) -> list[Tensor]:
    """Return the attention by which timm's unfused attention itself multiplies the values, for each block.

    This path is independent of vitfit's statistics.
    """
    seen = []
    for block in module.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        module(images)
    return seen


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_head_scores_are_those_of_the_models_own_attention(options: dict[str, Any]) -> None:
    """Check several batches, q/k norms, and several prefix tokens or none."""
    network = small_network(depth=2, **options)
    images = images_for(network, 20)
    found = network.statistics(images, {"attention"})
    expected = own_attention(network.module, images)
    for block, attention in zip(found.blocks, expected, strict=True):
        assert block.attention is not None
        scores = attention[..., network.structure.prefix :].amax(2).sum(2).mean(0).double()
        torch.testing.assert_close(block.attention.heads, scores, rtol=1e-4, atol=1e-6)
        tokens = strongest_attention(attention, slice(network.structure.prefix, None)).sum(1).mean()
        assert float(block.attention.heads.sum()) == pytest.approx(float(tokens), rel=1e-4)


def attention_to(targets: Tensor, prefix: int = 1) -> Tensor:
    """Return the attention of one head in which each patch query looks at one patch.

    All queries look at the prefix most. targets (M,): the patch for each query.
    """
    patches = len(targets)
    logits = torch.zeros(1, 1, prefix + patches, prefix + patches)
    logits[..., :prefix] = 5.0
    logits[0, 0, prefix + torch.arange(patches), prefix + targets] = 2.0
    return torch.softmax(logits, -1)


def local_share(targets: Tensor, grid: tuple[int, int]) -> float:
    sums = AttentionSums(near(grid), 1)
    sums.add(attention_to(targets))
    return float(sums.statistics().local)


def test_the_range_is_one_for_neighbours_and_nothing_for_far_patches() -> None:
    here = torch.arange(196)
    assert local_share(here, (14, 14)) == 1.0
    below = torch.where(here + 14 < 196, here + 14, here - 14)
    assert local_share(below, (14, 14)) == 1.0, "one row away is near, though 14 places away along the flattened grid"
    assert local_share((here + 98) % 196, (14, 14)) == 0.0
    half = torch.where(here % 2 == 0, here, (here + 98) % 196)
    assert local_share(half, (14, 14)) == pytest.approx(0.5)


def test_the_ends_of_two_rows_are_far_apart() -> None:
    """The last patch of a row and the first patch of the next row are neighbours only in the flattened grid."""
    close = near((14, 14))
    assert not close[13, 14] and close[0, 14] and close[0, 15]
    assert int(close[7 * 14 + 7].sum()) == 21


def test_a_short_distance_grows_with_the_grid_and_reaches_the_next_patch() -> None:
    assert int(near((4, 4))[5].sum()) == 5
    assert int(near((28, 28))[14 * 28 + 14].sum()) > 60
    assert near((2, 12)).shape == (24, 24) and bool(near((2, 12))[0, 12])


def test_attention_statistics_are_taken_on_request_and_stored() -> None:
    network = small_network(depth=2)
    images = images_for(network, 4)
    assert network.statistics(images).blocks[0].attention is None
    found = network.statistics(images, {"attention"})
    restored = from_tensors(Statistics, to_tensors(found))
    for before, after in zip(found.blocks, restored.blocks, strict=True):
        assert before.attention is not None and after.attention is not None
        assert torch.equal(before.attention.heads, after.attention.heads)
        assert 0 <= float(after.attention.local) <= 1 and after.dependence is None
