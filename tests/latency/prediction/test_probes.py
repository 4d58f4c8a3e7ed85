"""Tests of the probes.

The probe plans fit their network and are the same each time. Together they cover everything that a method may remove.
"""

import dataclasses

import pytest

from latency.prediction.features import FEATURES, features
from latency.prediction.probes import COUNT, probe_plans
from models.loading.load_model import untrained
from models.structure import Op, Structure, TokenPlan, identity
from tests.support.families import SMALL, small_family
from tests.support.networks import images_for, small_network


def plain() -> Structure:
    return small_network(img_size=96, embed_dim=96).structure


def test_the_probes_touch_every_axis_and_every_reducer() -> None:
    structure = plain()
    plans = list(probe_plans(structure))
    assert len(plans) == COUNT and plans == list(probe_plans(structure))
    shapes = [plan.apply_to(structure) for plan in plans]
    blocks = [block for shape in shapes for block in shape.blocks]
    reductions = {(r.reducer, r.at, r.selector is not None) for b in blocks if (r := b.reduction)}
    assert {reducer for reducer, _, _ in reductions} == {"drop", "fuse", "weighted", "merge"}
    assert ("weighted", "start", True) in reductions
    assert any(b.attention is None for b in blocks) and any(b.mlp is None for b in blocks)
    assert any(b.attention and b.attention.inputs < b.width for b in blocks)
    assert len({shape.width for shape in shapes}) > 3
    for name in ("heads", "qk_dim", "v_dim"):
        assert len({getattr(b.attention, name) for b in blocks if b.attention}) > 1
    keeps = [shape.macs / structure.macs for shape in shapes]
    assert min(keeps) < 0.3 and max(keeps) > 0.6


@pytest.mark.parametrize("variant", SMALL)
def test_probes_fit_every_family(variant: str) -> None:
    network = small_family(variant)
    structure, images = network.structure, images_for(network, 1)
    for number, plan in enumerate(probe_plans(structure)):
        shape = plan.apply_to(structure)
        if number < 10:
            pruned = network.pruned(plan, None)
            assert pruned.structure == shape
            assert pruned.outputs(images).isfinite().all()


def test_probes_fit_a_graph_whose_tokens_are_free() -> None:
    network = untrained("eva02_tiny_patch14_224", depth=3, img_size=56)
    shapes = [plan.apply_to(network.structure) for plan in probe_plans(network.structure)]
    reducers = {block.reduction.reducer for shape in shapes for block in shape.blocks if block.reduction}
    assert reducers == {"drop", "fuse", "weighted"}


def test_probes_of_one_patch_are_plans_too() -> None:
    structure = small_network(img_size=16, patch_size=8).structure
    assert len([plan.apply_to(structure) for plan in probe_plans(structure)]) == COUNT


def test_probes_run() -> None:
    network = small_network(img_size=32, depth=3)
    images = images_for(network, 1)
    for plan in probe_plans(network.structure, 10):
        assert network.pruned(plan, None).outputs(images).isfinite().all()


def feature(structure: Structure, name: str) -> float:
    return float(features([structure])[0][FEATURES.index(name)])


def test_gathered_inputs_are_seen_and_rows_moved_whole_are_not() -> None:
    structure = plain()
    whole = identity(structure)
    some = tuple(range(0, 96, 2))
    first = dataclasses.replace(whole.blocks[0], fc1_inputs=some)
    gathered = dataclasses.replace(whole, blocks=(first, *whole.blocks[1:])).apply_to(structure)
    assert feature(gathered, "gathered_values") == structure.tokens * len(some)
    assert feature(structure, "gathered_values") == 0
    windows = small_family("swin").structure
    assert any(op.kind == "move" for op in windows.ops()) and feature(windows, "gathered_values") == 0


@pytest.mark.parametrize(
    ("tokens", "counted"),
    [
        (TokenPlan(20, "drop"), {}),
        (TokenPlan(20, "fuse"), {"packages": 1}),
        (TokenPlan(20, "weighted"), {"packages": 1, "weighings": 1}),
        (TokenPlan(20, "merge", score="similarity"), {"merges": 1}),
    ],
)
def test_each_reducer_has_its_price(tokens: TokenPlan, counted: dict[str, float]) -> None:
    structure = plain()
    whole = identity(structure)
    first = dataclasses.replace(whole.blocks[0], tokens=tokens)
    reduced = dataclasses.replace(whole, blocks=(first, *whole.blocks[1:])).apply_to(structure)
    assert feature(reduced, "reductions") == 1
    assert {n: feature(reduced, n) for n in ("packages", "weighings", "merges")} == {
        "packages": 0,
        "weighings": 0,
        "merges": 0,
        **counted,
    }
    assert (feature(reduced, "merge_macs") > 0) is ("merges" in counted)


def test_columns_are_computed_in_whole_registers() -> None:
    structure = plain()

    def of(cols: int) -> float:
        op = Op("matmul", "x", rows=10, inner=20, cols=cols)
        return feature(dataclasses.replace(structure, stem=(op,), stages=(), tail=()), "matmul_macs")

    assert of(17) == of(32) == 2 * of(16)


def test_a_block_is_the_sum_of_its_parts() -> None:
    """Pricing splits blocks into parts, so that it can remember more of them.

    Check that it counts each operation once.
    """
    structure = plain()
    for plan in probe_plans(structure, 12):
        shape = plan.apply_to(structure)
        for name, kinds in (("norm_values", ("norm",)), ("activation_values", ("activation",))):
            assert feature(shape, name) == sum(op.values for op in shape.ops() if op.kind in kinds)
        assert feature(shape, "operations") == len(list(shape.ops()))
        assert feature(shape, "weight_values") == sum(op.params for op in shape.ops() if op.kind in ("matmul", "conv"))
