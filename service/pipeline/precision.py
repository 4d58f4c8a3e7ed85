"""Check which precisions a job may use. Every device of its budgets must support all of them."""

import dataclasses

from latency.devices.devices import CUDA, describe_device, is_here, is_reachable
from models.errors import InvalidRequest
from models.quantization.int8 import Quantiser
from models.structure import Precision, Structure
from service.jobs.job_request import JobRequest

MEASURED = ("latency", "memory")


def check_precisions(request: JobRequest) -> None:
    """Check that all devices of the budgets support the requested precisions.

    Raises: UnknownName; InvalidRequest, which names the precision, the reason and the allowed precisions.
    """
    asked = next((precision for precision in request.precisions if precision != "fp32"), None)
    if asked is None:
        return
    if "fp16" in request.precisions and len(request.precisions) > 1:
        raise _refused(
            request,
            "fp16",
            "fp16 must be the only precision, because a device that supports fp16 runs every network fastest in fp16",
            allowed=["fp16"],
        )
    if request.method == "spvit":
        raise _refused(request, asked, "method 'spvit' delivers a dynamic form, which exists in fp32 only")
    for budget in request.budgets:
        if budget.metric.startswith(MEASURED):
            _check_device(request, budget.device, asked)


def check_quantisable(request: JobRequest, structure: Structure) -> None:
    """Check that int8 is not requested for a network whose blocks have no linear layers: only these are quantised.

    Raises: InvalidRequest.
    """
    in_int8 = (dataclasses.replace(block, precision="int8") for block in structure.blocks)
    if "int8" in request.precisions and not any(op.precision == "int8" for block in in_int8 for op in block.ops()):
        raise _refused(
            request,
            "int8",
            f"vitfit quantises linear layers only, and the blocks of {structure.name} are convolutions",
        )


def _check_device(request: JobRequest, device: str, asked: Precision) -> None:
    if device.startswith(CUDA):
        if asked == "int8":
            raise _refused(request, "int8", f"ONNX Runtime cannot compute dynamic 8-bit products on {device}")
        return
    if is_reachable(device):
        if asked == "fp16":
            reason = f"{device} is a CPU, which converts fp16 to fp32 and then computes in fp32"
            raise _refused(request, "fp16", reason, allowed=["fp32", "int8"])
        return
    known = describe_device(device)["precision"]
    for precision in request.precisions:
        if precision != known:
            raise _refused(request, precision, f"the profile {device!r} describes {known} only", allowed=[known])


def _refused(request: JobRequest, precision: str, reason: str, allowed: list[str] | None = None) -> InvalidRequest:
    allowed = allowed or [p for p in request.precisions if p != precision] or ["fp32"]
    return InvalidRequest(
        f"precisions contains {precision!r}, which this job cannot use: {reason}. Use {allowed}.",
        field="precisions",
        value=list(request.precisions),
        allowed=allowed,
    )


def priced_in_one_precision(request: JobRequest) -> bool:
    """Return whether the device of a budget is a profile.

    A profile prices every layer in the profile's own precision, so no layer may stay in another precision.
    """
    return any(b.metric.startswith(MEASURED) and not is_reachable(b.device) for b in request.budgets)


def quantiser_of(request: JobRequest) -> Quantiser:
    """Return how the job makes its 8-bit files.

    For a processor on another machine, it is not known whether 8-bit products saturate. The weights then have 7 bits.
    """
    away = any(budget.metric.startswith(MEASURED) and not is_here(budget.device) for budget in request.budgets)
    batches = [budget.setting.batch for budget in request.budgets if budget.metric.startswith(MEASURED)]
    together = batches[0] if batches else 1
    return Quantiser(weight_bits=7, together=together) if away else Quantiser.here(together)
