"""Check the numbers of a job request without torch.

The server makes these checks for every request, also when the validation has no time for it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import DeviceUnavailable, InvalidRequest
from search.budgets import quantity_of
from service.jobs.job_request import BudgetRequest, JobRequest

MOST_KEEP = 1.0


def check_keeps(request: JobRequest) -> None:
    """Check that no budget allows more than the original needs.

    The schema itself allows larger fractions, because jobs of earlier versions have them.

    Raises: InvalidRequest.
    """
    for number, budget in enumerate(request.budgets):
        if budget.metric.endswith("_keep") and budget.limit > MOST_KEEP:
            raise InvalidRequest(
                f"The budget {budget.metric} is {budget.limit:g}, but it is a fraction of the original's value. "
                "Allowed is a number above 0 and at most 1. For 60 % of the original's value, give 0.6.",
                field=f"budgets.{number}.limit",
                value=budget.limit,
                allowed={"gt": 0, "le": MOST_KEEP},
            )


def check_threads(budget: BudgetRequest, device: Mapping[str, Any]) -> None:
    """Check that the device of a latency or memory budget has the budget's number of threads.

    device: its description, as `describe_device` returns it.

    Raises: DeviceUnavailable for a device that is measured; InvalidRequest for a profile, which describes only one
    number of threads.
    """
    asked, known = budget.setting.threads, device["threads"]
    if quantity_of(budget.metric) not in ("latency", "memory") or known is None:
        return
    if device["kind"] == "profile" and asked != known:
        raise InvalidRequest(
            f"The profile {budget.device!r} does not describe {asked} threads. Set threads to {known}.",
            threads=asked,
            allowed=[known],
        )
    if device["kind"] != "profile" and asked > known:
        raise DeviceUnavailable(
            f"A budget asks for {asked} threads on {budget.device}, but this device has {known}. "
            f"Set threads to {known} or less.",
            threads=asked,
            available=known,
        )


def check_counts(budgets: Sequence[BudgetRequest], model: Mapping[str, Any]) -> None:
    """Check that the budgets of MACs and parameters leave room for any network at all.

    A network multiplies each value of the image at least once, and its classifier has a parameter for each class. A
    smaller budget is a mistake, such as 2.5 where 2.5 G was meant. The smallest network that the search can build is
    larger than this; only the job itself knows it.

    model: the description of the model (`vitfit.results.ModelDescription`).

    Raises: InvalidRequest.
    """
    least = {"macs": math.prod(model["image"]), "params": int(model["classes"])}
    for number, budget in enumerate(budgets):
        quantity = quantity_of(budget.metric)
        if quantity not in least:
            continue
        whole = int(model[quantity])
        allowed = budget.limit * whole if budget.metric.endswith("_keep") else budget.limit
        if allowed < least[quantity] <= whole:
            noun = "MACs" if quantity == "macs" else "parameters"
            raise InvalidRequest(
                f"The budget {budget.metric} is {budget.limit:g}, which is {allowed:,.0f} {noun}, but the model has "
                f"{whole:,}, and no network for its images and classes has fewer than {least[quantity]:,}. "
                "Raise the budget.",
                field=f"budgets.{number}.limit",
                value=budget.limit,
                least=least[quantity],
                original=whole,
            )
