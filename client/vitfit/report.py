"""The report of a job as a typed record. `Report.to_json()` is the content of the artifact report.json.

The server fills the record. The report page, the model card, the summary of a job and the command line read it, and so
can your program: `Report.from_json(json.loads(text))`. docs/results.md explains every field.
"""

from dataclasses import dataclass
from typing import Any, Literal

from vitfit.result import Result
from vitfit.trial import Trial

Guarantee = Literal["measured", "predicted", "counted", "none"]
"""What a job promises about its budgets.

measured: every latency (and memory) was measured within its limit. predicted: the upper end of a profile's prediction
is within it. counted: only MACs, parameters or bytes were limited. none: a trial was delivered on request although a
budget is not met.
"""


@dataclass(frozen=True, kw_only=True)
class Latency(Result):
    """The median latency with its 95 % interval, and percentiles of single runs, all in ms.

    A percentile is None if there are too few runs for it (for p99: fewer than 1,000).
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorTime(Result):
    """The time of all operators of one kind.

    ms: per run, under ONNX Runtime's profiler, which adds a little to each operator. share: of the time of all
    operators.
    """

    operator: str
    count: int
    ms: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Footprint(Result):
    """The costs of a file apart from its steady latency.

    load_ms: time to read and optimise the graph. peak_mib: growth of the process's memory from before loading to its
    peak after the runs. operators: the slowest kind comes first.
    """

    load_ms: float
    first_run_ms: float
    peak_mib: float
    operators: tuple[OperatorTime, ...]


@dataclass(frozen=True, kw_only=True)
class Side(Result):
    """One of the two networks, the original or the delivered one.

    accuracy, correct: on the `images` of the test split; None if accuracy was not assessed. latency, footprint: None if
    they were not measured.
    """

    macs: int
    params: int
    bytes: int
    accuracy: float | None = None
    correct: int | None = None
    images: int = 0
    latency: Latency | None = None
    footprint: Footprint | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement(Result):
    """Agreement of the delivered network with the original on the test split.

    score: minus the mean KL divergence of the class probabilities (natural logarithm); 0 is perfect. same_answer: share
    of images with the same predicted class.
    """

    score: float
    same_answer: float


@dataclass(frozen=True, kw_only=True)
class LatencyRatio(Result):
    """Latency of the delivered file divided by that of the original.

    measured: with its 95 % interval low to high. predicted: when the trial was proposed. predicted_after_corrections:
    by the price model that the measurements have corrected. None: nothing was predicted.
    """

    measured: float
    low: float
    high: float
    predicted: float | None = None
    predicted_after_corrections: float | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetOutcome(Result):
    """A budget, and what became of it.

    share: the reached value (the upper end of its interval) divided by the limit; the budget is met if it is at most 1.
    text, outcome: the same in words.
    """

    metric: str
    limit: float
    device: str = ""
    setting: str = ""
    statistic: str = "p50"
    label: str
    share: float
    met: bool
    text: str
    outcome: str


@dataclass(frozen=True, kw_only=True)
class ForcedParity(Result):
    """Comparison of ONNX Runtime with PyTorch on the same images.

    max_relative: largest absolute difference of an output, divided by the largest absolute output. flips: number of
    images whose predicted class differs.
    """

    images: int
    max_abs: float
    max_relative: float
    flips: int


@dataclass(frozen=True, kw_only=True)
class QuantisedParity(Result):
    """Comparison of an 8-bit file with its fake quantisation in PyTorch.

    clear: number of images whose predicted class is certain despite quantisation. same_answers: share of them with the
    same predicted class. forced_same_answers: the same with given tokens.
    """

    images: int
    clear: int
    same_answers: float
    max_relative: float
    accuracy_file: float | None = None
    accuracy_emulated: float | None = None
    forced_same_answers: float | None = None
    flipped_sets: int | None = None


@dataclass(frozen=True, kw_only=True)
class ParityOutcome(Result):
    """The parity check of the delivered file; for an 8-bit file, of its network in fp32.

    flipped_sets: number of images for which ONNX Runtime keeps other tokens than PyTorch. forced: the comparison with
    given tokens. Both are None if the network removes no tokens. quantised: only for an 8-bit file.
    """

    images: int
    max_abs: float
    max_relative: float
    flips: int
    passed: bool
    flipped_sets: int | None = None
    forced: ForcedParity | None = None
    quantised: QuantisedParity | None = None


@dataclass(frozen=True, kw_only=True)
class Precision(Result):
    """Number formats of the delivered file.

    layers: number of linear layers that remain. exact: those that stay in fp32, as "<block of the original>.<layer>".
    weight_bits: bits of the weights of int8 layers; None for another precision.
    """

    name: str
    layers: int
    exact: tuple[str, ...] = ()
    weight_bits: int | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSizes(Result):
    """The sizes of one block of the original, each as (kept, original). A removed block keeps 0 of every size.

    qk, v: dims of a head. inputs: dims that q/k/v, the projection and fc1 read in total.
    """

    name: str
    heads: tuple[int, int]
    qk: tuple[int, int]
    v: tuple[int, int]
    neurons: tuple[int, int]
    tokens: tuple[int, int]
    inputs: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AxisShare(Result):
    """The fall of MACs and of latency when only one axis is pruned, as fractions of the original's.

    share: latency_fall divided by macs_fall; None if MACs fall by 0.5 % or less, because it would then be noise.
    """

    axis: str
    macs_fall: float
    latency_fall: float
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class SamplesMs(Result):
    """All latency samples in ms, by process, burst and run."""

    original: tuple[tuple[tuple[float, ...], ...], ...]
    delivered: tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True, kw_only=True)
class KeptTokens(Result):
    """How many tokens one selector keeps over images."""

    mean: float
    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Interval(Result):
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PredictedOverImages(Result):
    """Predicted latency over images of a file whose number of tokens depends on the image."""

    device: str
    setting: str
    mean_ms: float
    p95_ms: float


@dataclass(frozen=True, kw_only=True)
class MeasuredOverImages(Result):
    """Measured latency over images, and its ratio to the original's latency on the same images."""

    device: str
    setting: str
    mean_ms: Interval
    mean_ratio: Interval
    p95_ms: Interval
    p95_ratio: Interval


@dataclass(frozen=True, kw_only=True)
class DynamicParity(Result):
    """Comparison of ONNX Runtime with PyTorch, one image at a time.

    other_counts: number of images for which the two keep different numbers of tokens.
    """

    images: int
    max_relative: float
    other_counts: int


@dataclass(frozen=True, kw_only=True)
class DynamicTokens(Result):
    """The form whose number of tokens depends on the image (method spvit), and its costs over `images` images."""

    file: str
    threshold: float
    parity: DynamicParity
    images: int
    kept_tokens: tuple[KeptTokens, ...]
    macs_mean: float
    predicted: tuple[PredictedOverImages, ...]
    measured: tuple[MeasuredOverImages, ...]


@dataclass(frozen=True, kw_only=True)
class Report(Result):
    """Everything that a job found out about the network that it delivers.

    share_of_macs_fall: fall of latency divided by fall of MACs; None if MACs hardly fell. warnings: sentences.
    request: the body of POST /v1/jobs with all defaults.
    """

    version: str
    model: str
    method: str
    guarantee: Guarantee
    setting: str
    machine: str
    original: Side
    delivered: Side
    agreement: Agreement
    ratio: LatencyRatio
    budgets: tuple[BudgetOutcome, ...]
    parity: ParityOutcome
    precision: Precision
    blocks: tuple[BlockSizes, ...]
    axes: tuple[AxisShare, ...]
    share_of_macs_fall: float | None = None
    trials: tuple[Trial, ...]
    delivered_trial: int
    samples_ms: SamplesMs
    warnings: tuple[str, ...]
    request: dict[str, Any]
    dynamic_tokens: DynamicTokens | None = None


@dataclass(frozen=True, kw_only=True)
class JobResult(Result):
    """The short form of a report: the `result` of a job that has succeeded.

    rows: the summary table, as (label, before, after). notes: sentences below it.
    """

    rows: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    guarantee: Guarantee | None = None
    original: Side | None = None
    delivered: Side | None = None
    ratio: LatencyRatio | None = None
    budgets: tuple[BudgetOutcome, ...] = ()
    parity: ParityOutcome | None = None
    delivered_trial: int
