"""The client library of a vitfit server: `Client`, its typed results, and one error type."""

from vitfit.client import Client, JobOptions
from vitfit.errors import Problem, VitfitError
from vitfit.offers import Device, Method
from vitfit.report import JobResult, Report
from vitfit.results import Artifact, Budget, Dataset, Job, Model, Progress, Validation
from vitfit.trial import Trial

__all__ = [
    "Artifact",
    "Budget",
    "Client",
    "Dataset",
    "Device",
    "Job",
    "JobOptions",
    "JobResult",
    "Method",
    "Model",
    "Problem",
    "Progress",
    "Report",
    "Trial",
    "Validation",
    "VitfitError",
]
