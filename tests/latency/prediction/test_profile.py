"""Tests of profiles: their formulas computed by hand, and the properties that a user may rely on."""

import dataclasses
import re
from typing import Any

import pytest

from latency.devices.devices import describe_device, describe_devices, device_names, read_device
from latency.devices.profile_schema import MeasuredTable, parse_profile
from latency.devices.setting import Setting
from latency.prediction.features import FEATURES, features
from latency.prediction.fpga import Pipeline
from latency.prediction.profile import ProfilePricer
from models.errors import InvalidRequest, UnknownName
from models.loading.load_model import untrained
from models.structure import Op, Structure, TokenPlan, identity
from tests.support.networks import random_plan, small_network

PROFILES = [name for name in device_names() if name != "cpu"]
SUMS = [name for name in PROFILES if read_device(name)["model"] != "pipeline"]
"""The profiles of devices that run one operation after the other."""


def only(op: Op) -> Structure:
    """Return a structure with a single operation."""
    return Structure("one", (3, 8, 8), 1, 1, True, (op,), (), ())


def test_a_product_on_the_roofline_by_hand() -> None:
    p = read_device("generic-mobile")
    op = Op("matmul", "fc", rows=200, cols=30, inner=96, weights=True)
    efficiency = 96 / (96 + p["half_inner"]) * 30 / 32
    seconds = 200 * 96 * 30 / (p["peak_macs_per_s"] * efficiency) + p["overhead_s_per_operation"]
    assert ProfilePricer("generic-mobile", Setting()).price([only(op)]).ms[0] == pytest.approx(1e3 * seconds)


def test_channels_of_a_depthwise_convolution_share_vectors() -> None:
    """Check a convolution of 64 channels with one column each.

    Its price is that of 64 columns, not that of 64 vectors in which only one lane works.
    """
    p = read_device("generic-mobile")
    op = Op("conv", "dw", rows=6 * 10**5, cols=1, inner=9, count=64, weights=True)
    seconds = 6 * 10**5 * 9 * 64 / (p["peak_macs_per_s"] * 9 / (9 + p["half_inner"])) + p["overhead_s_per_operation"]
    assert ProfilePricer("generic-mobile", Setting()).price([only(op)]).ms[0] == pytest.approx(1e3 * seconds)
    assert features([only(op)])[0][FEATURES.index("conv_macs")] == op.macs


def test_a_thin_product_is_bound_by_memory() -> None:
    p = read_device("generic-mobile")
    op = Op("matmul", "fc", rows=1, cols=4096, inner=4096, weights=True)
    seconds = op.bytes / p["bandwidth_bytes_per_s"] + p["overhead_s_per_operation"]
    assert ProfilePricer("generic-mobile", Setting()).price([only(op)]).ms[0] == pytest.approx(1e3 * seconds)


def test_tiles_are_whole() -> None:
    """Check that one row more than a full tile costs a second tile of rows."""
    p, pricer = read_device("generic-fpga"), ProfilePricer("generic-fpga", Setting())
    op = Op("matmul", "fc", rows=160, cols=160, inner=800)
    costs = [pricer.price([only(dataclasses.replace(op, rows=rows))]).ms[0] for rows in (160, 161, 176)]
    assert costs[1] == pytest.approx(costs[2]) and costs[1] > costs[0]
    cycles = 10 * 100 * 10
    assert costs[0] == pytest.approx(1e3 * (cycles / p["clock_hz"] + p["overhead_s_per_operation"]))


@pytest.mark.parametrize("name", SUMS)
def test_softmax_norms_and_activations_cost_something(name: str) -> None:
    pricer = ProfilePricer(name, Setting())
    for kind in ("norm", "activation"):
        small, large = (Op(kind, "x", rows=rows, cols=64) for rows in (1000, 100_000))
        assert pricer.price([only(large)]).ms[0] > 2 * pricer.price([only(small)]).ms[0]


@pytest.mark.parametrize("name", SUMS)
def test_prices_are_deterministic_fall_with_pruning_and_rise_with_the_batch(name: str) -> None:
    structure = small_network(img_size=96, embed_dim=96).structure
    pruned = random_plan(structure, 1).apply_to(structure)
    one, again, four = (ProfilePricer(name, Setting(batch=b)).price([structure, pruned]) for b in (1, 1, 4))
    assert one.ms.tolist() == again.ms.tolist()
    assert one.ms[1] < one.ms[0] < four.ms[0]
    assert (one.half_width_ms > 0).all()


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_that_ships_is_complete_and_checked_or_generic(name: str) -> None:
    profile = parse_profile(read_device(name))
    assert profile.name == name and profile.source
    described = describe_device(name)
    if name.startswith("generic-"):
        assert described["error"] is None
    else:
        assert not isinstance(profile, MeasuredTable)
        assert abs(described["error"]["worst"]) <= profile.relative_uncertainty + 1e-9
        assert described["error"]["median"] <= 0.1


def test_at_least_six_cores_are_checked_against_latencies_that_did_not_fit_them() -> None:
    checked = [d for d in describe_devices() if (d.get("error") or {}).get("checked", 0) >= 6]
    assert len(checked) >= 6


@pytest.mark.parametrize("name", ["pixel-4-large-fp32", "iphone-xs-large-int8"])
def test_what_a_profile_says_it_predicts_is_what_it_predicts(name: str) -> None:
    profile = read_device(name)
    for model in ("deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"):
        (check,) = [check for check in profile["checks"] if check["model"] == model]
        found = ProfilePricer(name, Setting()).price([untrained(model).structure]).ms[0]
        assert found == pytest.approx(check["predicted_ms"], rel=1e-3)


def test_hg_pipe_is_right_to_the_cycle() -> None:
    """Check the published intervals of DeiT-Tiny's stages on 196 tokens (arXiv 2407.17879).

    Softmax is the slowest stage.
    """
    structure = untrained("deit_tiny_patch16_224", class_token=False, global_pool="avg").structure
    pricer, clock_khz = ProfilePricer("hg-pipe@vck190", Setting()), 425e3
    assert pricer.price([structure]).ms[0] * clock_khz == pytest.approx(57_624)
    block = structure.blocks[0]
    stages = {op.name.rpartition(".")[2]: op for op in block.ops()}
    expected = {"norm1": 56_448, "attention": 57_624, "fc1": 50_176, "fc2": 50_176, "proj": 50_176}
    for name, cycles in expected.items():
        assert Pipeline(read_device("hg-pipe@vck190"))._cycles(stages[name], block) == cycles
    ends = {op.name: pricer.price([only(op)]).ms[0] * clock_khz for op in (*structure.stem, *structure.tail)}
    assert ends["patch"] == pytest.approx(56_448) and ends["head"] == pytest.approx(48_000)


def test_a_pipeline_is_as_fast_as_its_slowest_stage() -> None:
    """Check what removals gain when one stage limits the speed.

    The neurons are not in the slowest stage, so their removal gains nothing. All stages process the tokens.
    """
    structure = untrained("deit_tiny_patch16_224", class_token=False, global_pool="avg").structure
    whole = identity(structure)
    thin = [dataclasses.replace(block, neurons=block.neurons[:96]) for block in whole.blocks]
    few = [dataclasses.replace(b, tokens=TokenPlan(98, "drop") if i == 0 else None) for i, b in enumerate(whole.blocks)]
    plans = [dataclasses.replace(whole, blocks=tuple(blocks)) for blocks in (whole.blocks, thin, few)]
    dense, fewer_neurons, fewer_tokens = (
        ProfilePricer("hg-pipe@vck190", Setting()).price([plan.apply_to(structure) for plan in plans]).ms
    )
    assert fewer_neurons == dense
    assert fewer_tokens == dense  # the first block still processes all tokens
    late = structure.blocks[1:]
    halves = [dataclasses.replace(block, tokens=98) for block in late]
    pricer = ProfilePricer("hg-pipe@vck190", Setting())
    cut, full = (
        pricer.price(
            [
                dataclasses.replace(
                    structure,
                    stem=(),
                    tail=(),
                    stages=(dataclasses.replace(structure.stages[0], blocks=tuple(blocks)),),
                )
            ]
        ).ms[0]
        for blocks in (halves, late)
    )
    assert cut < 0.51 * full


GOOD = {**read_device("generic-mobile"), "name": "user-phone"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": {}}, "units.peak_macs_per_s is None"),
        ({"units": {**GOOD["units"], "lanes": "bits"}}, "units.lanes is 'bits'"),
        ({"units": {**GOOD["units"], "speed": "fast"}}, "units names 'speed'"),
        ({"peak_macs_per_s": -1.0}, "peak_macs_per_s"),
        ({"peak_macs_per_s": float("nan")}, "peak_macs_per_s"),
        ({"peak_macs_per_s": 22.7}, "at least 1,000,000"),
        ({"ns_per_value": {"softmax": float("inf")}}, "ns_per_value.softmax"),
        ({"ns_per_value": {"sofmax": 1.0}}, "ns_per_value"),
        ({"colour": "blue"}, "colour"),
        ({"model": "oven"}, "roofline"),
        ({"name": "../escape"}, "name"),
        ({"name": "my-phone"}, "has no check with fitted: false"),
        ({"date": "yesterday"}, "date"),
        ({"relative_uncertainty": 0}, "relative_uncertainty"),
    ],
)
def test_a_damaged_profile_is_refused_with_its_field(change: dict[str, Any], message: str) -> None:
    parse_profile(GOOD)
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        parse_profile({**GOOD, **change})


def test_devices_are_listed_and_unknown_ones_named() -> None:
    assert {"cpu", "generic-mobile", "generic-fpga"} <= {device["name"] for device in describe_devices()}
    assert describe_device("cpu")["reachable"] and not describe_device("generic-fpga")["reachable"]
    with pytest.raises(UnknownName, match="generic-mobile"):
        describe_device("generic-mobil")


def test_attention_costs_both_its_products() -> None:
    pricer = ProfilePricer("generic-mobile", Setting())
    op = Op("attention", "a", rows=200, cols=200, inner=64, depth=64, count=6)
    whole, thin = (pricer.price([only(dataclasses.replace(op, depth=d))]).ms[0] for d in (64, 8))
    assert thin < 0.9 * whole
