"""Tests of the widths of stages: in a rotated basis each stream is cut by itself, where its stage allows it."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import InvalidRequest
from models.export.onnx_export import compare_outputs, run_onnx
from models.families.family import part
from models.families.stream_parts import free_streams
from models.networks.torch_network import TorchNetwork
from models.rotation.bases import bases_from
from models.statistics.statistics import to_tensors
from models.structure import Plan, identity
from search.criteria import rank
from search.criteria.rotated import with_bases
from search.methods import METHODS
from search.spaces.compact import CompactSpace
from service.pipeline.job_report import rotation_remarks
from tests.models.rotation.test_rotate import apart
from tests.support.counted import differs, macs_in_file
from tests.support.families import small_family
from tests.support.networks import images_for

KEPT = {
    "pvt_v2": (5, 11, 24, 17),
    "pvt_v2, oblong image": (8, 9, 13, 32),
    "pvt_v2, linear": (6, 16, 10, 20),
    "pit": (23,),
    "pit, distilled": (40,),
    "swin": (29,),
}
"""The width that is kept of each stream that can be cut."""


def in_float64(variant: str, **given: Any) -> TorchNetwork:
    network = small_family(variant, **given)
    return network.with_module(network.module.double())


def turned(network: TorchNetwork, count: int = 8) -> TorchNetwork:
    images = images_for(network, count, seed=1).to(next(network.module.parameters()))
    bases = network.bases(images)
    assert bases is not None
    return network.rotated(bases)


def narrowed(network: TorchNetwork, widths: tuple[int, ...]) -> Plan:
    """Return the plan that keeps the first dims of each stream, and everything else."""
    pairs = zip(network.structure.stream_dims, widths, strict=True)
    assert network.rotation is not None
    embed = tuple(dim for dims, width in pairs for dim in dims[:width])
    return dataclasses.replace(identity(network.structure), embed=embed, rotated=network.rotation.axes)


def projecting(projector: Tensor, channels_first: bool) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def project(_module: nn.Module, _inputs: object, x: Tensor) -> Tensor:
        return (x.movedim(1, -1) @ projector).movedim(-1, 1) if channels_first else x @ projector

    return project


@pytest.mark.parametrize("variant", KEPT)
def test_a_cut_width_is_a_projection_of_the_original(variant: str) -> None:
    """Everything that is added to a stream is projected; norms and readers of the original stay as they are."""
    network = in_float64(variant)
    rotated = turned(network)
    assert rotated.rotation is not None
    module = copy.deepcopy(network.module)
    streams = free_streams(module, network.family)
    for stream, basis, width in zip(streams, rotated.rotation.streams, KEPT[variant], strict=True):
        kept = basis.directions[:, : width - 1]
        for path in (*stream.starts, *stream.writers):
            layer = part(module, path)
            layer.register_forward_hook(projecting(kept @ kept.T, isinstance(layer, nn.Conv2d)))
    images = images_for(network, 3).double()
    cut = rotated.pruned(narrowed(rotated, KEPT[variant]), None)
    with torch.no_grad():
        wanted = module(images)
    assert apart(cut.outputs(images), wanted) < 1e-9
    assert apart(cut.outputs(images), network.outputs(images)) > 1e-3
    widths = [cut.structure.blocks[first].width for first in rotated.structure.first_blocks]
    free = [stage.stream is not None for stage in rotated.structure.stages]
    assert tuple(width for width, is_free in zip(widths, free, strict=True) if is_free) == KEPT[variant]
    assert cut.structure.macs < rotated.structure.macs
    assert differs(cut, cut.module.float()) == []


@pytest.mark.parametrize("variant", ["pvt_v2", "pit", "swin"])
def test_a_planted_narrow_stream_is_found(variant: str) -> None:
    """Nothing writes to all but 5 of the dims of the last stage: a width of 6 holds all of it."""
    network = in_float64(variant)
    stream = free_streams(network.module, network.family)[-1]
    with torch.no_grad():
        for path in (*stream.starts, *stream.writers):
            for tensor in part(network.module, path).parameters():
                tensor[5:] = 0
    rotated = turned(network)
    assert rotated.rotation is not None
    energies = rotated.rotation.streams[-1].energies
    assert bool((energies[5:] < 1e-12 * energies[0]).all()) and not bool((energies[:5] < 1e-6 * energies[0]).any())
    images = images_for(network, 3).double()
    widths = (*(len(dims) for dims in rotated.structure.stream_dims[:-1]), 6)
    assert apart(rotated.pruned(narrowed(rotated, widths), None).outputs(images), network.outputs(images)) < 1e-9


@pytest.mark.parametrize("variant", ["pvt_v2", "pit", "swin"])
def test_features_come_back_in_their_original_number(variant: str) -> None:
    network = in_float64(variant, num_classes=0)
    rotated = turned(network)
    images = images_for(network, 3).double()
    assert apart(rotated.outputs(images), network.outputs(images)) < 1e-9
    cut = rotated.pruned(narrowed(rotated, KEPT[variant]), None)
    assert cut.outputs(images).shape == network.outputs(images).shape
    assert cut.structure.classes == 0 and differs(cut, cut.module.float()) == []


@pytest.mark.parametrize("variant", ["pvt_v2", "pvt_v2, linear", "pit", "swin"])
def test_all_axes_at_once(variant: str, tmp_path: Path) -> None:
    network = small_family(variant)
    rotated, images = turned(network), images_for(network, 8, seed=1)
    statistics = rotated.statistics(images, rotated.input_kinds)
    ranking = with_bases(rank("reconstruction", rotated.weights(), statistics), rotated.rotation)
    space = CompactSpace(rotated.structure, ranking, METHODS["joint"].axes)
    plan = space.plan(space.along([1.0] * len(space.dimensions), 0.6))
    assert plan == Plan.from_json(plan.to_json()) and "embed" in plan.rotated
    small = rotated.pruned(plan, statistics)
    assert small.structure.macs < 0.75 * network.structure.macs
    assert len(plan.embed) < rotated.structure.stream_dims[-1].stop
    assert differs(small, small.module) == []
    file = tmp_path / "small.onnx"
    small.export(file, 1)
    if not small.reductions():  # a fused token is a product in the file
        assert macs_in_file(file) == small.structure.macs
    assert compare_outputs(small.outputs(images), run_onnx(file, images, 1)).max_relative < 1e-5


def test_each_stage_has_a_dimension_in_the_search() -> None:
    rotated = turned(small_family("pvt_v2"))
    ranking = with_bases(rank("magnitude", rotated.weights(), None), rotated.rotation)
    space = CompactSpace(rotated.structure, ranking, METHODS["joint"].axes)
    names = [f"embed{stage}" for stage in range(4)]
    assert [name for name in space.dimensions if name.startswith("embed")] == names
    only_third = space.along([float(name == "embed2") for name in space.dimensions], 1.0)
    assert only_third.embed_by_stage == (1.0, 1.0, 0.25, 1.0)
    plan = space.plan(only_third)
    assert [len(kept) for kept in plan.embed_of_stages(rotated.structure)] == [8, 16, 8, 32]
    assert plan.apply_to(rotated.structure) == space.sketch(only_third)
    again = space.by_block(only_third)
    assert again is not None and again.with_shares(again.shares) == again and again.shares["embed2"] == 0.25
    assert space.plan(again) == plan


def test_recovery_fits_the_readers_of_a_narrower_stage() -> None:
    """With the moments of what they read, q/k/v and fc1 come nearer to what they computed before."""
    for variant, widths in (("pvt_v2", (8, 16, 24, 20)), ("swin", (40,))):
        network = in_float64(variant)
        rotated, images = turned(network, 24), images_for(network, 24, seed=1).double()
        plan = narrowed(rotated, widths)
        fitted, bare = (rotated.pruned(plan, rotated.statistics(images, kinds)) for kinds in (rotated.input_kinds, ()))
        found = [apart_on_average(one.outputs(images), network.outputs(images)) for one in (fitted, bare)]
        assert found[0] < found[1]


def apart_on_average(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_a_plan_without_widths_keeps_all_of_them() -> None:
    """Plans from before the widths of stages could be cut name no embedding dims."""
    rotated = turned(in_float64("pvt_v2"))
    images = images_for(rotated, 3).double()
    old = dataclasses.replace(identity(rotated.structure), embed=(), rotated=("qk", "v"))
    assert old.apply_to(rotated.structure).macs == rotated.structure.macs
    assert apart(rotated.pruned(old, None).outputs(images), rotated.outputs(images)) < 1e-9


def test_a_plan_must_keep_a_part_of_each_stage() -> None:
    rotated = turned(small_family("pvt_v2"))
    whole = identity(rotated.structure)
    with pytest.raises(InvalidRequest, match="none of the embedding dims 8 to 23"):
        dataclasses.replace(whole, embed=tuple(range(8))).apply_to(rotated.structure)


def test_bases_of_older_jobs_are_read() -> None:
    rotated = turned(small_family("swin"))
    assert rotated.rotation is not None
    flat = {name.replace("streams.0.", "stream."): tensor for name, tensor in to_tensors(rotated.rotation).items()}
    found = bases_from(flat)
    assert torch.equal(found.streams[0].directions, rotated.rotation.streams[0].directions)


def test_the_report_names_stages_whose_width_is_fixed() -> None:
    assert rotation_remarks(small_family("pvt_v2")) == []
    (pit,) = rotation_remarks(small_family("pit"))
    reason = "the pooling behind the stage reads each embedding dim by itself"
    assert pit == (
        f"The width of these stages is fixed (transformers.0.blocks: {reason}; transformers.1.blocks: {reason})."
    )
    heads, widths = rotation_remarks(small_family("swin"))
    assert heads.startswith("These axes are not in rotated bases (q/k dims: ")
    assert widths.count("the patch merging behind the stage normalises four tokens together") == 2


def test_padded_windows_keep_the_width() -> None:
    """The padding of a window is behind the norm, so the bias of the norm is not in it."""
    network = small_family("swin", img_size=96, window_size=5)
    assert network.fixed_stages["layers.2.blocks"] == "the windows of the stage are padded after the norm"
    assert network.rotatable == ()
