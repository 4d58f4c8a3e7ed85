"""Open the original network and the images of a job."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.data.dataset import Batch, Dataset
from models.data.noise import noise_data
from models.data.open_dataset import open_data
from models.errors import InvalidRequest
from models.loading.load_model import open_model, prove_on_images
from models.networks.network import Network
from search.methods import method_named
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.pipeline.precision import quantiser_of
from service.pipeline.scoring import difference, right_answers

CALIBRATION, SELECTION = 512, 512
"""Upper limits on the numbers of images in the calibration split and the selection split.

More images cost more time and change the result little. The report uses all images of the test split.
"""
PROOF = 8
"""Number of real images on which an ONNX file and the network that was read from it must give the same outputs."""
NOISE = 128
"""Number of noise images for a job without a data set.

Half of them are for calibration, a quarter for selection, and a quarter for the test.
"""


@dataclass(frozen=True)
class Evaluation:
    """The original network of a job, and its images. All other networks of the job are compared with `network`."""

    network: Network
    data: Dataset
    calibration: Batch
    selection: Batch
    seed: int

    @classmethod
    def open(cls, request: JobRequest, files: JobFiles, allowed: Sequence[Path] = ()) -> "Evaluation":
        """Load the model and the data.

        Raises: the errors of `open_model`, `open_data`, `check_gates` and `prove_on_images`.
        """
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
        if data.assessed:
            prove_on_images(files.model, network, calibration.images[:PROOF])
        return cls(network, data, calibration, data.take("selection", SELECTION, request.seed), request.seed)

    @property
    def classes(self) -> int:
        """Number of classes; 0 if the network has no classifier."""
        return self.network.structure.classes

    def agreement(self, dense: Tensor, pruned: Tensor) -> float:
        return difference(dense, pruned, self.classes)

    def correct(self, outputs: Tensor, labels: Tensor | None) -> int | None:
        return right_answers(outputs, labels, self.classes)


def check_gates(request: JobRequest, data: Dataset, classes: int) -> None:
    """Check that the request trains gates if its method needs them, and only then.

    Raises: InvalidRequest when it does not, or when gates cannot be trained with this model and data.
    """
    epochs, needed = request.gates.epochs, method_named(request.method).training == "gates"
    if epochs and not needed:
        raise InvalidRequest(
            f"gates.epochs is {epochs}, but method {request.method!r} has no gates. "
            "Set gates.epochs to 0, or use method 'vtp'."
        )
    if not needed:
        return
    if not epochs:
        raise InvalidRequest(
            f"Method {request.method!r} has to train gates before the ranking, but gates.epochs is 0. "
            "Set gates.epochs to 1 or more."
        )
    if not data.assessed:
        raise InvalidRequest(
            f"Method {request.method!r} trains gates. This needs a data set, but the job has none. Add a data set."
        )
    if not classes:
        raise InvalidRequest(
            f"Method {request.method!r} trains gates. This needs a classifier, but the model has none. "
            "Set the model option num_classes."
        )
