"""Measures on a device that runs an agent: the same rounds, in the same processes, at the other end of a mailbox."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from latency.devices.devices import is_here, machine_of, mailbox_of
from latency.devices.host import patience_s
from latency.devices.mailbox import Mailbox
from latency.devices.setting import Setting
from latency.measuring.machine_lock import Tell
from latency.measuring.meter import Meter, Rounds
from models.errors import DeviceUnavailable
from models.export.onnx_store import files_of

POLL_S = 0.2


class RemoteMeter(Meter):
    def __init__(self, device: str, setting: Setting) -> None:
        """Open the mailbox of the device. Raises: UnknownName."""
        super().__init__(setting, device, machine_of(device))
        self._mailbox: Mailbox = mailbox_of(device)
        self._heard: tuple[float | None, float] = (None, time.monotonic())

    def _lease(self, tell: Tell) -> AbstractContextManager[None]:
        """Take no lock on this machine. Tasks of several jobs queue at the device instead."""
        return nullcontext()

    def _one_process(
        self, files: Sequence[Path], seconds: float, rounds: int, seed: int, *, images: Path | None
    ) -> Rounds:
        """Let the agent measure.

        Raises: DeviceUnavailable when the agent refuses, when it is silent for too long, or for files above 2 GiB.
        """
        large = [file.name for file in files if len(files_of(file)) > 1]
        if large:
            raise DeviceUnavailable(
                f"The model file {large[0]} is larger than 2 GiB. An agent takes files of at most 2 GiB. Use device"
                " 'cpu' or a device profile.",
                device=self.device,
            )
        request = {**self.setting.to_json(), "seconds": seconds, "rounds": rounds, "seed": seed}
        task = self._mailbox.post(request, files, images)
        try:
            answer = None
            while answer is None:
                self._require_life()
                time.sleep(POLL_S)
                try:
                    answer = self._mailbox.answer(task)
                except FileNotFoundError:  # a clock was set forward, so the task looked abandoned
                    task = self._mailbox.post(request, files, images)
        finally:
            self._mailbox.withdraw(task)
        return self._samples(answer)

    def _require_life(self) -> None:
        """Raise DeviceUnavailable if the agent is silent for too long.

        A monotonic clock measures the silence here, because the clock behind the times of files may jump by hours.
        """
        heard_at = self._mailbox.heard_at()
        if heard_at != self._heard[0]:
            self._heard = heard_at, time.monotonic()
        silent, patience = time.monotonic() - self._heard[1], patience_s()
        if silent > patience or heard_at is None:
            raise DeviceUnavailable(
                f"The agent of {self.device} has been silent for {silent:.0f} s. The limit is {patience:.0f} s. Start"
                " the agent again with `vitfit agent`. Then start the job again with POST /v1/jobs.",
                device=self.device,
                silent_s=round(silent),
            )


def meter_of(device: str, setting: Setting) -> Meter:
    return Meter(setting, device, machine_of(device)) if is_here(device) else RemoteMeter(device, setting)
