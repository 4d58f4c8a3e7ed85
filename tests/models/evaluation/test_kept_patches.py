"""Tests of the kept patches that people see.

Their indices refer to the unreduced grid, also when earlier blocks removed tokens.
"""

import dataclasses
import io

import pytest
import torch
from PIL import Image

from models.data.preprocessing import Preprocessing
from models.evaluation.kept_patches import grid_of, kept_patches, thumbnail
from models.networks.torch_network import TorchNetwork
from models.structure import Reducer, TokenPlan, identity
from tests.support.networks import images_for, small_network


def reduced(*kept: int, reducer: Reducer = "drop") -> TorchNetwork:
    """Return a small network (16 patches) that keeps `kept` patches, one number for each of its first blocks."""
    network = small_network(img_size=32, depth=3)
    whole = identity(network.structure)
    blocks = [dataclasses.replace(b, tokens=TokenPlan(k, reducer)) for b, k in zip(whole.blocks, kept, strict=False)]
    return network.pruned(dataclasses.replace(whole, blocks=(*blocks, *whole.blocks[len(kept) :])), None)


@pytest.mark.parametrize("reducer", ["drop", "fuse"])
def test_places_are_of_the_whole_grid_after_every_block(reducer: Reducer) -> None:
    network = reduced(9, 4, reducer=reducer)
    images = images_for(network, 5)
    first, second = kept_patches(network, images)
    assert (first.block, second.block) == (0, 1)
    assert first.places.shape == (5, 9) and second.places.shape == (5, 4)
    for early, late in zip(first.places.tolist(), second.places.tolist(), strict=True):
        assert set(late) < set(early) <= set(range(16)) and early == sorted(early) and late == sorted(late)
    assert len({tuple(row) for row in first.places.tolist()}) > 1, "each image keeps its own"


def test_they_are_those_that_the_forward_pass_gathers() -> None:
    """The tokens carry their index through blocks that do nothing. The tokens at the end must be the kept patches."""
    network = reduced(9, 4)
    blocks = network.pruned_blocks()
    for block in blocks:
        block.after1 = block.after2 = Nothing()
    images, seen = images_for(network, 5), []
    handle = blocks[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    *_, last = kept_patches(network, images)
    handle.remove()
    before, after = seen
    for image, places in enumerate(last.places):
        kept = before[image, 1:][places]
        assert {tuple(row) for row in kept.tolist()} == {tuple(row) for row in after[image, 1:].tolist()}


class Nothing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def test_a_network_that_removes_no_tokens_has_nothing_to_tell() -> None:
    network = reduced()
    assert kept_patches(network, images_for(network, 2)) == []


def test_asking_leaves_the_network_as_it_was() -> None:
    network = reduced(9)
    before = network.outputs(images_for(network, 2))
    found = [kept_patches(network, images_for(network, 2)) for _ in range(2)]
    assert [len(one) for one in found] == [len(network.reductions())] * 2
    assert torch.equal(network.outputs(images_for(network, 2)), before)


@pytest.mark.parametrize(
    ("patches", "image", "grid"),
    [(64, (1, 64, 64), (8, 8)), (196, (3, 224, 224), (14, 14)), (8, (3, 32, 64), (2, 4)), (8, (3, 64, 32), (4, 2))],
)
def test_the_grid_has_the_shape_of_the_image(patches: int, image: tuple[int, int, int], grid: tuple[int, int]) -> None:
    assert grid_of(patches, image) == grid


@pytest.mark.parametrize("channels", [1, 3])
def test_a_thumbnail_is_the_picture_before_it_was_normalised(channels: int) -> None:
    preprocessing = Preprocessing((channels, 100, 200), (0.4,) * channels, (0.2,) * channels)
    pixels = torch.full((channels, 100, 200), 0.6)
    picture = Image.open(io.BytesIO(thumbnail((pixels - 0.4) / 0.2, preprocessing)))
    assert picture.format == "PNG" and picture.size == (64, 32) and picture.mode == ("L" if channels == 1 else "RGB")
    assert picture.convert("L").getpixel((30, 10)) == 153
