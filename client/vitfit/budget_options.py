"""Command-line options for the budgets and the search of a job, shared by `vitfit submit` and `vitfit compress`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from vitfit.client import JobOptions
from vitfit.results import Budget

BUDGET_PANEL = "Budgets (upper limits; the result must meet all of them)"
SEARCH_PANEL = "Search"
METRICS = (
    "latency_keep",
    "latency_ms",
    "macs",
    "macs_keep",
    "params",
    "params_keep",
    "file_bytes",
    "file_keep",
    "memory_bytes",
    "memory_keep",
)
SUFFIXES = {"K": 1e3, "M": 1e6, "G": 1e9}
Limits = list[str] | None


def _limit_option(flag: str, meaning: str, metavar: str = "LIMIT") -> Any:
    return typer.Option(flag, help=meaning, metavar=metavar, rich_help_panel=BUDGET_PANEL)


@dataclass(frozen=True)
class BudgetOptions:
    """Options for budgets.

    Each limit can be given more than once. `LIMIT@DEVICE` sets a limit for another device than `--device`.
    """

    latency_keep: Annotated[
        Limits,
        _limit_option("--budget-latency-keep", "Fraction of the original's latency: 0.6 or 60%.", "LIMIT[@DEVICE]"),
    ] = None
    latency_ms: Annotated[
        Limits,
        _limit_option(
            "--budget-latency-ms", "Latency in milliseconds of one run (with --batch images).", "LIMIT[@DEVICE]"
        ),
    ] = None
    macs: Annotated[
        Limits, _limit_option("--budget-macs", "Number of multiply-accumulates for one image, for example 2.5G.")
    ] = None
    macs_keep: Annotated[Limits, _limit_option("--budget-macs-keep", "Fraction of the original's MACs.")] = None
    params: Annotated[Limits, _limit_option("--budget-params", "Number of parameters, for example 12M.")] = None
    params_keep: Annotated[Limits, _limit_option("--budget-params-keep", "Fraction of the original's parameters.")] = (
        None
    )
    file_bytes: Annotated[
        Limits, _limit_option("--budget-file-bytes", "Size of the ONNX file in bytes, for example 10M.")
    ] = None
    file_keep: Annotated[
        Limits, _limit_option("--budget-file-keep", "Fraction of the size of the original's file.")
    ] = None
    memory_bytes: Annotated[
        Limits,
        _limit_option(
            "--budget-memory-bytes", "Peak growth in memory, in bytes, of a process that runs the file, such as 200M."
        ),
    ] = None
    memory_keep: Annotated[Limits, _limit_option("--budget-memory-keep", "Fraction of the original's memory.")] = None
    device: Annotated[
        str,
        typer.Option(
            help="Device of the latency budgets. `vitfit devices` lists all devices.", rich_help_panel=BUDGET_PANEL
        ),
    ] = "cpu"
    threads: Annotated[
        int, typer.Option(min=1, help="Number of threads on the device.", rich_help_panel=BUDGET_PANEL)
    ] = 1
    batch: Annotated[int, typer.Option(min=1, help="Number of images in one run.", rich_help_panel=BUDGET_PANEL)] = 1
    statistic: Annotated[
        Literal["p50", "mean", "p95"],
        typer.Option(
            help="Value that the latency budgets limit. p50: the median. mean, p95: over images (--method spvit only).",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = "p50"

    def budgets(self, objective: str | None = None) -> tuple[Budget, ...]:
        """Return all budgets that were given.

        objective: with latency, the latency on the device is limited to that of the original if no budget was given.

        Raises: typer.BadParameter if there is no budget, or if a limit is not allowed.
        """
        found = [self._budget(metric, text) for metric in METRICS for text in getattr(self, metric) or ()]
        if not found and objective == "latency":
            return (Budget("latency_keep", 1.0, self.device, self.threads, self.batch, self.statistic),)
        if not found:
            raise typer.BadParameter(
                "There is no budget. Give at least one budget, for example --budget-latency-keep 0.6, "
                "--budget-latency-ms 20 or --budget-macs-keep 0.6. Or give --objective latency and --max-loss 0.01."
            )
        return tuple(found)

    def _budget(self, metric: str, text: str) -> Budget:
        flag = f"--budget-{metric.replace('_', '-')}"
        number, at, device = text.partition("@")
        if at and not metric.startswith("latency"):
            raise typer.BadParameter(f"{flag} {text}: only a latency budget can name a device. Write {flag} {number}.")
        if at and not device:
            raise typer.BadParameter(f"{flag} {text}: the name of the device is missing after '@'. Add the name.")
        limit = parse_limit(number, flag)
        where = self.device if metric.startswith("latency") else "cpu"
        return Budget(metric, limit, device or where, self.threads, self.batch, self.statistic)


def parse_limit(text: str, flag: str) -> float:
    """Parse a limit, which must be a number above 0. A fraction must be at most 1.

    The number can have the suffix K, M or G. For a fraction, it can have the suffix % instead.

    Raises: typer.BadParameter.
    """
    fraction = flag.endswith("-keep")
    scale, digits = 1.0, text.strip()
    if fraction and digits.endswith("%"):
        scale, digits = 0.01, digits[:-1]
    elif not fraction and digits[-1:].upper() in SUFFIXES:
        scale, digits = SUFFIXES[digits[-1].upper()], digits[:-1]
    try:
        limit = float(digits) * scale
    except ValueError:
        limit = float("nan")
    if not 0 < limit < float("inf"):
        raise typer.BadParameter(
            f"{flag} {text}: the limit must be a number above 0, for example {flag} {_example(flag)}."
        )
    if fraction and limit > 1:
        raise typer.BadParameter(
            f"{flag} {text}: the limit is a fraction of the original's value, so it must be above 0 and at most 1 "
            f"(100%). For 60 % of the original's value, give {flag} 0.6."
        )
    return limit


def _example(flag: str) -> str:
    return "0.6" if flag.endswith("-keep") else "20" if flag.endswith("-ms") else "2.5G"


@dataclass(frozen=True)
class SearchOptions:
    """Options for the search.

    An omitted option is not sent, so the defaults are defined only on the server.
    """

    method: Annotated[
        str | None,
        typer.Option(
            help="Method of the search. `vitfit methods` lists all methods. (default: joint)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    criterion: Annotated[
        str | None,
        typer.Option(
            help="Criterion that scores the members. (default: the method's own)", rich_help_panel=SEARCH_PANEL
        ),
    ] = None
    basis: Annotated[
        str | None,
        typer.Option(
            metavar="rotated|chosen",
            help="rotated: cut dims in bases that are computed for the network. chosen: choose among its own dims. "
            "(default: rotated for method joint)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    space: Annotated[
        str | None,
        typer.Option(
            help="Space of the search. Method mdc also supports paper. (default: the method's own)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    target_shape: Annotated[
        str | None,
        typer.Option(
            help="A smaller timm model. The job delivers its exact shape. Methods joint and up-vit.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    parallel_trials: Annotated[
        int | None,
        typer.Option(
            help="Number of trials that the server's cluster runs at the same time. (default: 1)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of policies that the search tries. (default: 32)", rich_help_panel=SEARCH_PANEL
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the random numbers. (default: 0)", rich_help_panel=SEARCH_PANEL)
    ] = None
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="Precisions that the search may use: fp32, int8, or both (fp32,int8). "
            "fp16 is for GPUs and must be the only precision. Can be repeated. (default: fp32)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    no_recovery: Annotated[
        bool, typer.Option("--no-recovery", help="Do not recover pruned networks.", rich_help_panel=SEARCH_PANEL)
    ] = False
    keep_spatial: Annotated[
        bool,
        typer.Option(
            "--keep-spatial", help="Keep all tokens, for detection and segmentation.", rich_help_panel=SEARCH_PANEL
        ),
    ] = False
    heal_steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of steps of healing: training without labels, towards the internal states of the original. "
            "(default: 0)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    finetune_epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Number of epochs of fine-tuning. (default: 0)", rich_help_panel=SEARCH_PANEL),
    ] = None
    gate_epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of epochs in which gates are trained. Method vtp needs 1 or more. (default: 0)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="score|latency",
            help="score: find the best score within the budgets. "
            "latency: find the lowest latency with a loss of at most --max-loss. (default: score)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Largest allowed loss of accuracy. 0.01 is one percentage point.", rich_help_panel=SEARCH_PANEL
        ),
    ] = None

    priority: Annotated[
        int | None,
        typer.Option(
            help="From -100 to 100. Jobs with a higher priority start first. (default: 0)", rich_help_panel=SEARCH_PANEL
        ),
    ] = None
    time_limit_s: Annotated[
        float | None,
        typer.Option(
            "--time-limit-s",
            help="Time limit in seconds. A job that takes longer fails. (default: none)",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None

    def options(self) -> JobOptions:
        """Return the options as `Client.submit` takes them.

        Raises: typer.BadParameter if only one of --max-loss and --objective latency is given.
        """
        if (self.objective == "latency") != (self.max_loss is not None):
            raise typer.BadParameter("--max-loss and --objective latency belong together. Give both or neither.")
        given: JobOptions = {}
        for name in (
            "method",
            "criterion",
            "basis",
            "space",
            "trials",
            "parallel_trials",
            "seed",
            "objective",
            "max_loss",
            "priority",
            "time_limit_s",
        ):
            if getattr(self, name) is not None:
                given[name] = getattr(self, name)
        if self.target_shape is not None:
            given["target"] = self.target_shape
        if self.precision:
            given["precisions"] = [name.strip() for text in self.precision for name in text.split(",")]
        if self.no_recovery:
            given["recovery"] = False
        if self.keep_spatial:
            given["keep_spatial"] = True
        if self.heal_steps is not None:
            given["heal"] = {"steps": self.heal_steps}
        if self.finetune_epochs is not None:
            given["finetune"] = {"epochs": self.finetune_epochs}
        if self.gate_epochs is not None:
            given["gates"] = {"epochs": self.gate_epochs}
        return given
