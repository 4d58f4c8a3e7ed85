"""Validation that needs torch: `python -m service.pipeline.validate_job`. One JSON object on stdin, one on stdout, exit status 0.

{"model": DIR}                                        -> what the model is, or why it is refused
{"dataset": DIR, "allowed": [ROOT...]}                -> what the data are, as far as that needs no model
{"job": {...}, "model": DIR, "dataset": DIR or null, "allowed": [...]} -> both, together with the request
"""

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latency.devices.devices import describe_device, is_reachable
from models.data.open_dataset import open_data
from models.errors import DeviceUnavailable, InvalidRequest, VitfitError
from models.loading.load_model import open_model
from models.networks.network import Network
from models.statistics.gradient_scores import check_classes
from models.statistics.leave_one_out import check_cost
from models.structure import Structure
from search.budgets import quantity_of
from search.criteria import CRITERIA
from search.methods import check_suits, criterion_of, method_for, space_for
from service.cluster.ray_cluster import check_resources
from service.core.data_folder import JobFiles
from service.core.disk_space import is_full, storage_full
from service.core.settings import Settings
from service.jobs.job_request import JobRequest
from service.pipeline.evaluation import Evaluation, reachable_target
from service.pipeline.precision import check_precisions, check_quantisable
from service.pipeline.pricing import Pricing
from service.pipeline.training import check_training


def main() -> None:
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # libraries may print; stdout is the answer
        warnings.simplefilter("ignore")
        try:
            answer = {"ok": True, "description": describe(request)}
        except VitfitError as error:
            answer = _refused(request, error, error)
        except (ValidationError, OSError, KeyError) as error:
            answer = _refused(request, error, InvalidRequest(f"The request cannot be read: {error}"))
    json.dump(answer, sys.stdout)


def _refused(request: dict[str, Any], error: Exception, said: VitfitError) -> dict[str, Any]:
    """said: unless a full disk is behind the error."""
    if is_full(error):
        said = storage_full(Path(request.get("dataset") or request["model"]), "It could not be checked.")
    return {"ok": False, "error": said.to_json()}


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """Raises: the VitfitError that explains a refusal."""
    allowed = [Path(root) for root in request.get("allowed", ())]
    if "job" in request:
        dataset = request.get("dataset")
        return describe_job(request["job"], Path(request["model"]), Path(dataset) if dataset else None, allowed)
    if "model" in request:
        return describe_model(open_model(Path(request["model"])))
    return describe_dataset(Path(request["dataset"]), allowed)


def describe_model(network: Network) -> dict[str, Any]:
    structure = network.structure
    attention = structure.blocks[0].attention
    return {
        "name": structure.name,
        "params": structure.params,
        "macs": structure.macs,
        "image": list(structure.image),
        "classes": structure.classes,
        "blocks": len(structure.blocks),
        "heads": attention.heads if attention else 0,
        "width": structure.width,
        "tokens": structure.tokens,
        "key": structure.key,
    }


def describe_dataset(folder: Path, allowed: list[Path]) -> dict[str, Any]:
    """Without a model, sizes and classes are not judged: float images are taken to have the right size."""
    return open_data(folder, None, None, allowed).describe()


def describe_job(job: dict[str, Any], model: Path, dataset: Path | None, allowed: list[Path]) -> dict[str, Any]:
    """Everything that can be refused before work starts, short of measuring."""
    request = JobRequest.model_validate(job)
    check_precisions(request)
    method = method_for(request.method, request.keep_spatial)
    criterion, space = criterion_of(method, request.criterion), space_for(method, request.space)
    files = JobFiles(model, dataset, model, model, model)
    evaluation = Evaluation.open(request, files, allowed)
    structure = evaluation.network.structure
    check_resources(request, Settings().ray)
    check_suits(method, structure)
    check_quantisable(request, structure)
    check_budgets(request, structure)
    evaluation.network.check_kinds(CRITERIA[criterion].needs)
    check_importance(criterion, structure, len(evaluation.calibration.images))
    if request.target is not None:
        reachable_target(evaluation.network, request.target)
    check_training(request, evaluation)
    return {
        "model": describe_model(evaluation.network),
        "dataset": evaluation.data.describe(),
        "criterion": criterion,
        "space": space,
        "warnings": list(evaluation.data.warnings),
    }


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
                    threads=budget.setting.threads, available=threads,
                )  # fmt: skip
    Pricing(request, structure)


if __name__ == "__main__":
    main()
