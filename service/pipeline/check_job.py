"""Check a job as far as this is possible without measurements. Validation and the job itself make the same checks."""

from latency.devices.devices import describe_device
from models.errors import InvalidRequest
from models.networks.network import Network
from models.rotation.bases import ROTATED_AXES, images_needed
from models.statistics.gradient_scores import check_classes
from models.statistics.leave_one_out import check_cost
from models.structure import Structure
from search.criteria import CRITERIA
from search.methods import Basis, basis_for, check_suits, criterion_of, method_for, space_for
from service.jobs.job_request import JobRequest
from service.jobs.quick_checks import check_threads
from service.pipeline.evaluation import Evaluation
from service.pipeline.precision import check_quantisable
from service.pipeline.pricing import Pricing
from service.pipeline.ranked import reachable_target
from service.pipeline.training import check_training


def check_job(request: JobRequest, evaluation: Evaluation) -> None:
    """Check that the job is possible with its model and data.

    Raises: InvalidRequest, UnknownName, UnsupportedModel or DeviceUnavailable. The error names what is allowed.
    """
    structure = evaluation.network.structure
    method = method_for(request.method, request.keep_spatial)
    criterion = criterion_of(method, request.criterion)
    space_for(method, request.space)
    basis = basis_for(method, request.basis)
    check_suits(method, structure)
    check_quantisable(request, structure)
    check_budgets(request, structure)
    evaluation.network.check_kinds(CRITERIA[criterion].needs)
    check_importance(criterion, structure, len(evaluation.calibration.images))
    if request.target is not None:
        check_target_basis(request, basis)
        reachable_target(evaluation.network, request.target, basis)
    if basis == "rotated":
        check_calibration(evaluation.network, len(evaluation.calibration.images))
    check_training(request, evaluation)


def check_calibration(network: Network, images: int) -> None:
    """Check that there are enough calibration images for rotated bases. Raises: InvalidRequest."""
    if images >= images_needed(network.structure, ROTATED_AXES):
        return  # enough for every axis; which axes there are takes seconds to find out for a graph model
    needed = images_needed(network.structure, network.rotatable)
    if images < needed:
        raise InvalidRequest(
            f"Rotated bases of {network.structure.name} need at least {needed} calibration images, but the data set has"
            f" {images}. Add images, or set basis to 'chosen'.",
            field="basis",
            allowed=["chosen"],
        )


def check_importance(criterion: str, structure: Structure, images: int) -> None:
    """Check that the criterion can rank this network.

    Raises: InvalidRequest when the criterion needs a classifier and the network has none, or when the scores would take
    too long.
    """
    needs = CRITERIA[criterion].needs
    if "deletion" in needs:
        check_cost(structure, images)
    elif needs & {"taylor", "fisher"}:
        check_classes(structure, criterion)


def check_target_basis(request: JobRequest, basis: Basis) -> None:
    """Check that the method can choose members for a target. Raises: InvalidRequest."""
    if request.method == "joint" and basis == "chosen":
        raise InvalidRequest(
            f"The request has target {request.target!r}, method 'joint' and basis 'chosen', but the criteria of this"
            " method do not score the dims of neighbouring heads together. Use basis 'rotated', or method 'up-vit'."
        )


def check_budgets(request: JobRequest, structure: Structure) -> None:
    """Check the devices and settings of all budgets.

    Raises: UnknownName; DeviceUnavailable when a budget asks for more threads than its device has; InvalidRequest when
    a profile does not describe the number of threads, or when two budgets limit the same value.
    """
    for budget in request.budgets:
        check_threads(budget, describe_device(budget.device))
    Pricing(request, structure)
