"""A job's network and images, and what is computed from them once: dense outputs, statistics, ranking.

Evaluating a policy is a function of these and the policy alone (service/pipeline/scoring.py), so it can run in any process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.data.dataset import Batch, Dataset
from models.data.noise import noise_data
from models.data.open_dataset import open_data
from models.errors import InvalidRequest
from models.loading.load_model import open_model
from models.networks.network import Network
from search.methods import method_named
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.pipeline.precision import quantiser_of
from service.pipeline.scoring import difference, right_answers

CALIBRATION, SELECTION = 512, 512
"""At most so many images: more costs time and changes little. The report sees the whole test split."""
NOISE = 128
"""Images of noise in all: half for statistics, a quarter to select, a quarter to test."""


@dataclass(frozen=True)
class Evaluation:
    """A job's original network and its images. Everything is compared to `network`."""

    network: Network
    data: Dataset
    calibration: Batch
    selection: Batch
    seed: int

    @classmethod
    def open(cls, request: JobRequest, files: JobFiles, allowed: Sequence[Path] = ()) -> "Evaluation":
        """Loads model and data; refuses what cannot be handled. Raises: the errors of open_model and open_data, and of
        check_gates."""
        network = open_model(files.model).with_quantiser(quantiser_of(request))
        if files.dataset is None:
            data = noise_data(network.preprocessing, NOISE, request.seed)
        else:
            data = open_data(
                files.dataset,
                network.preprocessing,
                network.structure.classes or None,
                allowed,
                class_names=network.class_names,
            )
        check_gates(request, data, network.structure.classes)
        calibration = data.take("calibration", CALIBRATION, request.seed)
        return cls(network, data, calibration, data.take("selection", SELECTION, request.seed), request.seed)

    @property
    def classes(self) -> int:
        """0: the network has no classifier."""
        return self.network.structure.classes

    def agreement(self, dense: Tensor, pruned: Tensor) -> float:
        return difference(dense, pruned, self.classes)

    def correct(self, outputs: Tensor, labels: Tensor | None) -> int | None:
        return right_answers(outputs, labels, self.classes)


def check_gates(request: JobRequest, data: Dataset, classes: int) -> None:
    """Raises: InvalidRequest when gates are to be trained and cannot be, or the other way round."""
    epochs, needed = request.gates.epochs, method_named(request.method).training == "gates"
    if epochs and not needed:
        raise InvalidRequest(
            f"gates.epochs is {epochs}, but method {request.method!r} has no gates. Set it to 0, or use method 'vtp'."
        )
    if not needed:
        return
    if not epochs:
        raise InvalidRequest(
            f"Method {request.method!r} ranks by gates that are trained first: set gates.epochs to 1 or more (it is 0)."
        )
    if not data.assessed:
        raise InvalidRequest(
            f"Method {request.method!r} trains gates, which needs a data set; this job has none. Add one."
        )
    if not classes:
        raise InvalidRequest(
            f"Method {request.method!r} trains gates, which needs a classifier; this model has none. Set num_classes."
        )
