"""The client library of a vitfit server: `Client`, its typed results, and one error type."""

from vitfit.client import Client, JobOptions
from vitfit.errors import Problem, VitfitError
from vitfit.results import Artifact, Budget, Dataset, Device, Job, Method, Model, Progress, Trial

__all__ = [
    "Artifact",
    "Budget",
    "Client",
    "Dataset",
    "Device",
    "Job",
    "JobOptions",
    "Method",
    "Model",
    "Problem",
    "Progress",
    "Trial",
    "VitfitError",
]
