"""Tests of the client, the command and the server together.

`vitfit serve` runs with the fake engine. Everything else goes over REST.
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from vitfit import Budget, Client, Job, VitfitError

from latency.devices.devices import PROFILES
from tests.support.served import served

BUDGETS = [Budget("macs_keep", 0.5), Budget("latency_ms", 20, device="generic-mobile")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder, "--data", str(folder / "data"), "--port", "0", "--allow", str(folder)) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as made:
        yield made


@pytest.fixture(scope="module")
def finished(address: str, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished job, with an uploaded checkpoint and uploaded data."""
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "weights.safetensors").write_bytes(b"not looked at")
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.writestr("a/1.png", b"")
    with Client(address) as client:
        model = client.upload_model("fake_tiny", {"depth": 2}, folder / "weights.safetensors", classes=["a", "b"])
        data = client.upload_dataset(folder / "data.zip")
        assert model.description is not None and model.description.classes == 10
        assert data.description is not None and data.description.images == 8
        assert [found.id for found in client.models()] == [model.id]
        assert [found.id for found in client.datasets()] == [data.id]
        job = client.submit(model, BUDGETS, dataset=data, trials=5, seed=1, name="whole")
        *_, last = client.watch(job)
    return last


def test_a_job_goes_all_the_way(client: Client, finished: Job, tmp_path: Path) -> None:
    assert finished.status == "succeeded", finished.error
    assert finished.guarantee == "predicted"
    assert finished.request["trials"] == 5
    assert [trial.number for trial in client.trials(finished, page_size=2)] == [0, 1, 2, 3, 4]
    for artifact in client.artifacts(finished):
        path = client.download(finished, artifact, tmp_path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact.sha256


def test_a_download_resumes_from_the_real_server(client: Client, finished: Job, tmp_path: Path) -> None:
    whole = client.download(finished, "model.onnx", tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "model.onnx.part").write_bytes(whole[:1000])
    heard: list[int] = []
    client.download(finished, "model.onnx", tmp_path, heard.append)
    assert heard[0] > 1000 and heard[-1] == len(whole)
    assert (tmp_path / "model.onnx").read_bytes() == whole


def test_another_trial_is_delivered(client: Client, finished: Job) -> None:
    child = client.deliver(finished, 2)
    assert child.parent == finished.id
    *_, last = client.watch(child)
    assert last.status == "succeeded", last.error


def test_one_key_is_one_job(client: Client, finished: Job) -> None:
    model = finished.request["model"]
    first = client.submit(model, BUDGETS, idempotency_key="one", trials=1)
    assert client.submit(model, BUDGETS, idempotency_key="one", trials=1).id == first.id
    with pytest.raises(VitfitError) as caught:
        client.submit(model, BUDGETS, idempotency_key="one", trials=2)
    assert caught.value.problem.code == "idempotency-key-reused"


def test_cancel_and_delete(client: Client, finished: Job) -> None:
    job = client.submit(finished.request["model"], BUDGETS, trials=2000)
    assert client.cancel(job).status in ("canceling", "canceled")
    *_, last = client.watch(job)
    assert last.status == "canceled"
    client.delete(job)
    assert job.id not in [found.id for found in client.jobs(page_size=2)]


def test_a_failed_job_has_its_reason(client: Client, finished: Job) -> None:
    *_, last = client.watch(client.submit(finished.request["model"], BUDGETS, name="impossible"))
    assert last.status == "failed" and last.error is not None
    assert (last.error.code, last.error.facts["reachable"]) == ("impossible-budget", 0.31)


@pytest.mark.parametrize(
    ("budget", "hint"),
    [
        (Budget("latency_ms", 20, device="generic-mobil"), "generic-mobile"),
        (Budget("macs", -1), "above 0"),
        (Budget("flops", 1), "macs"),
    ],
)
def test_refusals_say_what_is_allowed(client: Client, finished: Job, budget: Budget, hint: str) -> None:
    with pytest.raises(VitfitError, match=hint) as caught:
        client.submit(finished.request["model"], [budget])
    assert caught.value.status == 422


def test_an_unknown_model_gets_the_nearest_names(client: Client) -> None:
    with pytest.raises(VitfitError, match="fake_tiny"):
        client.upload_model("take_tiny")


def test_a_folder_on_the_server_must_be_allowed(client: Client, tmp_path: Path, address: str) -> None:
    with pytest.raises(VitfitError, match="Allowed"):
        client.register_dataset("/etc")


def test_validate_only(client: Client, finished: Job) -> None:
    before = len(list(client.jobs()))
    assert client.validate(finished.request["model"], BUDGETS).valid is True
    assert len(list(client.jobs())) == before


def test_offers_and_health(client: Client) -> None:
    assert [device.name for device in client.devices()] == ["cpu", "generic-mobile"]
    assert client.methods()[0].criteria == ("magnitude", "hsic")
    assert client.health()


def test_a_device_is_added_named_and_deleted(client: Client, address: str, tmp_path: Path) -> None:
    profile = {**json.loads((PROFILES / "generic-mobile.json").read_text()), "name": "user-phone"}
    (tmp_path / "phone.json").write_text(json.dumps(profile))
    base = [sys.executable, "-m", "vitfit.cli"]
    for arguments in (["add-device", str(tmp_path / "phone.json")], ["delete-device", "user-phone"]):
        done = subprocess.run([*base, *arguments, "--server", address], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        listed = "user-phone" in [device.name for device in client.devices()]
        assert listed is (arguments[0] == "add-device")
    with pytest.raises(VitfitError, match="peak_macs_per_s"):
        client.add_device({**profile, "peak_macs_per_s": -1})


def test_the_command_against_the_real_server(address: str, finished: Job, tmp_path: Path) -> None:
    base = [sys.executable, "-m", "vitfit.cli"]
    options = ["--server", address, "--json", "--model", str(finished.request["model"]), "--trials", "3", "--watch"]
    done = subprocess.run(
        [*base, "submit", *options, "--budget-latency-keep", "0.6"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    fetched = [*base, "download", last["id"], "--server", address, "--output", str(tmp_path)]
    assert subprocess.run(fetched, capture_output=True, timeout=60).returncode == 0
    assert (tmp_path / "report.html").exists()


def test_a_port_in_use_is_one_line(address: str, tmp_path: Path) -> None:
    port = address.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "vitfit.cli", "serve", "--port", port, "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "in use" in done.stderr and "Traceback" not in done.stderr
