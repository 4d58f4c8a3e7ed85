"""Check a job as far as this is possible without measurements. Validation and the job itself make the same checks."""

from latency.devices.devices import describe_device, is_reachable
from models.errors import DeviceUnavailable
from models.statistics.gradient_scores import check_classes
from models.statistics.leave_one_out import check_cost
from models.structure import Structure
from search.budgets import quantity_of
from search.criteria import CRITERIA
from search.methods import check_suits, criterion_of, method_for, space_for
from service.jobs.job_request import JobRequest
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
    check_suits(method, structure)
    check_quantisable(request, structure)
    check_budgets(request, structure)
    evaluation.network.check_kinds(CRITERIA[criterion].needs)
    check_importance(criterion, structure, len(evaluation.calibration.images))
    if request.target is not None:
        reachable_target(evaluation.network, request.target)
    check_training(request, evaluation)


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


def check_budgets(request: JobRequest, structure: Structure) -> None:
    """Check the devices and settings of all budgets.

    Raises: UnknownName; DeviceUnavailable when a budget asks for more threads than its device has; InvalidRequest when
    two budgets limit the same value.
    """
    for budget in request.budgets:
        if quantity_of(budget.metric) in ("latency", "memory") and is_reachable(budget.device):
            threads = int(describe_device(budget.device)["threads"])
            if budget.setting.threads > threads:
                raise DeviceUnavailable(
                    f"A budget asks for {budget.setting.threads} threads on {budget.device}, but this device has "
                    f"{threads}. Set threads to {threads} or less.",
                    threads=budget.setting.threads,
                    available=threads,
                )
    Pricing(request, structure)
