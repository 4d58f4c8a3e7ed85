"""Tests of retries, idempotency keys, uploads, paging, watching and errors, over a real socket."""

import socket
from pathlib import Path

import pytest
from vitfit import Budget, Client, Job, Trial, VitfitError

from tests.support.fake_server import FakeServer

BUDGETS = [Budget("latency_keep", 0.6)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_job_whose_answer_was_lost_is_not_created_twice(server: FakeServer, client: Client) -> None:
    server.faults = ["drop", 503]
    job = client.submit("mdl_1", BUDGETS)
    posts = server.requests("POST", "/v1/jobs")
    assert len(posts) == 3
    assert len({post.headers["idempotency-key"] for post in posts}) == 1
    assert list(server.jobs) == [job.id]


def test_two_submissions_are_two_jobs(server: FakeServer, client: Client) -> None:
    assert client.submit("mdl_1", BUDGETS).id != client.submit("mdl_1", BUDGETS).id


def test_a_chosen_key_makes_two_submissions_one_job(client: Client) -> None:
    first = client.submit("mdl_1", BUDGETS, idempotency_key="mine")
    assert client.submit("mdl_1", BUDGETS, idempotency_key="mine").id == first.id


def test_only_what_was_said_is_sent(server: FakeServer, client: Client) -> None:
    budgets = [Budget("macs_keep", 0.5), Budget("latency_ms", 20, device="phone", threads=4, batch=2)]
    client.submit("mdl_1", budgets, dataset="dat_1", trials=5)
    assert server.requests("POST", "/v1/jobs")[0].json == {
        "model": "mdl_1",
        "dataset": "dat_1",
        "trials": 5,
        "budgets": [
            {"metric": "macs_keep", "limit": 0.5},
            {"metric": "latency_ms", "limit": 20, "device": "phone", "setting": {"threads": 4, "batch": 2}},
        ],
    }


def test_validate_creates_nothing(server: FakeServer, client: Client) -> None:
    found = client.validate("mdl_1", BUDGETS)
    assert found.valid and found.description is not None and found.description.model.params == 5
    assert server.jobs == {}


def test_a_transient_status_is_repeated_and_a_refusal_is_not(server: FakeServer, client: Client) -> None:
    server.faults = [429, 502]
    assert [device.name for device in client.devices()] == ["cpu", "generic-mobile"]
    server.faults = [422]
    with pytest.raises(VitfitError):
        client.methods()
    assert len(server.requests("GET", "/v1/methods")) == 1


def test_the_retries_end(server: FakeServer) -> None:
    server.faults = [503] * 10
    with Client(server.url, retries=2) as client, pytest.raises(VitfitError, match="out of order") as caught:
        client.health()
    assert caught.value.status == 503
    assert len(server.seen) == 3


def test_an_error_has_the_members_of_the_problem(server: FakeServer, client: Client) -> None:
    server.refusal = {
        "type": "/problems/impossible-budget",
        "title": "Impossible budget",
        "status": 422,
        "detail": "The best reachable value is 0.31.",
        "best": 0.31,
    }
    with pytest.raises(VitfitError, match="best reachable") as caught:
        client.submit("mdl_1", BUDGETS)
    error = caught.value
    assert (error.type, error.title, error.status) == ("/problems/impossible-budget", "Impossible budget", 422)
    assert error.facts == {"best": 0.31}
    assert error.problem.code == "impossible-budget"


def test_a_server_that_is_not_there_gives_one_sentence_with_the_next_step() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with Client(address, retries=1) as client, pytest.raises(VitfitError) as caught:
        client.devices()
    assert caught.value.detail == (
        f"The vitfit server at {address} cannot be reached. Start it with `vitfit serve`, "
        "or name another server with --server or VITFIT_SERVER."
    )
    assert caught.value.status is None


@pytest.mark.parametrize("address", ["localhost:8000", "", "ftp://x"])
def test_an_address_without_a_scheme_is_refused_at_once(address: str) -> None:
    with pytest.raises(VitfitError, match="http://"):
        Client(address)


@pytest.mark.parametrize("job", ["", "../models", "a/b", "a?b"])
def test_an_id_cannot_lead_elsewhere(client: Client, server: FakeServer, job: str) -> None:
    with pytest.raises(VitfitError, match="not the id"):
        client.get(job)
    assert server.seen == []


def test_a_checkpoint_travels_whole_even_when_the_first_attempt_breaks(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(bytes(range(256)) * 5000)
    server.faults = ["drop"]
    model = client.upload_model("vit_tiny", {"depth": 2}, checkpoint=weights, classes=["a", "b"])
    first, second = server.requests("POST", "/v1/models")
    assert first.parts["checkpoint"] == second.parts["checkpoint"] == weights.read_bytes()
    assert b'"pretrained": false' in second.parts["config"]
    assert model.id == "mod_000001"


def test_a_model_without_a_checkpoint_is_json_and_pretrained(server: FakeServer, client: Client) -> None:
    client.upload_model("vit_tiny")
    sent = server.requests("POST", "/v1/models")[0].json
    assert (sent["name"], sent["pretrained"], sent["options"]) == ("vit_tiny", True, {})


def test_a_file_is_uploaded_and_a_folder_is_named(server: FakeServer, client: Client, tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"npz")
    client.upload_dataset(tmp_path / "data.npz")
    client.upload_dataset(tmp_path)
    upload, named = server.requests("POST", "/v1/datasets")
    assert upload.parts["file"] == b"npz"
    assert named.json == {"path": str(tmp_path.resolve())}


def test_a_missing_file_is_named_before_anything_is_sent(server: FakeServer, client: Client) -> None:
    with pytest.raises(VitfitError, match=r"nowhere\.npz"):
        client.upload_dataset("nowhere.npz")
    assert server.seen == []


def test_lists_are_read_to_their_last_page(server: FakeServer, client: Client) -> None:
    server.trials = [{"number": n, "score": -n, "costs": {"cpu": 1.0}, "unheard_of": 1} for n in range(5)]
    job = client.submit("mdl_1", BUDGETS)
    trials = list(client.trials(job))
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    assert trials[0] == Trial(number=0, score=0, costs={"cpu": 1.0})
    assert len(server.requests("GET", f"/v1/jobs/{job.id}/trials")) == 3


def test_watch_yields_every_poll_and_ends_with_the_finished_job(server: FakeServer, client: Client) -> None:
    progress = {"trials_done": 3, "trials_total": 8, "best_score": -0.1, "seconds_left": 9.0}
    server.states = [
        {"status": "queued"},
        {"status": "running", "stage": "searching", "progress": progress},
        {"status": "succeeded", "guarantee": "measured"},
    ]
    jobs = list(client.watch(client.submit("mdl_1", BUDGETS)))
    assert [job.status for job in jobs] == ["queued", "running", "succeeded"]
    assert jobs[1].progress.trials_done == 3
    assert jobs[-1].finished and not jobs[0].finished


def test_watch_outlives_a_server_that_is_away_for_a_moment(server: FakeServer) -> None:
    with Client(server.url, retries=0) as client:
        job = client.submit("mdl_1", BUDGETS)
        server.states = [{"status": "running"}, {"status": "running"}, {"status": "succeeded"}]
        server.faults = ["drop"]
        assert [found.status for found in client.watch(job)] == ["running", "succeeded"]


def test_watch_gives_up_on_a_server_that_stays_away(server: FakeServer) -> None:
    with Client(server.url, retries=0) as client:
        job = client.submit("mdl_1", BUDGETS)
        server.faults = ["drop"] * 5
        with pytest.raises(VitfitError, match="connection"):
            list(client.watch(job, patience_s=0.0))


def test_watch_stops_at_its_time_limit_and_says_that_the_job_goes_on(server: FakeServer, client: Client) -> None:
    server.states = [{"status": "running"}]
    server.retry_after = "0.02"
    with pytest.raises(VitfitError, match="It continues"):
        list(client.watch(client.submit("mdl_1", BUDGETS), timeout_s=0.05))


def test_the_error_of_a_failed_job_is_typed(server: FakeServer, client: Client) -> None:
    error = {"type": "/problems/bad-data", "title": "Bad data", "status": 422, "detail": "NaN in image 7.", "image": 7}
    server.states = [{"status": "failed", "error": error}]
    job = client.get(client.submit("mdl_1", BUDGETS))
    assert job.error is not None
    assert (job.error.code, job.error.detail, job.error.facts) == ("bad-data", "NaN in image 7.", {"image": 7})


def test_deliver_cancel_and_delete(server: FakeServer, client: Client) -> None:
    job = client.submit("mdl_1", BUDGETS)
    child = client.deliver(job, 3)
    assert child.parent == job.id
    assert server.requests("POST", f"/v1/jobs/{job.id}/deliver")[0].json == {"trial": 3}
    assert client.cancel(job).status == "canceling"
    client.delete(job)
    with pytest.raises(VitfitError) as caught:
        client.get(job)
    assert caught.value.status == 404


def test_an_answer_that_lacks_a_field_is_an_error_of_ours_and_not_a_traceback() -> None:
    with pytest.raises(VitfitError, match="'status'"):
        Job.from_json({"id": "job_1"})


def test_a_web_page_in_place_of_a_server_is_named_as_such(server: FakeServer, client: Client) -> None:
    server.faults = [404]
    with pytest.raises(VitfitError, match="out of order"):
        client.health()


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Client(server.url, retries=0) as client:
        assert [device.name for device in client.devices()] == ["cpu", "generic-mobile"]
