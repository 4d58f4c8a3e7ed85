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

from models.data.open_dataset import open_data
from models.errors import InvalidRequest, VitfitError
from models.loading.load_model import open_model
from models.networks.network import Network
from search.methods import criterion_of, method_for, space_for
from service.cluster.ray_cluster import check_resources
from service.core.data_folder import JobFiles
from service.core.disk_space import is_full, storage_full
from service.core.settings import Settings
from service.jobs.job_request import JobRequest
from service.pipeline.check_job import check_job
from service.pipeline.evaluation import Evaluation
from service.pipeline.precision import check_precisions


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
    """Refuses everything that can be refused before work starts, short of measuring, and describes the rest."""
    request = JobRequest.model_validate(job)
    check_precisions(request)
    check_resources(request, Settings().ray)
    evaluation = Evaluation.open(request, JobFiles(model, dataset, model, model, model), allowed)
    check_job(request, evaluation)
    method = method_for(request.method, request.keep_spatial)
    return {
        "model": describe_model(evaluation.network),
        "dataset": evaluation.data.describe(),
        "criterion": criterion_of(method, request.criterion),
        "space": space_for(method, request.space),
        "warnings": list(evaluation.data.warnings),
    }


if __name__ == "__main__":
    main()
