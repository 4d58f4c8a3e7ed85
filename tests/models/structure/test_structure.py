"""Check that MACs and parameters are exact.

The tests compare them with torch's own counter, and with the published policies of a paper.
"""

import dataclasses
import json
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.errors import InvalidRequest
from models.families import family_of
from models.families.describe import describe
from models.structure import HeadPlan, Plan, Reducer, Structure, TokenPlan, identity
from tests.support.networks import VARIANTS, random_plan, small_network

# The two policies that MDC (arXiv 2201.00043) found and published, after truncation.
# For each block: tokens before and after the reduction, heads, neurons. For all blocks: MACs without and with the fused
# token.
MDC = {
    "deit_small_patch16_224": (
        [
            (197, 197, 5, 1348), (197, 197, 5, 1533), (197, 197, 5, 1517), (197, 100, 4, 782), (100, 100, 5, 1376),
            (100, 100, 5, 1032), (100, 51, 5, 1505), (51, 51, 5, 1130), (51, 51, 4, 1498), (51, 26, 5, 964),
            (26, 26, 5, 1016), (26, 26, 5, 1037),
        ],
        1862782336,
        1875195648,
    ),
    "deit_base_patch16_224": (
        [
            (197, 197, 9, 1560), (197, 197, 6, 1769), (197, 197, 7, 1986), (197, 118, 6, 2249), (118, 118, 10, 2697),
            (118, 118, 11, 2879), (118, 70, 9, 1646), (70, 70, 11, 2815), (70, 70, 10, 2847), (70, 42, 10, 3061),
            (42, 42, 11, 2985), (42, 42, 7, 2541),
        ],
        6938086912,
        6991718272,
    ),
}  # fmt: skip


def counted_macs(module: nn.Module, structure: Structure) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *structure.image))
    return int(counter.get_total_flops()) // 2


def counted_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "macs"),
    [("deit_tiny_patch16_224", None), ("deit_small_patch16_224", 4598882304), ("deit_base_patch16_224", None)],
)
def test_macs_and_parameters_of_deit(name: str, macs: int | None) -> None:
    module = timm.create_model(name).eval()
    structure = describe(module, family_of(module), name)
    assert structure.macs == counted_macs(module, structure)
    assert structure.params == counted_params(module)
    if macs is not None:
        assert structure.macs == macs


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("embed", [False, True])
def test_macs_and_parameters_of_random_plans(variant: str, embed: bool) -> None:
    network = small_network(**VARIANTS[variant])
    small = network.pruned(random_plan(network.structure, seed=3, embed=embed), None)
    assert small.structure.macs == counted_macs(small.module, small.structure)
    assert small.structure.params == counted_params(small.module)


@pytest.mark.parametrize("name", MDC)
@pytest.mark.parametrize("reducer", ["drop", "fuse"])
def test_published_policies_of_mdc(name: str, reducer: Reducer) -> None:
    module = timm.create_model(name)
    structure = describe(module, family_of(module), name)
    rows, without_fused, with_fused = MDC[name]
    whole, blocks = identity(structure), []
    for plan, (before, after, heads, neurons) in zip(whole.blocks, rows, strict=True):
        tokens = TokenPlan(after - 1, reducer) if after < before else None
        blocks.append(
            dataclasses.replace(plan, heads=plan.heads[:heads], neurons=plan.neurons[:neurons], tokens=tokens)
        )
    found = Plan(whole.embed, tuple(blocks)).apply_to(structure).block_macs
    assert found == (without_fused if reducer == "drop" else with_fused)


def test_structure_and_plan_survive_json_with_their_keys() -> None:
    structure = small_network(qk_norm=True).structure
    plan = random_plan(structure, seed=1)
    for noun in (structure, plan):
        again = type(noun).from_json(json.loads(json.dumps(noun.to_json())))
        assert again == noun and again.key == noun.key
    assert plan.apply_to(structure).key != structure.key


def test_an_unknown_field_in_json_is_refused() -> None:
    value = random_plan(small_network().structure, seed=1).to_json() | {"sparsity": 0.5}
    with pytest.raises(ValueError, match="sparsity"):
        Plan.from_json(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed": ()}, "at least one embedding dim"),
        ({"embed": (0, 0, 1)}, "distinct"),
        ({"embed": (0, 999)}, "from 0 to 47"),
        ({"blocks": ()}, "at least one block"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    structure = small_network().structure
    with pytest.raises(InvalidRequest, match=words):
        dataclasses.replace(identity(structure), **change).apply_to(structure)


def test_unequal_heads_inside_a_block_are_refused() -> None:
    structure = small_network().structure
    whole = identity(structure)
    first = dataclasses.replace(whole.blocks[0], heads=(whole.blocks[0].heads[0], HeadPlan((16, 17), (16, 17))))
    with pytest.raises(InvalidRequest, match="same number of dims"):
        Plan(whole.embed, (first, *whole.blocks[1:])).apply_to(structure)


def test_a_reduction_cannot_keep_more_tokens_than_enter() -> None:
    structure = small_network().structure
    whole = identity(structure)
    first = dataclasses.replace(whole.blocks[0], tokens=TokenPlan(36))
    with pytest.raises(InvalidRequest, match="1 to 35"):
        Plan(whole.embed, (first, *whole.blocks[1:])).apply_to(structure)


def test_one_axis_of_a_plan() -> None:
    structure = small_network().structure
    plan = random_plan(structure, seed=2)
    heads, tokens = plan.only("heads", structure), plan.only("tokens", structure)
    assert [b.heads for b in heads.blocks] == [b.heads for b in plan.blocks]
    assert all(b.neurons == w.neurons for b, w in zip(heads.blocks, identity(structure).blocks, strict=True))
    assert [b.tokens for b in tokens.blocks] == [b.tokens for b in plan.blocks]
