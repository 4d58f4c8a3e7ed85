"""Predict latencies from a device profile, with one formula for each kind of profile.

A profile is a data file with units and sources (`latency.devices.profile_schema`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from latency.devices.devices import read_device
from latency.devices.setting import Setting
from latency.measuring.sampling import Interval
from latency.prediction.fpga import Pipeline, Tiled
from latency.prediction.pricer import Prediction, Pricer
from latency.prediction.roofline import Roofline
from latency.prediction.table import Sample, Table, TablePricer
from models.errors import InvalidRequest
from models.structure import Block, Op, Structure


class Model(Protocol):
    """Computes the seconds of a block, of a single operation, and of a network that consists of such parts."""

    def block_s(self, block: Block, batch: int) -> float: ...

    def op_s(self, op: Op, batch: int) -> float: ...

    def network_s(self, parts_s: list[float]) -> float: ...


MODELS: dict[str, Callable[[dict[str, Any]], Model]] = {"roofline": Roofline, "tiled": Tiled, "pipeline": Pipeline}


def pricer_of(device: str, setting: Setting, original: Structure) -> Pricer:
    """The pricer of a device that cannot be reached.

    Raises: InvalidRequest when the device has a measured table for another network or batch size.
    """
    profile = read_device(device)
    if profile["model"] != "table":
        return ProfilePricer(device, setting, profile)
    known = Structure.from_json(profile["original"])
    if known.key != original.key or setting.batch != profile["batch"]:
        raise InvalidRequest(
            f"The measured table of device {device!r} is for {known.name} with batch size {profile['batch']}. The job"
            f" needs a table for {original.name} with batch size {setting.batch}. Measure this model on the device:"
            " vitfit measure MODEL --table FILE.",
            device=device,
            measured=known.name,
            batch=profile["batch"],
        )
    samples = (Sample(known, Interval(1.0, 1.0, 1.0)), *map(Sample.from_json, profile["samples"]))
    exact = Setting(setting.threads, setting.batch, runtime=profile["runtime"])
    return TablePricer(Table(device, profile["machine"], exact, known, profile["original_ms"], samples))


class ProfilePricer:
    """Prices structures by a profile. It is deterministic; each block is priced once and its price is remembered."""

    def __init__(self, name: str, setting: Setting, profile: dict[str, Any] | None = None) -> None:
        """profile: used in place of the stored profile of that name."""
        self.device, self.setting = name, setting
        self._profile = read_device(name) if profile is None else profile
        self._model = MODELS[self._profile["model"]](self._profile)
        self._blocks: dict[Block, float] = {}

    def price(self, structures: Sequence[Structure]) -> Prediction:
        ms = np.asarray([1e3 * self._structure_s(structure) for structure in structures])
        return Prediction(ms, ms * self._profile["relative_uncertainty"], f"profile {self.device}")

    def _structure_s(self, structure: Structure) -> float:
        ops = [*structure.stem, *structure.tail]
        for stage in structure.stages:
            ops += stage.entry
            ops += [op for branch in stage.branches for op in branch.ops()]
        parts = [self._model.op_s(op, self.setting.batch) for op in ops]
        return self._model.network_s(parts + [self._block_s(block) for block in structure.blocks])

    def _block_s(self, block: Block) -> float:
        if block not in self._blocks:
            self._blocks[block] = self._model.block_s(block, self.setting.batch)
        return self._blocks[block]
