"""Measure a latency table of one network on this machine, for `vitfit measure MODEL --table FILE`."""

import datetime
import tempfile
from pathlib import Path
from typing import Any

from latency.devices.profile_schema import TABLE_UNITS, parse_profile
from models.loading.load_model import open_model
from service.jobs.job_request import JobRequest
from service.pipeline.compress import model_folder
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import fit
from service.pipeline.verification import Verifier


def measured_table(
    model: dict[str, Any], checkpoint: Path | None, name: str, threads: int, *, batch: int
) -> dict[str, Any]:
    """Measure about 24 smaller forms of the model, and return the document that `POST /v1/devices` accepts.

    model: the content of a model.json. checkpoint: file or folder with the weights; None: timm provides them. name:
    name of the device in the document. threads, batch: the setting.

    Raises: a subclass of VitfitError.
    """
    place = {"device": "cpu", "setting": {"threads": threads, "batch": batch}}
    request = JobRequest.model_validate(
        {"model": "local", "budgets": [{"metric": "latency_keep", "limit": 1, **place}]}
    )
    with tempfile.TemporaryDirectory(prefix="vitfit-") as folder:
        network = open_model(model_folder(Path(folder) / "model", model, checkpoint))
        pricing = Pricing(request, network.structure)
        table = fit(pricing.measured_places[0], network, Verifier(network, pricing, Path(folder), request.seed))
    document = {
        "name": name,
        "model": "table",
        "precision": "fp32",
        "units": TABLE_UNITS,
        "description": f"{table.original.name} on {table.machine}, {table.setting}",
        "source": "vitfit measure",
        "date": datetime.date.today().isoformat(),
        "threads": threads,
        "batch": batch,
        "machine": table.machine,
        "runtime": table.setting.runtime,
        "original": table.original.to_json(),
        "original_ms": table.original_ms,
        "samples": [sample.to_json() for sample in table.samples[1:]],
    }
    parse_profile(document)
    return document
