"""Tests that control the accuracy of the pipeline on the digits model.

The model does not survive every kind of pruning: simple pruning must lose accuracy.
"""

from pathlib import Path

import pytest

from models.evaluation.metrics import correct
from search.loop.decode import decode
from service.core.data_folder import JobFiles
from service.pipeline.evaluation import Evaluation
from service.pipeline.pricing import Pricing
from service.pipeline.ranked import rank_network
from tests.support.small_jobs import Workshop, budget, digits, job_request

LIMIT = budget("macs_keep", 0.6)
IMAGES = 500


pytestmark = pytest.mark.usefixtures("brief")


def uniform_magnitude_correct(folder: Path) -> tuple[int, int]:
    """Return the number of right answers of the original and of the control, on test images.

    In the control, every block loses the same share of heads and neurons. The ranking is magnitude, and there is no
    recovery. The control keeps all tokens, because removed tokens save work and no weights. With fewer tokens the
    control would lose only one image.
    """
    model, data = digits(folder)
    request = job_request(LIMIT, criterion="magnitude", recovery=False)
    files = JobFiles(model, data, folder, folder, folder)
    evaluation = Evaluation.open(request, files)
    ranked = rank_network(evaluation, request, folder)
    space, pricing = ranked.space, Pricing(request, evaluation.network.structure)
    alike = [1.0 if name in ("heads", "neurons") else 0.0 for name in space.dimensions]
    network = ranked.prune(space.plan(decode(space, alike, pricing.aims, pricing.price)), request.recovery)
    assert 0.55 < network.structure.macs / evaluation.network.structure.macs <= 0.6
    batch = evaluation.data.take("test", IMAGES, 0)
    assert batch.labels is not None
    return correct(evaluation.network.outputs(batch.images), batch.labels), correct(
        network.outputs(batch.images), batch.labels
    )


@pytest.mark.slow
def test_the_default_method_keeps_what_uniform_pruning_loses(tmp_path: Path) -> None:
    dense, control = uniform_magnitude_correct(tmp_path / "control")
    model, data = digits(tmp_path / "job")
    report = Workshop(tmp_path, model, data).run(LIMIT, trials=12).report
    assert report["original"]["correct"] == pytest.approx(dense, abs=1)
    assert report["original"]["images"] == IMAGES and report["delivered"]["macs"] <= 0.6 * report["original"]["macs"]
    assert dense - control >= 0.05 * IMAGES
    assert dense - report["delivered"]["correct"] <= 0.02 * IMAGES
