"""Tests of the command line as a user sees it: stdout, stderr and exit status."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result
from vitfit import cli, render
from vitfit.budget_options import METRICS
from vitfit.offers import Device
from vitfit.results import Job
from vitfit.verbs import verb

from search.budgets import Metric
from tests.support.fake_server import FakeServer

MACS = ("--budget-macs-keep", "0.5")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "console", Console(width=200))


def vitfit(server: FakeServer | str, *arguments: str, status: int = 0) -> Result:
    """Run the command and check its exit status. No exception may leave the command."""
    address = server if isinstance(server, str) else server.url
    done = CliRunner(env={"VITFIT_SERVER": address}).invoke(cli.app, arguments)
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def documents(done: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_as_a_process(server: FakeServer) -> None:
    command = [sys.executable, "-m", "vitfit.cli", "status", "job_9", "--server", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: There is no job job_9. GET /v1/jobs lists yours.\n"


def test_submit_uploads_and_queues(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"weights")
    (tmp_path / "data.npz").write_bytes(b"data")
    done = vitfit(
        server,
        *("submit", "--json", "--model", "vit_tiny", "--options", '{"depth": 2}', "--name", "first", "--no-recovery"),
        *("--checkpoint", str(tmp_path / "weights.pth"), "--data", str(tmp_path / "data.npz"), "--trials", "7"),
        *("--parallel-trials", "2"),
        *("--method", "mdc", "--space", "paper"),
        *("--budget-latency-keep", "60%", "--budget-latency-ms", "20@phone", "--budget-macs", "2.5G", "--threads", "2"),
    )
    (job,) = documents(done)
    assert job["status"] == "queued"
    sent = server.requests("POST", "/v1/jobs")[0].json
    here = {"threads": 2, "batch": 1}
    assert sent == {
        "model": "mod_000001",
        "dataset": "dat_000001",
        "name": "first",
        "method": "mdc",
        "space": "paper",
        "trials": 7,
        "parallel_trials": 2,
        "recovery": False,
        "budgets": [
            {"metric": "latency_keep", "limit": 0.6, "device": "cpu", "setting": here},
            {"metric": "latency_ms", "limit": 20.0, "device": "phone", "setting": here},
            {"metric": "macs", "limit": 2.5e9},
        ],
    }


def test_the_lowest_latency_within_a_loss_needs_no_budget(server: FakeServer) -> None:
    options = ("--objective", "latency", "--max-loss", "0.01", "--device", "phone", "--threads", "4")
    vitfit(server, "submit", "--json", "--model", "vit_tiny", *options)
    sent = server.requests("POST", "/v1/jobs")[0].json
    setting = {"threads": 4, "batch": 1}
    assert sent["budgets"] == [{"metric": "latency_keep", "limit": 1.0, "device": "phone", "setting": setting}]
    assert (sent["objective"], sent["max_loss"]) == ("latency", 0.01)
    vitfit(server, "submit", "--json", "--model", "vit_tiny", "--budget-latency-keep", "100%")


def test_epochs_of_gates_and_of_fine_tuning_are_sent(server: FakeServer) -> None:
    options = ("--method", "vtp", "--gate-epochs", "3", "--finetune-epochs", "2", "--budget-macs-keep", "0.6")
    vitfit(server, "submit", "--json", "--model", "vit_tiny", *options)
    sent = server.requests("POST", "/v1/jobs")[0].json
    assert (sent["method"], sent["gates"], sent["finetune"]) == ("vtp", {"epochs": 3}, {"epochs": 2})


def test_a_model_folder_brings_its_configuration_and_weights(server: FakeServer, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    preprocessing = {"size": [1, 8, 8], "mean": [0.5], "std": [0.5]}
    config = {"name": "vit_tiny", "options": {"depth": 2}, "preprocessing": preprocessing, "classes": ["0", "1"]}
    (folder / "model.json").write_text(json.dumps(config))
    (folder / "weights.safetensors").write_bytes(b"weights")
    other = {**preprocessing, "crop": 0.5}
    options = ("--options", '{"num_classes": 2}', "--preprocessing", json.dumps(other))
    vitfit(server, "submit", "--model", str(folder), *options, *MACS)
    parts = server.requests("POST", "/v1/models")[0].parts
    assert parts["checkpoint"] == b"weights"
    sent = json.loads(parts["config"])
    assert sent == {**config, "options": {"depth": 2, "num_classes": 2}, "preprocessing": other, "pretrained": False}


def test_ids_are_used_without_uploading(server: FakeServer) -> None:
    vitfit(server, "submit", "--model", "mdl_abc123", "--data", "dat_abc123", *MACS)
    assert [request.path for request in server.seen] == ["/v1/jobs"]


def test_validate_only_starts_nothing(server: FakeServer) -> None:
    done = vitfit(server, "submit", "--model", "mdl_abc123", "--validate-only", *MACS)
    (found,) = documents(done)
    assert found["valid"] is True and "compact" in str(found["description"])
    assert server.jobs == {}


def test_a_request_that_was_not_checked_does_not_look_valid(server: FakeServer) -> None:
    server.validated = {"valid": None, "reason": "vitfit did not check the job within 10 s.", "description": None}
    arguments = ("submit", "--model", "mdl_abc123", "--validate-only", *MACS)
    done = vitfit(server, *arguments, status=3)
    assert (done.stdout, done.stderr) == ("", "not checked: vitfit did not check the job within 10 s.\n")
    (found,) = documents(vitfit(server, *arguments, "--json", status=3))
    assert (found["valid"], found["reason"]) == (None, "vitfit did not check the job within 10 s.")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--model", "vit_tiny"), "at least one budget"),
        (("--model", "vit_tiny", "--budget-macs", "many"), "--budget-macs many"),
        (("--model", "vit_tiny", "--budget-macs-keep", "0"), "above 0"),
        (("--model", "vit_tiny", "--budget-latency-keep", "1.5"), "at most 1"),
        (("--model", "vit_tiny", "--budget-macs-keep", "150%"), "at most 1"),
        (("--model", "vit_tiny", "--objective", "latency"), "belong together"),
        (("--model", "vit_tiny", "--budget-macs", "1G@phone"), "only a latency budget can name a device"),
        (("--model", "vit_tiny", "--budget-latency-ms", "5@"), "missing after"),
        (("--model", "vit_tiny", "--max-loss", "0.01", *MACS), "belong together"),
        (("--model", "mdl_abc123", "--no-pretrained", *MACS), "already uploaded"),
        (MACS, "--model"),
    ],
)
def test_a_wrong_option_is_a_usage_error(server: FakeServer, arguments: tuple[str, ...], hint: str) -> None:
    done = vitfit(server, "submit", *arguments, status=2)
    assert hint in " ".join(done.stderr.replace("│", " ").split())
    assert server.seen == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--model", "vit_tiny", "--options", "{depth: 2}"), "--options is not JSON"),
        (("--model", "vit_tiny", "--options", "[1]"), "must be a JSON object"),
        (("--model", "vit_tiny", "--options", "@nowhere.json"), "nowhere.json"),
        (("--model", "vit_tiny", "--checkpoint", "nowhere.pth"), "nowhere.pth"),
        (("--model", "vit_tiny", "--data", "nowhere.npz"), "nowhere.npz"),
        (("--model", "./nowhere"), "'nowhere'"),
    ],
)
def test_a_wrong_file_is_one_sentence(server: FakeServer, arguments: tuple[str, ...], hint: str) -> None:
    done = vitfit(server, "submit", *arguments, *MACS, status=1)
    assert done.stderr.startswith("error: ") and hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert server.jobs == {}


def test_a_refusal_is_one_paragraph_and_json_on_request(server: FakeServer) -> None:
    detail = "Unknown device 'phnoe'. Nearest: phone."
    server.refusal = {"type": "/problems/unknown-name", "title": "Unknown name", "status": 422, "detail": detail}
    done = vitfit(server, "submit", "--model", "mdl_abc123", "--json", *MACS, status=1)
    assert done.stderr == f"error: {detail}\n"
    assert documents(done)[0]["type"] == "/problems/unknown-name"


def test_no_server_says_how_to_start_one() -> None:
    done = vitfit("http://127.0.0.1:9", "devices", status=1)
    assert "vitfit serve" in done.stderr and "127.0.0.1:9" in done.stderr


def test_watch_follows_to_the_end(server: FakeServer) -> None:
    progress = {"trials_done": 3, "trials_total": 8, "best_score": -0.125}
    server.states = [{"status": "running", "stage": "searching", "progress": progress}, {"status": "succeeded"}]
    done = vitfit(server, "submit", "--model", "mdl_abc123", "--watch", *MACS)
    assert "searching 3/8 trials best -0.1250" in done.stdout
    assert "vitfit download job_000001" in done.stdout


def test_watch_fails_with_the_job(server: FakeServer) -> None:
    error = {
        "type": "/problems/impossible-budget",
        "title": "Impossible budget",
        "status": 422,
        "detail": "Best: 0.31.",
    }
    server.states = [{"status": "running"}, {"status": "failed", "error": error}]
    server.new_job({})
    done = vitfit(server, "watch", "job_000001", status=1)
    assert "Impossible budget: Best: 0.31." in done.stdout
    done = vitfit(server, "watch", "job_000001", "--json", status=1)
    assert documents(done)[-1]["error"]["detail"] == "Best: 0.31."  # type: ignore[index]


def test_status_shows_one_job_or_all(server: FakeServer) -> None:
    for _ in range(5):
        server.new_job({})
    assert len(documents(vitfit(server, "status", "--json"))) == 5
    assert "succeeded" in vitfit(server, "status", "job_000002").stdout
    assert "There is no job job_9." in vitfit(server, "status", "job_9", status=1).stderr


LONG_ID, LONG_DEVICE = "job_0123456789abcdef0123", "galaxy-a03s-large-fp32"


@pytest.mark.parametrize("arguments", [("status",), ("status", LONG_ID), ("devices",)])
def test_a_pipe_gets_every_cell_whole(server: FakeServer, arguments: tuple[str, ...]) -> None:
    server.jobs[LONG_ID] = {**server.new_job({}), "id": LONG_ID, "name": "a job [agent] with a long name " * 3}
    server.devices = [{"name": LONG_DEVICE, "kind": "profile", "description": "A phone [x] with a long text. " * 4}]
    command = [sys.executable, "-m", "vitfit.cli", *arguments, "--server", server.url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "COLUMNS": "60"}
    )
    known = [LONG_DEVICE, server.devices[0]["description"].strip()]
    for whole in known if arguments == ("devices",) else [LONG_ID, server.jobs[LONG_ID]["name"].strip(), "created"]:
        assert whole in done.stdout
    assert "…" not in done.stdout


@pytest.mark.parametrize("width", [30, 60, 80])
def test_a_narrow_terminal_shows_ids_and_names_whole(width: int) -> None:
    """Columns that have no room are left out, and the output says which."""
    job = Job(LONG_ID, "succeeded", name="digits [agent]", stage="reporting", created_at="2026-11-21T18:14:41Z")
    device = Device.from_json({"name": LONG_DEVICE, "kind": "profile", "description": "Samsung [x] Galaxy A03s"})
    for table, name in ((render.job_table([job]), LONG_ID), (render.device_table([device]), LONG_DEVICE)):
        terminal = Console(force_terminal=True, color_system=None, width=width, file=io.StringIO())
        render.show_table(table, terminal)
        assert isinstance(terminal.file, io.StringIO)
        shown = terminal.file.getvalue()
        assert name in shown.split() and "…" not in shown
        assert ("created" in shown) or name == LONG_DEVICE
        assert max(len(line) for line in shown.splitlines() if "narrow" not in line) <= width


def test_brackets_in_a_help_text_are_no_markup() -> None:
    app = typer.Typer()

    @verb(app)
    def first(name: Annotated[str, typer.Option(help="A [bold] name.")] = "x") -> None:
        """Needs vitfit[agent] here."""

    @verb(app)
    def second() -> None:
        """Needs nothing."""

    runner = CliRunner(env={"COLUMNS": "120"})
    assert "vitfit[agent]" in runner.invoke(app, ["--help"]).output
    page = runner.invoke(app, ["first", "--help"]).output
    assert "vitfit[agent]" in page and "[bold]" in page


def test_brackets_in_what_a_user_gave_are_shown(server: FakeServer, tmp_path: Path) -> None:
    server.files = {"report.json": b"{}"}
    server.new_job({}, name="the [bold] job")
    done = vitfit(server, "download", "job_000001", "--output", str(tmp_path / "a[bold]"))
    assert "a[bold]" in done.stdout
    assert "the [bold] job" in vitfit(server, "status").stdout
    done = vitfit(server, "submit", "--model", str(tmp_path / "x[bold].onnx"), *MACS, status=1)
    assert "x[bold].onnx" in done.stderr
    assert "[bold]" in vitfit(server, "submit", "--model", "vit", "--budget-macs", "[bold]", status=2).stderr


def test_trials_devices_and_methods_are_listed(server: FakeServer) -> None:
    server.trials = [
        {"number": n, "score": -0.5, "costs": {"latency_keep cpu": 0.59}, "start": n == 0} for n in range(3)
    ]
    server.new_job({})
    table = vitfit(server, "trials", "job_000001").stdout
    assert "latency_keep cpu" in table and table.count("0.59") == 3
    assert len(documents(vitfit(server, "trials", "job_000001", "--json"))) == 3
    assert "predicted" in vitfit(server, "devices").stdout
    assert documents(vitfit(server, "methods", "--json"))[0]["name"] == "joint"


def test_deliver_and_cancel(server: FakeServer) -> None:
    server.new_job({})
    (child,) = documents(vitfit(server, "deliver", "job_000001", "4", "--json"))
    assert (child["id"], child["parent"]) == ("job_000002", "job_000001")
    (job,) = documents(vitfit(server, "cancel", "job_000001", "--json"))
    assert job["status"] == "canceling"


def test_download_takes_all_files_or_the_named_ones(server: FakeServer, tmp_path: Path) -> None:
    server.files = {"model.onnx": os.urandom(300_000), "report.json": b"{}"}
    server.cuts = [1000]
    server.new_job({})
    listed = documents(vitfit(server, "download", "job_000001", "--output", str(tmp_path / "all"), "--json"))
    assert [(tmp_path / "all" / str(row["name"])).read_bytes() for row in listed] == list(server.files.values())
    vitfit(server, "download", "job_000001", "report.json", "--output", str(tmp_path / "one"))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["report.json"]
    done = vitfit(server, "download", "job_000001", "reprot.json", "--output", str(tmp_path), status=1)
    assert "model.onnx, report.json" in done.stderr


def test_download_into_a_place_that_cannot_be_a_folder(server: FakeServer, tmp_path: Path) -> None:
    server.files = {"report.json": b"{}"}
    server.new_job({})
    (tmp_path / "file").write_bytes(b"")
    done = vitfit(server, "download", "job_000001", "--output", str(tmp_path / "file"), status=1)
    assert "file" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_job_without_files_says_to_wait(server: FakeServer, tmp_path: Path) -> None:
    server.states = [{"status": "running"}]
    server.new_job({})
    done = vitfit(server, "download", "job_000001", "--output", str(tmp_path), status=1)
    assert "is running and has no files" in done.stderr


def test_precisions_are_repeated_or_listed(server: FakeServer) -> None:
    for given in (("--precision", "fp32,int8"), ("--precision", "fp32", "--precision", "int8")):
        vitfit(server, "submit", "--model", "vit_tiny", *MACS, *given)
        assert server.requests("POST", "/v1/jobs")[-1].json["precisions"] == ["fp32", "int8"]
    vitfit(server, "submit", "--model", "vit_tiny", *MACS)
    assert "precisions" not in server.requests("POST", "/v1/jobs")[-1].json


def test_the_command_offers_the_metrics_that_the_search_knows() -> None:
    """The client cannot import the search, so it has a list of its own."""
    assert sorted(METRICS) == sorted(get_args(Metric))
