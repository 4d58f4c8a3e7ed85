"""Which precisions a job may use: each device of its budgets must run, and know, all of them."""

import dataclasses

from latency.devices.devices import CUDA, describe_device, is_here, is_reachable
from models.errors import InvalidRequest
from models.quantization.int8 import Quantiser
from models.structure import Precision, Structure
from service.jobs.job_request import JobRequest

MEASURED = ("latency", "memory")


def check_precisions(request: JobRequest) -> None:
    """Raises: UnknownName; InvalidRequest naming the precision, the device and what is allowed."""
    asked = next((precision for precision in request.precisions if precision != "fp32"), None)
    if asked is None:
        return
    if "fp16" in request.precisions and len(request.precisions) > 1:
        raise _refused(
            request, "fp16", "a device that runs it runs every network faster in it, so it goes alone", allowed=["fp16"]
        )
    if request.method == "spvit":
        raise _refused(request, asked, "method 'spvit' delivers a form whose tokens depend on the image, in fp32 only")
    for budget in request.budgets:
        if budget.metric.startswith(MEASURED):
            _check_device(request, budget.device, asked)


def check_quantisable(request: JobRequest, structure: Structure) -> None:
    """Raises: InvalidRequest for a network whose blocks have no linear layers: those are what is quantised."""
    in_int8 = (dataclasses.replace(block, precision="int8") for block in structure.blocks)
    if "int8" in request.precisions and not any(op.precision == "int8" for block in in_int8 for op in block.ops()):
        raise _refused(
            request, "int8", f"the blocks of {structure.name} are convolutions, and linear layers are quantised"
        )


def _check_device(request: JobRequest, device: str, asked: Precision) -> None:
    if device.startswith(CUDA):
        if asked == "int8":
            raise _refused(request, "int8", f"ONNX Runtime has no dynamic 8-bit products on {device}")
        return
    if is_reachable(device):
        if asked == "fp16":
            reason = f"{device} is a CPU, which runs it as fp32 with conversions around it"
            raise _refused(request, "fp16", reason, allowed=["fp32", "int8"])
        return
    known = describe_device(device)["precision"]
    for precision in request.precisions:
        if precision != known:
            raise _refused(request, precision, f"the profile {device!r} knows {known} only", allowed=[known])


def _refused(request: JobRequest, precision: str, reason: str, allowed: list[str] | None = None) -> InvalidRequest:
    allowed = allowed or [p for p in request.precisions if p != precision] or ["fp32"]
    return InvalidRequest(
        f"precisions names {precision!r}, which this job cannot have: {reason}. Use {allowed}.",
        field="precisions",
        value=list(request.precisions),
        allowed=allowed,
    )


def priced_in_one_precision(request: JobRequest) -> bool:
    """Whether a device is a profile: it takes every layer for one of its precision, so none may be left in another."""
    return any(b.metric.startswith(MEASURED) and not is_reachable(b.device) for b in request.budgets)


def quantiser_of(request: JobRequest) -> Quantiser:
    """How the job's 8-bit files are made. Of an agent's processor it is not known whether its products saturate."""
    away = any(budget.metric.startswith(MEASURED) and not is_here(budget.device) for budget in request.budgets)
    batches = [budget.setting.batch for budget in request.budgets if budget.metric.startswith(MEASURED)]
    together = batches[0] if batches else 1
    return Quantiser(weight_bits=7, together=together) if away else Quantiser.here(together)
