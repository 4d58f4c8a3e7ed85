"""Show jobs, trials, devices and methods on the terminal."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from vitfit.offers import Device, Method
from vitfit.report import JobResult
from vitfit.results import Job
from vitfit.trial import Trial

console = Console()
COLOURS = {"succeeded": "green", "failed": "red", "canceled": "yellow", "running": "cyan"}


def seconds_text(seconds: float | None) -> str:
    """Return a text such as `1:05 left`, or an empty text if the time is unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


def number(value: float | None, form: str = ".4g") -> str:
    """Return the number as text, or a dash for None."""
    return "-" if value is None else format(value, form)


class JobBar:
    """A progress line for a running job.

    If the output is not a terminal, one plain line is printed for every change.
    """

    def __init__(self, to: Console | None = None) -> None:
        self._console = to or console
        self._last = ""
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<10}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.fields[total_text]} trials"),
            TextColumn("{task.fields[best]}"),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=False,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, job: Job) -> None:
        """Update the line to the job's state."""
        fields = _bar_fields(job)
        if not self._console.is_terminal:
            self._show_plain(job, fields)
        elif self._task is None:
            self._task = self._bar.add_task("", **fields)
        else:
            self._bar.update(self._task, **fields)

    def _show_plain(self, job: Job, fields: dict[str, Any]) -> None:
        line = (
            f"{job.id} {fields['stage']} {fields['completed']}/{fields['total_text']} trials {fields['best']}".rstrip()
        )
        if line != self._last:
            self._last = line
            self._console.print(line, soft_wrap=True, highlight=False)


def _bar_fields(job: Job) -> dict[str, Any]:
    progress = job.progress
    stage = job.stage if job.status == "running" and job.stage else job.status
    best = progress.best_score
    return {
        "completed": progress.trials_done,
        "total": progress.trials_total or None,
        "total_text": str(progress.trials_total) if progress.trials_total else "?",
        "stage": stage,
        "best": "" if best is None else f"best {best:.4f}",
        "left": "" if job.finished else seconds_text(progress.seconds_left),
    }


def followed(jobs: Iterable[Job], to: Console | None = None) -> Iterator[Job]:
    """Yield the jobs unchanged while a progress bar shows them."""
    with JobBar(to) as bar:
        for job in jobs:
            bar.show(job)
            yield job


def job_table(jobs: Iterable[Job]) -> Table:
    """Return a table with one row per job."""
    table = Table("job", "name", "status", "stage", "trials", "best", "guarantee", "created", box=None, pad_edge=False)
    for job in jobs:
        done = f"{job.progress.trials_done}/{job.progress.trials_total or '?'}"
        colour = COLOURS.get(job.status, "white")
        best = number(job.progress.best_score, ".4f")
        row = [job.id, escape(job.name or ""), f"[{colour}]{job.status}[/]", job.stage or "", done, best]
        table.add_row(*row, job.guarantee or "", (job.created_at or "")[:19].replace("T", " "))
    return table


def show_job(job: Job, to: Console | None = None) -> None:
    """Print a job, its error or result, and the next possible command."""
    out = to or console
    out.print(job_table([job]))
    if job.error:
        out.print(f"{job.error.title}: {job.error.detail}", markup=False, soft_wrap=True)
    if job.result:
        show_result(job.result, out)
    if job.status == "succeeded":
        out.print(
            f"Download its files: vitfit download {job.id} --output DIR", markup=False, highlight=False, soft_wrap=True
        )
    elif not job.finished:
        out.print(f"Follow it: vitfit watch {job.id}", markup=False, highlight=False, soft_wrap=True)


def show_result(result: JobResult, to: Console | None = None) -> None:
    """Print the result of a job: its rows as a table, and its notes below."""
    out = to or console
    if result.rows:
        table = Table("", "before", "after", box=None, pad_edge=False)
        for row in result.rows:
            table.add_row(*map(escape, row))
        out.print(table, highlight=False)
    for note in result.notes:
        out.print(note, markup=False, highlight=False, soft_wrap=True)


def trial_table(trials: Iterable[Trial]) -> Table:
    """Return a table with one row per trial and one column per budget."""
    rows = list(trials)
    labels = list(dict.fromkeys(label for trial in rows for label in trial.costs))
    table = Table("trial", "score", "accuracy", "agreement", *labels, "origin", "seconds", box=None, pad_edge=False)
    for trial in rows:
        costs = [number(trial.costs.get(label)) for label in labels]
        mark = " *" if trial.start else ""
        scores = [number(trial.score, ".4f"), number(trial.accuracy, ".4f"), number(trial.agreement, ".4f")]
        table.add_row(f"{trial.number}{mark}", *scores, *costs, trial.origin or "", number(trial.seconds, ".1f"))
    if any(trial.start for trial in rows):
        table.caption = "* starting point"
    return table


def device_table(devices: Iterable[Device]) -> Table:
    """Return a table with one row per device."""
    table = Table("device", "latency", "threads", "precision", "description", box=None, pad_edge=False)
    for device in devices:
        kind = "measured" if device.reachable else "predicted"
        table.add_row(
            device.name, kind, number(device.threads, "d"), device.precision or "", escape(device.description)
        )
    return table


def method_table(methods: Iterable[Method]) -> Table:
    """Return a table with one row per method."""
    table = Table("method", "title", "makes smaller", "criteria", "training", box=None, pad_edge=False)
    for method in methods:
        axes, criteria = ", ".join(method.axes), ", ".join(method.criteria)
        table.add_row(method.name, escape(method.title), axes, criteria, method.training or "")
    return table
