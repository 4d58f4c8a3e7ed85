"""Tests of jobs that heal the network that they deliver."""

from typing import Any

import numpy as np
import pytest

from models.errors import InvalidRequest
from models.evaluation.metrics import agreement
from models.export.onnx_export import run_onnx
from models.loading.load_model import open_model
from models.structure import Plan
from tests.support.small_jobs import SPLITS, Workshop, budget, random_images

pytestmark = pytest.mark.usefixtures("brief")

HEAL: dict[str, Any] = {"steps": 50, "learning_rate": 1e-3, "batch": 8}


def test_the_healed_network_is_measured_reported_and_delivered(workshop: Workshop) -> None:
    ran = workshop.run(budget("macs_keep", 0.5), trials=2, recovery=False, basis="chosen", heal=HEAL)
    dense = open_model(workshop.model)
    unhealed = dense.pruned(Plan.from_json(ran.json("plan.json")), None)  # recovery is off
    unseen = random_images()[np.array(SPLITS) == "test"]
    answers, wanted = run_onnx(ran.path("model.onnx"), unseen, 1), dense.outputs(unseen)
    assert agreement(wanted, answers) > agreement(wanted, unhealed.outputs(unseen)) + 0.02
    assert ran.report["agreement"]["score"] == pytest.approx(agreement(wanted, answers), rel=1e-3)
    assert "healing" in ran.journal.stages


def test_healing_without_images_is_refused(workshop: Workshop) -> None:
    with pytest.raises(InvalidRequest, match="Healing needs images"):
        Workshop(workshop.root / "no-images", workshop.model, None).run(budget("macs_keep", 0.5), heal=HEAL)
