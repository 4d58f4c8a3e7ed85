"""The schema of a device profile: a data file with units, source and date. docs/devices.md documents it.

A profile is a measured table of one network, or it has one of three models. `roofline`: a core with a cache. `tiled`: a
matrix engine and separate units for softmax, norms and activations; operations run one after the other. `pipeline`: one
hardware stage for each layer; the slowest stage sets the speed.
"""

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from models.errors import InvalidRequest
from models.field_errors import field_errors, in_words
from models.structure import Structure

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Kind = Literal["softmax", "norm", "activation", "add", "scale", "gather", "move", "reduce", "pool", "table"]

UNITS = {
    "peak_macs_per_s": "multiply-accumulates per second",
    "bandwidth_bytes_per_s": "bytes per second",
    "half_inner": "summed dim at which half of the peak is reached",
    "half_cols": "columns at which half of the peak is reached",
    "lanes": "values per vector register",
    "ns_per_value": "nanoseconds per value written",
    "overhead_s_per_operation": "seconds",
    "clock_hz": "cycles per second",
    "tile": "one tile product per cycle: rows x inner x cols multipliers",
    "values_per_cycle": "values per cycle",
    "tokens_per_cycle": "rows that each stage takes at a time",
    "stages": "multipliers of each stage: inner x cols",
    "passes": "times that norm and softmax read each value",
    "classifier_macs_per_cycle": "multiply-accumulates per cycle",
    "relative_uncertainty": "half-width of the 90 % interval over the value",
}
"""The unit of each number. A profile repeats the units of the numbers that it has, so that nobody mistakes them."""
TABLE_UNITS = {"original_ms": "milliseconds per run"}
LEAST_SAMPLES = 6
"""Minimum number of measured structures in a table: fewer say nothing about twenty features."""
NAME = r"^[a-z0-9][a-z0-9.@_-]{0,63}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Strict):
    """A published latency and the profile's prediction. fitted: it was used to fit the profile, so it proves little."""

    model: str
    image_size: Count
    published_ms: Positive
    predicted_ms: Positive
    fitted: bool
    source: str = ""

    @property
    def error(self) -> float:
        return self.predicted_ms / self.published_ms - 1


class _Profile(_Strict):
    name: str = Field(pattern=NAME)
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    description: str = Field(min_length=1)
    source: str = Field(min_length=1)
    date: datetime.date
    units: dict[str, str]
    relative_uncertainty: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    threads: Count = 1
    checks: tuple[Check, ...] = ()

    @model_validator(mode="after")
    def _units_are_those_of_the_numbers(self) -> "_Profile":
        wanted = {name: unit for name, unit in UNITS.items() if name in self.model_fields_set}
        for name, unit in wanted.items():
            if self.units.get(name) != unit:
                raise ValueError(f"units.{name} is {self.units.get(name)!r}, but it must be {unit!r}")
        if unknown := sorted(set(self.units) - set(wanted)):
            raise ValueError(
                f"units names {unknown[0]!r}, but this profile has no such number. Allowed: {', '.join(wanted)}"
            )
        return self

    @model_validator(mode="after")
    def _unchecked_is_called_generic(self) -> "_Profile":
        if not any(not check.fitted for check in self.checks) and not self.name.startswith(("generic-", "user-")):
            raise ValueError(
                f"the profile {self.name!r} has no check with fitted: false, so no published latency tests it. Add"
                " such a check, or begin the name with generic- (a typical device) or user- (your own device)"
            )
        return self


class Roofline(_Profile):
    model: Literal["roofline"]
    peak_macs_per_s: Annotated[float, Field(ge=1e6, le=1e16)]
    bandwidth_bytes_per_s: Annotated[float, Field(ge=1e5, le=1e14)]
    half_inner: Cost
    half_cols: Cost = 0.0
    lanes: Annotated[int, Field(ge=1, le=1024)]
    ns_per_value: dict[Kind, Cost]
    overhead_s_per_operation: Annotated[float, Field(ge=0, le=1)]


class Tile(_Strict):
    rows: Count
    inner: Count
    cols: Count


class Tiled(_Profile):
    model: Literal["tiled"]
    clock_hz: Annotated[float, Field(ge=1e5, le=1e11)]
    tile: Tile
    bandwidth_bytes_per_s: Annotated[float, Field(ge=1e5, le=1e14)]
    values_per_cycle: dict[Kind, Positive]
    overhead_s_per_operation: Annotated[float, Field(ge=0, le=1)]


class Lanes(_Strict):
    """Multipliers of one stage. Each cycle it processes `inner` summed values for each of `cols` columns."""

    inner: Count
    cols: Count


class Stages(_Strict):
    """Multipliers of each stage. The stages qkv, scores and values exist once for each head."""

    patch: Lanes
    qkv: Lanes
    scores: Lanes
    values: Lanes
    proj: Lanes
    fc1: Lanes
    fc2: Lanes


class Pipeline(_Profile):
    model: Literal["pipeline"]
    clock_hz: Annotated[float, Field(ge=1e5, le=1e11)]
    tokens_per_cycle: Count
    stages: Stages
    passes: Count
    classifier_macs_per_cycle: Count


class Ratio(_Strict):
    """Latency divided by the original's, measured in turn with the original, and the ends of its 95 % interval."""

    value: Positive
    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _ends_in_order(self) -> "Ratio":
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"low is {self.low}, value is {self.value} and high is {self.high}, but low <= value <= high must hold"
            )
        return self


class MeasuredStructure(_Strict):
    structure: dict[str, Any]
    ratio: Ratio


class MeasuredTable(_Strict):
    """Latencies of one network and of smaller networks made from it, as `vitfit measure MODEL --table FILE` writes them
    on a device. The table prices this network only. It is normal if some larger
    structures took less time than smaller ones.
    """

    name: str = Field(pattern=NAME)
    model: Literal["table"]
    precision: Literal["fp32"]
    description: str = Field(min_length=1)
    source: str = Field(min_length=1)
    date: datetime.date
    units: Annotated[dict[str, str], Field(description="original_ms: milliseconds per run")]
    threads: Count
    batch: Count
    machine: str = Field(min_length=1)
    runtime: str = Field(min_length=1)
    original: dict[str, Any]
    original_ms: Positive
    samples: Annotated[tuple[MeasuredStructure, ...], Field(min_length=LEAST_SAMPLES, max_length=1000)]

    @model_validator(mode="after")
    def _units_and_structures(self) -> "MeasuredTable":
        if self.units != TABLE_UNITS:
            raise ValueError(f"units is {self.units!r}, but it must be {TABLE_UNITS!r}")
        for number, document in enumerate([self.original, *(sample.structure for sample in self.samples)]):
            try:
                Structure.from_json(document)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                where = f"samples.{number - 1}.structure" if number else "original"
                raise ValueError(f"{where} is not the structure of a network ({error})") from error
        return self


AnyProfile = Roofline | Tiled | Pipeline | MeasuredTable
_ADAPTER: TypeAdapter[AnyProfile] = TypeAdapter(Annotated[AnyProfile, Field(discriminator="model")])


def parse_profile(document: Any) -> AnyProfile:
    """Check and parse a profile. Raises: InvalidRequest, which names the field, its value and what is allowed."""
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        said = in_words(field_errors(error.errors(include_url=False)))
        raise InvalidRequest(
            f"The device profile is not valid. {said} docs/devices.md describes all fields of a profile."
        ) from error
