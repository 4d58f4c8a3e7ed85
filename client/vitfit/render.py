"""Show jobs, trials, devices and methods on the terminal."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from vitfit.offers import Device, Method
from vitfit.report import JobResult
from vitfit.results import Job
from vitfit.trial import Trial

console = Console(markup=False)
WIDEST = 100_000
COLOURS = {"succeeded": "green", "failed": "red", "canceled": "yellow", "running": "cyan"}


def say(text: str, to: Console | None = None) -> None:
    """Print a text as it is: brackets are no markup, and no line is broken."""
    (to or console).print(text, markup=False, highlight=False, soft_wrap=True)


def table_of(*headings: str, whole: bool = True) -> Table:
    """Return an empty table.

    whole: the first column holds ids or names, which stay on one line. The other columns give way.
    """
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), overflow="fold", no_wrap=whole and not table.columns)
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row to a table of `table_of`. Brackets in a text are no markup."""
    first = table.columns[0]
    if first.no_wrap:
        first.min_width = max(first.min_width or 0, cell_len(str(cells[0])))
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def show_table(table: Table, to: Console | None = None) -> None:
    """Print a table.

    A terminal that is too narrow shows only the first columns. Any other output has no limit on its width, because
    other programs read ids and names from it.
    """
    out = to or console
    if not out.is_terminal:
        out.print(_AsWideAsItIs(table), highlight=False, crop=False)
        return
    left_out: list[str] = []
    unlimited = out.options.update(width=WIDEST)
    while len(table.columns) > 1 and Measurement.get(out, unlimited, table).minimum > out.width:
        left_out.insert(0, str(table.columns.pop().header))
    out.print(table, highlight=False, crop=False)
    if left_out:
        say(f"(The terminal is too narrow for: {', '.join(left_out)}. --json shows everything.)", out)


class _AsWideAsItIs:
    """A table that is laid out without a limit on its width."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, to: Console, options: ConsoleOptions) -> RenderResult:
        yield from to.render(self._table, options.update(width=WIDEST))


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
            TextColumn("{task.fields[stage]:<10}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.fields[total_text]} trials"),
            TextColumn("{task.fields[best]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}", markup=False),
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
            say(line, self._console)


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
        "note": progress.note or "",
    }


def followed(jobs: Iterable[Job], to: Console | None = None) -> Iterator[Job]:
    """Yield the jobs unchanged while a progress bar shows them."""
    with JobBar(to) as bar:
        for job in jobs:
            bar.show(job)
            yield job


def job_table(jobs: Iterable[Job]) -> Table:
    """Return a table with one row per job."""
    table = table_of("job", "name", "status", "stage", "trials", "best", "guarantee", "created")
    for job in jobs:
        done = f"{job.progress.trials_done}/{job.progress.trials_total or '?'}"
        status = Text(job.status, style=COLOURS.get(job.status, "white"))
        best = number(job.progress.best_score, ".4f")
        created = (job.created_at or "")[:19].replace("T", " ")
        add_row(table, job.id, job.name or "", status, job.stage or "", done, best, job.guarantee or "", created)
    return table


def show_job(job: Job, to: Console | None = None) -> None:
    """Print a job, its error or result, and the next possible command."""
    show_table(job_table([job]), to)
    if job.error:
        say(f"{job.error.title}: {job.error.detail}", to)
    if job.result:
        show_result(job.result, to)
    if job.status == "succeeded":
        say(f"Download its files: vitfit download {job.id} --output DIR", to)
    elif not job.finished:
        say(f"Follow it: vitfit watch {job.id}", to)


def show_result(result: JobResult, to: Console | None = None) -> None:
    """Print the result of a job: its rows as a table, and its notes below."""
    if result.rows:
        table = table_of("", "before", "after", whole=False)
        for row in result.rows:
            add_row(table, *row)
        show_table(table, to)
    for note in result.notes:
        say(note, to)


def trial_table(trials: Iterable[Trial]) -> Table:
    """Return a table with one row per trial and one column per budget."""
    rows = list(trials)
    labels = list(dict.fromkeys(label for trial in rows for label in trial.costs))
    table = table_of("trial", "score", "accuracy", "agreement", *labels, "origin", "seconds")
    for trial in rows:
        costs = [number(trial.costs.get(label)) for label in labels]
        mark = " *" if trial.start else " +" if trial.local else ""
        scores = [number(trial.score, ".4f"), number(trial.accuracy, ".4f"), number(trial.agreement, ".4f")]
        add_row(table, f"{trial.number}{mark}", *scores, *costs, trial.origin or "", number(trial.seconds, ".1f"))
    marks = {
        "* starting point": any(trial.start for trial in rows),
        "+ step of the local search": any(trial.local for trial in rows),
    }
    table.caption = ", ".join(meaning for meaning, used in marks.items() if used) or None
    return table


def device_table(devices: Iterable[Device]) -> Table:
    """Return a table with one row per device."""
    table = table_of("device", "latency", "threads", "precision", "description")
    for device in devices:
        kind = "measured" if device.reachable else "predicted"
        add_row(table, device.name, kind, number(device.threads, "d"), device.precision or "", device.description)
    return table


def method_table(methods: Iterable[Method]) -> Table:
    """Return a table with one row per method."""
    table = table_of("method", "title", "makes smaller", "criteria", "training")
    for method in methods:
        axes, criteria = ", ".join(method.axes), ", ".join(method.criteria)
        add_row(table, method.name, method.title, axes, criteria, method.training or "")
    return table
