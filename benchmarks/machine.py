"""Facts that belong to every figure: machine, number of cores, versions and date."""

import datetime
import os
from importlib.metadata import version

from vitfit.machine import cpu_name

PACKAGES = ("torch", "onnxruntime", "timm", "scikit-optimize")


def machine() -> dict[str, str]:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores",
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }
