"""What the operator of a machine says about its measurements, in environment variables. Standard library only.

All processes of a machine must agree on these values: a server, its workers, and a command on the same machine. That is
why they are environment variables, which children inherit, and not arguments. Only this file reads them.
"""

import os
import tempfile
from pathlib import Path
from typing import Final

LOCKS: Final = "VITFIT_LOCKS"
"""Folder of the locks for measurements. The default is the folder for temporary files. Tests that run in parallel have
one folder each."""
ADDED: Final = "VITFIT_DEVICES"
"""Folder of the devices that users added. Without it, there are none."""
PATIENCE: Final = "VITFIT_DEVICE_PATIENCE_S"
"""Seconds that a job waits for an agent, a cluster or a node that is silent. Agents ask for work every half minute."""
PATIENCE_S = 600.0


def lock_folder() -> Path:
    """Return the folder of the locks. Raises: FileNotFoundError if there is no folder for temporary files."""
    return Path(os.environ.get(LOCKS) or tempfile.gettempdir())


def added_devices() -> list[Path]:
    """Return the files of the devices that users added, sorted by name."""
    return sorted(Path(os.environ[ADDED]).glob("*.json")) if ADDED in os.environ else []


def patience_s() -> float:
    """Return for how many seconds a job waits for a device, a cluster or a node that does not answer."""
    return float(os.environ.get(PATIENCE, PATIENCE_S))
