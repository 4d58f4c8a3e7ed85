"""Profiles: their formulas by hand, and what a user may rely on."""

import dataclasses

import pytest

from latency.devices import describe_device, describe_devices, device_names, read_profile
from latency.features import FEATURES, features
from latency.profile import ProfilePricer
from latency.setting import Setting
from models.errors import UnknownName
from models.structure import Op, Structure
from tests.models.networks import random_plan, small_network

PROFILES = [name for name in device_names() if name != "cpu"]


def only(op: Op) -> Structure:
    """A structure of one operation."""
    return Structure("one", (3, 8, 8), 1, 1, True, (op,), (), ())


def test_a_product_on_the_roofline_by_hand() -> None:
    p = read_profile("generic-mobile")
    op = Op("matmul", "fc", rows=200, cols=30, inner=96, weights=True)
    efficiency = 96 / (96 + p["half_inner"]) * 30 / 32
    seconds = 200 * 96 * 30 / (p["peak_macs_per_s"] * efficiency) + p["overhead_s_per_operation"]
    assert ProfilePricer("generic-mobile", Setting()).price([only(op)]).ms[0] == pytest.approx(1e3 * seconds)


def test_channels_of_a_depthwise_convolution_share_vectors() -> None:
    """64 channels, one column each: priced as 64 columns, not as 64 vectors of which one lane works."""
    p = read_profile("generic-mobile")
    op = Op("conv", "dw", rows=10**6, cols=1, inner=9, count=64, weights=True)
    seconds = 10**6 * 9 * 64 / (p["peak_macs_per_s"] * 9 / (9 + p["half_inner"])) + p["overhead_s_per_operation"]
    assert ProfilePricer("generic-mobile", Setting()).price([only(op)]).ms[0] == pytest.approx(1e3 * seconds)
    assert features([only(op)])[0][FEATURES.index("conv_macs")] == op.macs


def test_a_thin_product_is_bound_by_memory() -> None:
    p = read_profile("generic-mobile")
    op = Op("matmul", "fc", rows=1, cols=4096, inner=4096, weights=True)
    seconds = op.bytes / p["bandwidth_bytes_per_s"] + p["overhead_s_per_operation"]
    assert ProfilePricer("generic-mobile", Setting()).price([only(op)]).ms[0] == pytest.approx(1e3 * seconds)


def test_tiles_are_whole() -> None:
    """One row more than a tile costs a second tile of rows."""
    p, pricer = read_profile("generic-fpga"), ProfilePricer("generic-fpga", Setting())
    op = Op("matmul", "fc", rows=160, cols=160, inner=800)
    costs = [pricer.price([only(dataclasses.replace(op, rows=rows))]).ms[0] for rows in (160, 161, 176)]
    assert costs[1] == pytest.approx(costs[2]) and costs[1] > costs[0]
    cycles = 10 * 100 * 10
    assert costs[0] == pytest.approx(1e3 * (cycles / p["clock_hz"] + p["overhead_s_per_operation"]))


@pytest.mark.parametrize("name", PROFILES)
def test_softmax_norms_and_activations_cost_something(name: str) -> None:
    pricer = ProfilePricer(name, Setting())
    for kind in ("norm", "activation"):
        small, large = (Op(kind, "x", rows=rows, cols=64) for rows in (10, 1000))  # type: ignore[arg-type]
        assert pricer.price([only(large)]).ms[0] > 2 * pricer.price([only(small)]).ms[0]


@pytest.mark.parametrize("name", PROFILES)
def test_prices_are_deterministic_fall_with_pruning_and_rise_with_the_batch(name: str) -> None:
    structure = small_network(img_size=96, embed_dim=96).structure
    pruned = random_plan(structure, 1).apply_to(structure)
    one, again, four = (ProfilePricer(name, Setting(batch=b)).price([structure, pruned]) for b in (1, 1, 4))
    assert one.ms.tolist() == again.ms.tolist()
    assert one.ms[1] < one.ms[0] < four.ms[0]
    assert (one.half_width_ms > 0).all()


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_states_units_source_and_date(name: str) -> None:
    profile = read_profile(name)
    assert profile["source"] and profile["date"]
    numbers = {key for key, value in profile.items() if isinstance(value, int | float | dict) and key != "units"}
    assert numbers == set(profile["units"])


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
