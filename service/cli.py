"""The commands serve, compress and measure, which `vitfit` has only where the server is installed.

Heavy packages are imported inside the functions, so that `vitfit --help` stays fast.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from vitfit.budget_options import BudgetOptions, SearchOptions
from vitfit.errors import VitfitError as ClientError
from vitfit.model_options import Checkpoint, NoPretrained, Options, Preprocessing, Weights
from vitfit.model_source import ModelSource, model_source
from vitfit.render import JobBar, add_row, say, show_result, show_table, table_of
from vitfit.report import JobResult
from vitfit.results import Job, Progress
from vitfit.verbs import print_json, verb

from service.store_verbs import backup, restore, sweep
from service.token_verbs import our_errors, token_verbs

if TYPE_CHECKING:
    from service.jobs.journal import MemoryJournal

LOCAL = "local"  # placeholder for an id in a request that is never sent to a server


def register(app: typer.Typer) -> None:
    """Add the commands to `app`. The client calls this through the entry point group `vitfit.verbs`."""
    for function in (serve, compress, measure, sweep, backup, restore):
        verb(app)(function)
    app.add_typer(token_verbs(), name="token")


def serve(
    data: Annotated[Path | None, typer.Option(help="Folder in which the server stores all of its files.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on. 0 chooses a free port. (default: 8000)"),
    ] = None,
    allow: Annotated[
        list[Path] | None,
        typer.Option(help="Folder below which users may name data sets by their path. Can be repeated."),
    ] = None,
    *,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous",
            help="Require no access token (except from agents). The server then listens on loopback only.",
        ),
    ] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="File to which the server writes its address when it is ready.")
    ] = None,
) -> None:
    """Run the server. Environment variables VITFIT_... set further options; docs/operations.md lists them."""
    from pydantic import ValidationError

    from service.core.settings import Settings, wrong_settings
    from service.serve import serve as run

    asked = {"data": data, "host": host, "port": port, "allowed_roots": tuple(allow) if allow else None}
    asked["anonymous"] = anonymous or None
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise ClientError.local("invalid-request", wrong_settings(error)) from error
    with our_errors():
        run(settings, ready_file=ready_file)


def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="The model: a timm name, an ONNX file, a Hugging Face folder, or a folder with model.json.",
            show_default=False,
        ),
    ],
    budgets: BudgetOptions,
    search: SearchOptions,
    output: Annotated[
        Path, typer.Option(help="Folder for the artifacts of the job.", metavar="DIR", show_default=False)
    ],
    *,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    options: Options = None,
    preprocessing: Preprocessing = None,
    no_pretrained: NoPretrained = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data set: an .npz, zip or tar file, or a folder with one folder for each class.",
            metavar="FILE_OR_FOLDER",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a complete job on this machine, without a server."""
    pretrained = False if no_pretrained else None
    source = model_source(model, options, checkpoint, pretrained, preprocessing=preprocessing, weights=weights)
    if data is not None and not data.exists():
        raise ClientError.local("no-such-file", f"--data {data}: this does not exist. Give a file or a folder.")
    body = _request_body(source, budgets, search, data)
    with our_errors():
        result = _compress(body, source, data, output, quiet=as_json)
    if as_json:
        print_json(result)
    else:
        show_result(JobResult.from_json(result))
        say(f"Report: {result['report']}")


def _request_body(
    source: ModelSource, budgets: BudgetOptions, search: SearchOptions, data: Path | None
) -> dict[str, Any]:
    """Return a JobRequest as JSON, with placeholder ids for the local files."""
    limits = [budget.to_json() for budget in budgets.budgets(search.objective)]
    dataset = LOCAL if data is not None else None
    return {"model": LOCAL, "dataset": dataset, "name": source.name[:100], "budgets": limits, **search.options()}


def _compress(
    body: dict[str, Any], source: ModelSource, data: Path | None, output: Path, *, quiet: bool
) -> dict[str, Any]:
    from service.jobs.job_request import JobRequest

    with _readable_fields():
        request = JobRequest.model_validate(body)
    from service.pipeline.compress import compress as run  # imports torch, so only after the request has been checked

    with contextlib.ExitStack() as stack:
        bar = None if quiet else stack.enter_context(JobBar())
        show = None if bar is None else lambda journal: bar.show(_as_job(journal))
        return run(request, source.to_json(), source.checkpoint, data, output=output, on_progress=show)


def _as_job(journal: "MemoryJournal") -> Job:
    """Return the state of a local job as the `Job` that the progress bar expects."""
    progress = Progress(*(journal.last_progress or (0, 0, None, None)), journal.last_note or None)
    return Job(LOCAL, "running", stage=journal.stages[-1] if journal.stages else None, progress=progress)


@contextlib.contextmanager
def _readable_fields() -> Iterator[None]:
    """Turn a pydantic ValidationError into one client error that lists each field with its message."""
    from pydantic import ValidationError

    from models.field_errors import field_errors, in_words

    try:
        yield
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False))
        raise ClientError.local("invalid-request", in_words(found)) from error


def measure(
    file: Annotated[
        Path,
        typer.Argument(
            help="The ONNX file to measure. With --table: the model.", metavar="FILE.onnx|MODEL", show_default=False
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(help="A second ONNX file, which is measured in turn with the first.", metavar="ORIGINAL.onnx"),
    ] = None,
    device: Annotated[str, typer.Option(help="Name of a device on which this machine can measure.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Number of threads. Each thread is pinned to a core.")] = 1,
    *,
    batch: Annotated[int, typer.Option(min=1, help="Number of images in one run.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="Upper limit on the time in seconds.")] = 20.0,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Measure smaller forms of MODEL, and write a latency table to this file, for `vitfit add-device`.",
            metavar="FILE.json",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the device in the latency table.")] = "user-device",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the latency of ONNX files in new processes, with its spread.

    With --table, measure a latency table of a model instead, for a server on another machine.
    """
    if table is not None:
        with our_errors():
            _write_table(model_source(str(file), None, None, False), table, name, threads, batch=batch)
        return
    files = [file] if against is None else [against, file]
    for path in files:
        if not path.is_file():
            raise ClientError.local("no-such-file", f"There is no file {str(path)!r}. Give the path of an ONNX file.")
    with our_errors():
        found = _measure(files, device, threads, batch, seconds=seconds)
    if as_json:
        print_json(found)
    else:
        _show_measurements(found)


def _write_table(source: ModelSource, table: Path, name: str, threads: int, *, batch: int) -> None:
    from service.pipeline.measured_table import measured_table

    document = measured_table(source.to_json(), source.checkpoint, name, threads, batch=batch)
    table.write_text(json.dumps(document, indent=1))
    count, model = len(document["samples"]), document["original"]["name"]
    text = f"{table} has the latencies of {count} structures of {model}. Next: vitfit add-device {table}"
    say(text)


def _measure(files: list[Path], device: str, threads: int, batch: int, *, seconds: float) -> dict[str, Any]:
    from latency.devices.devices import check_device, is_reachable
    from models.errors import DeviceUnavailable

    check_device(device)
    if not is_reachable(device):
        raise DeviceUnavailable(
            f"The device {device!r} is a profile, so its latency can be predicted but not measured. Measure on cpu."
        )
    from latency.devices.setting import Setting, runtime_version
    from latency.measuring.meter import Effort, Meter
    from latency.measuring.sampling import ratio

    setting = Setting(threads, batch, runtime=runtime_version())
    measured = Meter(setting).measure(files, Effort(seconds=seconds))
    rows = [
        {"file": str(file), "bytes": file.stat().st_size, "p50_ms": item.p50_ms.to_json(), "runs": item.count}
        for file, item in zip(files, measured, strict=True)
    ]
    compared = ratio(measured[1], measured[0]).to_json() if len(measured) > 1 else None
    return {"machine": measured[0].machine, "setting": str(setting), "files": rows, "ratio": compared}


def _show_measurements(found: dict[str, Any]) -> None:
    table = table_of("file", "median", "95 % interval", "runs")
    for row in found["files"]:
        p50 = row["p50_ms"]
        spread = f"{p50['low']:.3f} .. {p50['high']:.3f} ms"
        add_row(table, Path(row["file"]).name, f"{p50['value']:.3f} ms", spread, str(row["runs"]))
    show_table(table)
    if found["ratio"]:
        keep = found["ratio"]
        say(f"{keep['value']:.3f} of the original's latency ({keep['low']:.3f} .. {keep['high']:.3f})")
    say(f"{found['machine']}, {found['setting']}")
