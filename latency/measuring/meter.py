"""Measures ONNX files on this machine. Original and candidates run interleaved; one measurement runs at a time."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitfit.child import ChildFailed, ask
from vitfit.machine import cpu_name

from latency.devices.devices import CPU, CUDA
from latency.devices.setting import Setting
from latency.measuring.machine_lock import Tell, measuring_lease, silent
from latency.measuring.sampling import Measurement, ratio
from models.errors import DeviceUnavailable


@dataclass(frozen=True)
class Effort:
    """How long to measure. Sampling ends when the interval of every ratio is narrower than `width` (relative to the
    ratio), or when the time is spent."""

    seconds: float = 12.0
    width: float = 0.02
    processes: int = 3
    """Minimum number of measuring processes; up to twice as many run while an interval is too wide."""
    rounds: int = 20
    """Minimum number of rounds in each process."""


Rounds = list[list[list[float]]]
"""Samples of one process in ms: [file][round][run of the burst]."""


class Meter:
    """Measures on this machine's CPU, or on one of its GPUs."""

    def __init__(self, setting: Setting, device: str = CPU, machine: str | None = None) -> None:
        self.device, self.setting, self.machine = device, setting, machine or cpu_name()

    def measure(
        self,
        files: Sequence[Path],
        effort: Effort,
        seed: int = 0,
        images: Path | None = None,
        *,
        what: str = "the files",
        tell: Tell = silent,
    ) -> list[Measurement]:
        """Take one measurement per file, in order. The first file is the original, with which the others are compared.

        images: an .npy file of float32 (n, C, H, W), which the rounds feed in turn. None: the input is noise. tell: is
        told which process measures `what`, and when the measurement waits for another one.

        Raises: DeviceUnavailable when the runtime refuses (threads, provider, batch).
        """
        slice_s = effort.seconds / (2 * effort.processes)
        processes: list[Rounds] = []
        most = 2 * effort.processes
        with self._lease(tell):
            for number in range(most):
                tell(f"measuring {what}, process {number + 1} of at most {most}")
                processes.append(self._one_process(files, slice_s, effort.rounds, seed + number, images=images))
                found = [self._measurement([p[i] for p in processes]) for i in range(len(files))]
                if number + 1 >= effort.processes and _narrow(found, effort.width):
                    break
        return found

    def _measurement(self, processes: list[list[list[float]]]) -> Measurement:
        samples = tuple(tuple(tuple(burst) for burst in rounds) for rounds in processes)
        return Measurement(self.device, self.machine, self.setting, samples)

    def _lease(self, tell: Tell) -> AbstractContextManager[None]:
        return measuring_lease(tell)

    def _one_process(
        self, files: Sequence[Path], seconds: float, rounds: int, seed: int, *, images: Path | None
    ) -> Rounds:
        request: dict[str, Any] = {
            "files": [str(file) for file in files],
            "threads": self.setting.threads,
            "batch": self.setting.batch,
            "provider": self.setting.provider,
            "gpu": int(self.device.removeprefix(CUDA)) if self.device.startswith(CUDA) else None,
            "seconds": seconds,
            "rounds": rounds,
            "seed": seed,
            "images": None if images is None else str(images),
        }
        try:
            return self._samples(ask([sys.executable, "-m", "vitfit.measuring"], request))
        except ChildFailed as error:
            raise DeviceUnavailable(
                f"The measuring process on {self.device} failed: {error}. Remove the cause, and measure again.",
                files=request["files"],
            ) from error

    def _samples(self, answer: dict[str, Any]) -> Rounds:
        if "refused" in answer:
            raise DeviceUnavailable(
                f"The device {self.device} cannot measure with the setting {self.setting}: {answer['refused']}. Change"
                " the setting, or use another device.",
                setting=self.setting.to_json(),
            )
        samples: Rounds = answer["samples_ms"]
        return samples


def _narrow(found: list[Measurement], width: float) -> bool:
    if len(found) == 1:
        return found[0].p50_ms.width <= width
    return all(ratio(candidate, found[0]).width <= width for candidate in found[1:])
