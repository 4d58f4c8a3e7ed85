"""The command `vitfit`, with the subcommands that need only the address of a server."""

import functools
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from vitfit import render
from vitfit.agent import MOST_FILE_BYTES, Agent
from vitfit.budget_options import BudgetOptions, SearchOptions
from vitfit.client import DEFAULT_SERVER, Client
from vitfit.connection import Connection
from vitfit.errors import VitfitError
from vitfit.model_options import Checkpoint, NoPretrained, Options, Preprocessing, Weights
from vitfit.model_source import model_source
from vitfit.results import Artifact, Job, Validation
from vitfit.verbs import INTERRUPTED, ServerOptions, fail, load_verbs, print_json, verb

app = typer.Typer(
    name="vitfit",
    help="Make a vision transformer smaller, so that it meets a budget. The result is an ONNX file.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"vitfit {importlib.metadata.version('vitfit')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Make a vision transformer smaller, so that it meets a budget. The result is an ONNX file."""


JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.", show_default=False)]
NOT_CHECKED = 3
CACHE = Path.home() / ".cache" / "vitfit-agent"
ID_PATTERN = re.compile(r"[a-z]{2,5}_[A-Za-z0-9]{6,}")
MODEL_ID_PATTERN = re.compile(r"mdl_[A-Za-z0-9]+")


@verb(app)
def submit(
    model: Annotated[
        str,
        typer.Option(
            help="The model: a timm name, the id of an uploaded model, an ONNX file, a Hugging Face folder, or a "
            "folder with model.json.",
            show_default=False,
        ),
    ],
    target: ServerOptions,
    budgets: BudgetOptions,
    search: SearchOptions,
    *,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    options: Options = None,
    preprocessing: Preprocessing = None,
    no_pretrained: NoPretrained = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="The data set: an .npz, zip or tar file to upload, a folder on the server, or the id of a data set.",
            metavar="FILE",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    validate_only: Annotated[
        bool,
        typer.Option(
            "--validate-only",
            help="Check the request, and start no job. The exit status is 3 if the server had no time to check it.",
        ),
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
) -> None:
    """Upload the model and the data if necessary, and queue a compression job."""
    limits, chosen = budgets.budgets(search.objective), search.options()
    if name is not None:
        chosen["name"] = name
    source = None
    if not MODEL_ID_PATTERN.fullmatch(model):
        pretrained = False if no_pretrained else None
        source = model_source(model, options, checkpoint, pretrained, preprocessing=preprocessing, weights=weights)
    elif checkpoint or weights or options or no_pretrained or preprocessing:
        raise typer.BadParameter(
            f"--model {model} is already uploaded, so its options cannot change. "
            "Leave out --checkpoint, --weights, --options, --no-pretrained and --preprocessing."
        )
    with target.client() as client:
        dataset = _dataset_id(client, data)
        model_id = client.upload_source(source).id if source else model
        if validate_only:
            _show_validation(client.validate(model_id, limits, dataset=dataset, **chosen), target)
            return
        job = client.submit(model_id, limits, dataset=dataset, **chosen)
        _after_start(client, job, target, watch)


def _show_validation(found: Validation, target: ServerOptions) -> None:
    """Print what the server has found. If it has not checked the request, the exit status is `NOT_CHECKED`."""
    if found.valid or target.as_json:
        print_json(found.to_json())
    if not found.valid:
        reason = found.reason or "The server did not check the request in time. Try again when it is less busy."
        typer.echo(f"not checked: {reason}", err=True)
        raise typer.Exit(NOT_CHECKED)


def _dataset_id(client: Client, data: str | None) -> str | None:
    """Return the id of a data set. A file is uploaded, a folder is registered, and an id is returned unchanged."""
    if data is None:
        return None
    path = Path(data)
    if path.exists():
        return client.upload_dataset(path).id
    if ID_PATTERN.fullmatch(data):
        return data
    if path.is_absolute():
        return client.register_dataset(data).id
    raise VitfitError.local(
        "no-such-file",
        f"--data {data}: this file does not exist. Give an .npz, zip or tar file, or the id of a data set.",
    )


def _after_start(client: Client, job: Job, target: ServerOptions, watch: bool) -> None:
    if watch:
        if not target.as_json:
            render.say(f"{job.id} at {client.server}")
        _follow(client, job.id, target)
    else:
        _show(job, target)


def _show(job: Job, target: ServerOptions) -> None:
    if target.as_json:
        print_json(job.to_json())
    else:
        render.show_job(job)


def _follow(client: Client, job_id: str, target: ServerOptions) -> None:
    """Show the job at every poll until it is finished. The exit status is 1 if the job did not succeed."""
    last: Job | None = None
    try:
        polls = client.watch(job_id)
        for job in polls if target.as_json else render.followed(polls):
            last = job
            if target.as_json:
                print_json(job.to_json())
    except KeyboardInterrupt:
        fail(
            "The command no longer follows the job, but the job continues. "
            f"Follow it again with `vitfit watch {job_id}`, or cancel it with `vitfit cancel {job_id}`.",
            INTERRUPTED,
        )
    assert last is not None  # watch yields at least the finished job
    if not target.as_json:
        render.show_job(last)
    if last.status != "succeeded":
        raise typer.Exit(1)


@verb(app)
def status(
    target: ServerOptions,
    job: Annotated[
        str | None,
        typer.Argument(metavar="JOB", help="Id of a job. Without it, the command lists all jobs.", show_default=False),
    ] = None,
) -> None:
    """Show one job, or all jobs."""
    with target.client() as client:
        if job is not None:
            _show(client.get(job), target)
        elif target.as_json:
            for found in client.jobs():
                print_json(found.to_json())
        else:
            render.show_table(render.job_table(client.jobs()))


@verb(app)
def watch(job: JobId, target: ServerOptions) -> None:
    """Follow a job until it is finished. The exit status is 1 if it does not succeed."""
    with target.client() as client:
        _follow(client, job, target)


@verb(app)
def trials(job: JobId, target: ServerOptions) -> None:
    """List the trials of a job."""
    with target.client() as client:
        if target.as_json:
            for trial in client.trials(job):
                print_json(trial.to_json())
        else:
            render.show_table(render.trial_table(client.trials(job)))


@verb(app)
def deliver(
    job: JobId,
    trial: Annotated[int, typer.Argument(min=0, help="Number of the trial.", show_default=False)],
    target: ServerOptions,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the new job until it ends.")] = False,
) -> None:
    """Export another trial of a finished search. This starts a child job."""
    with target.client() as client:
        _after_start(client, client.deliver(job, trial), target, watch)


@verb(app)
def download(
    job: JobId,
    target: ServerOptions,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names of files. Without them, the command downloads all files.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the files.", metavar="DIR")] = Path("."),
) -> None:
    """Download the files of a job. An interrupted download is resumed, and every SHA-256 is checked."""
    with target.client() as client:
        listed = client.artifacts(job)
        chosen = [_named(listed, name, job) for name in names] if names else listed
        if not chosen:
            state = client.get(job).status
            raise VitfitError.local(
                "no-files", f"{job} is {state} and has no files. Wait until it has succeeded: `vitfit watch {job}`."
            )
        output.mkdir(parents=True, exist_ok=True)
        _download_all(client, job, chosen, output, target=target)


def _named(listed: list[Artifact], name: str, job: str) -> Artifact:
    for artifact in listed:
        if artifact.name == name:
            return artifact
    known = ", ".join(artifact.name for artifact in listed) or "none yet"
    raise VitfitError.local("unknown-name", f"{job} has no file {name!r}. Its files are: {known}.", name=name)


def _download_all(client: Client, job: str, artifacts: list[Artifact], output: Path, *, target: ServerOptions) -> None:
    columns = (TextColumn("{task.description:<20}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=render.console, disable=target.as_json) as bar:
        for artifact in artifacts:
            task = bar.add_task(artifact.name, total=artifact.bytes)
            path = client.download(job, artifact, output, _mover(bar, task))
            bar.update(task, completed=artifact.bytes)
            if target.as_json:
                print_json(
                    {"name": artifact.name, "path": str(path), "bytes": artifact.bytes, "sha256": artifact.sha256}
                )
    if not target.as_json:
        text = f"{len(artifacts)} files are in {output.resolve()}. Every SHA-256 is the one that the server listed."
        render.say(text)


def _mover(bar: Progress, task: TaskID) -> Callable[[int], None]:
    return lambda done: bar.update(task, completed=done)


@verb(app)
def cancel(job: JobId, target: ServerOptions) -> None:
    """Cancel a job. The command can be repeated."""
    with target.client() as client:
        _show(client.cancel(job), target)


@verb(app)
def devices(target: ServerOptions) -> None:
    """List the devices for which a budget can limit the latency."""
    with target.client() as client:
        found = client.devices()
        if target.as_json:
            for device in found:
                print_json(device.to_json())
        else:
            render.show_table(render.device_table(found))


@verb(app, "add-device")
def add_device(
    profile: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON file with the profile, as docs/devices.md describes it.", show_default=False
        ),
    ],
    target: ServerOptions,
) -> None:
    """Add a device from its profile. The name of the device must begin with user-."""
    try:
        document = json.loads(profile.read_text())
    except (OSError, ValueError) as error:
        raise VitfitError.local(
            "unreadable-file",
            f"The file {profile} cannot be read as JSON: {error}. Give a profile as docs/devices.md describes it.",
        ) from error
    with target.client() as client:
        device = client.add_device(document)
        if target.as_json:
            print_json(device.to_json())
        else:
            render.show_table(render.device_table([device]))


@verb(app, "delete-device")
def delete_device(
    name: Annotated[str, typer.Argument(help="Name of a device that was added.", show_default=False)],
    target: ServerOptions,
) -> None:
    """Delete a device that was added."""
    with target.client() as client:
        client.delete_device(name)


@verb(app)
def agent(
    name: Annotated[str, typer.Option(help="Name of this device. The server calls it agent-NAME.", show_default=False)],
    token: Annotated[
        str,
        typer.Option(
            envvar="VITFIT_TOKEN",
            help="Access token with the scope agent, from `vitfit token create`.",
            show_default=False,
        ),
    ],
    server: Annotated[str, typer.Option(envvar="VITFIT_SERVER", help="Address of the vitfit server.")] = DEFAULT_SERVER,
    cache: Annotated[Path, typer.Option(help="Folder for downloaded files.", metavar="DIR")] = CACHE,
    *,
    measuring: Annotated[
        str, typer.Option(help="Python module that measures. It must follow the protocol of vitfit.measuring.")
    ] = "vitfit.measuring",
    max_file_bytes: Annotated[
        int, typer.Option(help="Upper limit in bytes for one file that the server sends.", min=1)
    ] = MOST_FILE_BYTES,
) -> None:
    """Measure on this device for the jobs of a server, until you stop the command. It needs onnxruntime and numpy."""
    connection = Connection(server, retries=0, timeout_s=60.0, token=token)
    command = (sys.executable, "-m", measuring)
    say = functools.partial(typer.echo, err=True)
    Agent(connection, name, cache, command, say=say, most_file_bytes=max_file_bytes).run()


@verb(app)
def methods(target: ServerOptions) -> None:
    """List the compression methods."""
    with target.client() as client:
        found = client.methods()
        if target.as_json:
            for method in found:
                print_json(method.to_json())
        else:
            render.show_table(render.method_table(found))


load_verbs(app)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
