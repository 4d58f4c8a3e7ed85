"""Validate a model, a data set or a job: `python -m service.pipeline.validate_job`.

Validation needs torch, so it runs in a separate process. The process reads one JSON object from stdin, writes one JSON
object to stdout, and ends with exit status 0. The answer is a description, or the reason why the input is rejected.

{"model": DIR}                                        -> the description of the model
{"dataset": DIR, "allowed": [ROOT...]}                -> the description of the data, as far as it needs no model
{"job": {...}, "model": DIR, "dataset": DIR or null, "allowed": [...]} -> both descriptions, after a check of the job

Each request can have "scratch": DIR, for temporary files, and "room": BYTES, to which an archive may unpack.
"""

import contextlib
import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.data.open_dataset import open_data
from models.data.unpacking_room import unpacking_room
from models.errors import DamagedFile, InvalidRequest, VitfitError
from models.field_errors import field_errors, in_words
from models.loading.load_model import open_model
from models.networks.network import Network
from search.methods import criterion_of, method_for, space_for
from service.cluster.ray_cluster import check_resources
from service.core.data_folder import JobFiles
from service.core.disk_space import is_full, storage_full
from service.core.limits import limit_in
from service.core.settings import Settings
from service.jobs.job_request import JobRequest
from service.pipeline.check_job import check_job
from service.pipeline.evaluation import Evaluation
from service.pipeline.precision import check_precisions


def main() -> None:
    request = json.load(sys.stdin)
    # stdout must hold nothing but the answer, and libraries may print.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tempfile.tempdir = request.get("scratch")
            with unpacking_room(request.get("room")):
                answer = {"ok": True, "description": describe(request)}
        except VitfitError as error:
            answer = _refused(request, error, error)
        except ValidationError as error:
            answer = _refused(request, error, InvalidRequest(in_words(field_errors(error.errors(include_url=False)))))
        except Exception as error:  # a reader of files from strangers can fail in any way
            if "job" in request and limit_in(error) is None and not is_full(error):
                raise  # the files were read when they were uploaded, so this is a defect of vitfit
            traceback.print_exc()
            answer = {**_refused(request, error, _unexpected(request, error)), "unexpected": True}
    json.dump(answer, sys.stdout)


def _refused(request: dict[str, Any], error: Exception, said: VitfitError) -> dict[str, Any]:
    """Return the answer for a rejected request. said: the error to report, unless disk or limits are the cause."""
    if is_full(error):
        said = storage_full(Path(request.get("dataset") or request["model"]), "The request could not be checked.")
    elif (which := limit_in(error)) is not None:
        return {"ok": False, "limit": which}
    return {"ok": False, "error": said.to_json()}


def _unexpected(request: dict[str, Any], error: Exception) -> DamagedFile:
    noun = "model" if "model" in request else "data set"
    return DamagedFile(
        f"vitfit cannot read the {noun} ({type(error).__name__}: {str(error)[:300]}). The file may be damaged, or of a"
        " kind that vitfit does not know. Save it again, and upload it again.",
    )


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """Return the description that the request asks for. Raises: the VitfitError that says why it is rejected."""
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
        "preprocessing": network.preprocessing.to_json(),
        "assumptions": list(network.assumptions),
    }


def describe_dataset(folder: Path, allowed: list[Path]) -> dict[str, Any]:
    """Describe a data set without a model.

    The sizes of images and the number of classes are not checked. Float images are assumed to have the right size.
    """
    return open_data(folder, None, None, allowed).describe()


def describe_job(job: dict[str, Any], model: Path, dataset: Path | None, allowed: list[Path]) -> dict[str, Any]:
    """Check a job as far as this is possible without measurements, and describe it.

    Raises: a subclass of VitfitError.
    """
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
        "warnings": [*evaluation.network.assumptions, *evaluation.data.warnings],
    }


if __name__ == "__main__":
    main()
