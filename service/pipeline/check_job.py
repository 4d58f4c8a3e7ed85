"""Everything about a job that can be refused before any work, short of measuring. Validation and the job itself ask here."""

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
    """Whether the job can be done with its model and data.

    Raises: InvalidRequest, UnknownName, UnsupportedModel, DeviceUnavailable, with what is allowed.
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
    """Raises: InvalidRequest when the criterion needs classes that are not there, or would take too long."""
    needs = CRITERIA[criterion].needs
    if "deletion" in needs:
        check_cost(structure, images)
    elif needs & {"taylor", "fisher"}:
        check_classes(structure, criterion)


def check_budgets(request: JobRequest, structure: Structure) -> None:
    """Raises: UnknownName; DeviceUnavailable for more threads than there are; InvalidRequest for a budget given twice."""
    for budget in request.budgets:
        if quantity_of(budget.metric) in ("latency", "memory") and is_reachable(budget.device):
            threads = int(describe_device(budget.device)["threads"])
            if budget.setting.threads > threads:
                raise DeviceUnavailable(
                    f"{budget.setting.threads} threads were asked for on {budget.device}, which has {threads}",
                    threads=budget.setting.threads,
                    available=threads,
                )
    Pricing(request, structure)
