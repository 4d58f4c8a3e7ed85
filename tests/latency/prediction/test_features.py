"""Check that features are sums over operations, for one structure and for many structures at once."""

import numpy as np
import pytest

import latency.prediction.features
from latency.prediction.features import features
from latency.prediction.probes import probe_plans
from models.loading.load_model import untrained


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "pvt_v2_b0", "swin_tiny_patch4_window7_224", "pit_ti_224"])
def test_many_at_once_are_counted_as_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = untrained(name).structure
    structures = [whole, *(plan.apply_to(whole) for plan in probe_plans(whole))]
    monkeypatch.setattr(latency.prediction.features, "_known", {})
    together = features(structures)
    for structure, row in zip(structures, together, strict=True):
        latency.prediction.features._known.clear()
        assert np.array_equal(features([structure])[0], row)
    assert len({tuple(row) for row in together}) == len(structures)


def test_forgetting_parts_loses_none_of_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = untrained("deit_tiny_patch16_224").structure
    structures = [whole, *(plan.apply_to(whole) for plan in probe_plans(whole, 4))]
    monkeypatch.setattr(latency.prediction.features, "_known", {})
    before = features(structures)
    monkeypatch.setattr(latency.prediction.features, "KNOWN", 1)
    assert np.array_equal(features([*structures, structures[0]])[:-1], before)


def test_macs_and_norms_are_those_of_the_operations() -> None:
    whole = untrained("deit_tiny_patch16_224").structure
    row = dict(zip(latency.prediction.features.FEATURES, features([whole])[0], strict=True))
    assert row["norm_values"] == sum(op.values for op in whole.ops() if op.kind == "norm")
    assert row["operations"] == sum(1 for _ in whole.ops())
    assert row["heads"] == 12 * 3
