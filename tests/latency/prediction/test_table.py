"""Tests of the fitted table on a device whose true cost is known."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from latency.devices.setting import Setting
from latency.measuring.sampling import Interval
from latency.prediction.features import FEATURES, PRIOR_NS, features
from latency.prediction.probes import probe_plans
from latency.prediction.table import Sample, Table, TablePricer, load_table
from models.structure import LAYERS, Structure, identity
from search.spaces.compact import CompactSpace
from search.spaces.precision import PrecisionSpace
from tests.support.networks import small_network
from tests.support.worlds import random_ranking

TRUE_NS = {name: ns * factor for (name, ns), factor in zip(PRIOR_NS.items(), itertools.cycle((3.0, 1.0, 0.5, 2.0)))}
"""The costs of a machine that differs from the one where a fit starts."""


def true_ms(structure: Structure) -> float:
    return float(features([structure])[0] @ np.asarray(list(TRUE_NS.values()))) / 1e6


@pytest.fixture(scope="module")
def space() -> CompactSpace:
    structure = small_network(img_size=96, embed_dim=96).structure
    return CompactSpace(structure, random_ranking(structure), ("heads", "qk", "v", "neurons", "tokens"))


@pytest.fixture(scope="module")
def table(space: CompactSpace) -> Table:
    """Fit a table to the probes, as a job does. The measurements have errors of up to 0.5 %."""
    random, original = np.random.default_rng(0), space.structure
    structures = [plan.apply_to(original) for plan in probe_plans(original)]
    samples = [Sample(original, Interval(1, 1, 1))]
    for structure in structures:
        value = true_ms(structure) / true_ms(original) * random.uniform(0.995, 1.005)
        samples.append(Sample(structure, Interval(value, 0.98 * value, 1.02 * value)))
    return Table("cpu", "test", Setting(), original, true_ms(original), tuple(samples))


def random_structures(space: CompactSpace, count: int) -> list[Structure]:
    random = np.random.default_rng(7)
    return [
        space.sketch(space.along(list(random.random(len(space.dimensions))), random.random())) for _ in range(count)
    ]


def test_two_dozen_probes_predict_unseen_policies(space: CompactSpace, table: Table) -> None:
    assert len(table.samples) <= 25
    unseen = random_structures(space, 60)
    truth = np.asarray([true_ms(s) for s in unseen])
    error = np.abs(TablePricer(table).price(unseen).ms / truth - 1)
    assert np.median(error) < 0.02 and np.quantile(error, 0.95) < 0.06


def test_intervals_cover(space: CompactSpace, table: Table) -> None:
    unseen = random_structures(space, 60)
    found = TablePricer(table).price(unseen)
    truth = np.asarray([true_ms(s) for s in unseen])
    assert (np.abs(found.ms - truth) <= found.half_width_ms).mean() >= 0.85


def test_the_original_costs_exactly_what_was_measured(space: CompactSpace, table: Table) -> None:
    assert TablePricer(table).price([space.structure]).ms[0] == pytest.approx(table.original_ms)


def test_a_measurement_overrules_the_prediction(space: CompactSpace, table: Table) -> None:
    """Measure a structure that runs 8 % slower than the sum predicts.

    Afterwards the table predicts this structure correctly and raises the prediction of its neighbours.
    """
    policy = space.along([0.6] * len(space.dimensions), 0.5)
    near = space.along([0.6] * len(space.dimensions), 0.52)
    structure, neighbour = space.sketch(policy), space.sketch(near)
    before = TablePricer(table).price([structure, neighbour])
    value = 1.08 * before.ms[0] / table.original_ms
    corrected = table.corrected([Sample(structure, Interval(value, 0.998 * value, 1.002 * value))])
    after = TablePricer(corrected).price([structure, neighbour])
    assert after.ms[0] == pytest.approx(1.08 * before.ms[0], rel=0.02)
    assert after.ms[1] > 1.04 * before.ms[1]
    assert after.half_width_ms[0] < before.half_width_ms[0]


def test_a_table_is_stored_under_its_key(space: CompactSpace, table: Table, tmp_path: Path) -> None:
    table.save(tmp_path)
    assert load_table(tmp_path, "cpu", "test", Setting(), original=space.structure) == table
    assert load_table(tmp_path, "cpu", "test", Setting(threads=2), original=space.structure) is None
    assert load_table(tmp_path, "cpu", "another machine", Setting(), original=space.structure) is None
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_prices_come_in_batches_that_agree_with_single_ones(space: CompactSpace, table: Table) -> None:
    unseen, pricer = random_structures(space, 5), TablePricer(table)
    together = pricer.price(unseen).ms
    assert np.allclose(together, [pricer.price([s]).ms[0] for s in unseen])


def test_a_table_with_probes_in_int8_predicts_both_precisions_and_mixtures(space: CompactSpace, table: Table) -> None:
    random, original = np.random.default_rng(3), space.structure
    samples = []
    for plan in probe_plans(original, precision="int8"):
        value = true_ms(plan.apply_to(original)) / true_ms(original) * random.uniform(0.995, 1.005)
        samples.append(Sample(plan.apply_to(original), Interval(value, 0.98 * value, 1.02 * value)))
    grown = table.corrected(samples)
    assert grown.knows("int8") and not table.knows("int8") and table.knows("fp32")
    order = [(place, layer) for place in range(len(original.blocks)) for layer in LAYERS]
    mixed = PrecisionSpace(space, order, ("fp32", "int8"))
    unseen = [mixed.sketch(mixed.along(list(random.random(len(mixed.dimensions))), random.random())) for _ in range(90)]
    error = np.abs(TablePricer(grown).price(unseen).ms / np.asarray([true_ms(s) for s in unseen]) - 1)
    assert np.median(error) < 0.02 and np.quantile(error, 0.95) < 0.06


def test_without_probes_in_int8_fp32_networks_cost_what_they_did(space: CompactSpace, table: Table) -> None:
    """Check a table that was stored before vitfit supported int8."""
    unseen, columns = (
        random_structures(space, 20),
        [name for name in FEATURES if name.startswith(("int8", "quantised", "plain"))],
    )
    assert len(columns) == 7
    counted = dict(zip(FEATURES, features(unseen).T, strict=True))
    assert all(not counted[name].any() for name in columns)


def test_products_in_int8_are_counted_apart_from_those_in_fp32() -> None:
    structure = small_network(depth=2).structure
    whole = identity(structure)
    blocks = tuple(dataclasses.replace(block, exact=("fc1",)) for block in whole.blocks)
    int8 = dataclasses.replace(whole, blocks=blocks, precision="int8").apply_to(structure)
    before, after = (dict(zip(FEATURES, row, strict=True)) for row in features([structure, int8]))
    rounded = 42 * 2 * 48 * (3 * 48 + 48 + 4 * 48)  # 37 tokens fill 42 rows: qkv, proj and fc2 of two blocks
    assert after["int8_macs"] == rounded and after["int8_products"] == 6
    assert after["quantised_values"] == 37 * 2 * (48 + 48 + 4 * 48)
    assert before["matmul_macs"] - after["matmul_macs"] == pytest.approx(rounded, rel=0.01)
    assert after["softmax_values"] == before["softmax_values"] and after["operations"] == before["operations"]
