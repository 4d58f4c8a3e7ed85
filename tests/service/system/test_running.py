"""Tests of jobs in real worker processes under a real server: their states, cancels, errors and children."""

import base64
import hashlib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.core.settings import Settings
from service.serve import _listen
from tests.support.running import Server, is_alive, job_body, wait_until


def test_a_job_from_post_to_download(server: Server, finished_job: str) -> None:
    done = server.job(finished_job)
    assert (done["status"], done["stage"], done["name"]) == ("succeeded", "exporting", "mine")
    assert (done["guarantee"], done["attempt"], done["error"]) == ("predicted", 1, None)
    ended = {"trials_done": 4, "trials_total": 4, "best_score": -0.25, "seconds_left": None, "note": None}
    assert done["progress"] == ended
    assert done["result"]["delivered_trial"] == 3
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert server.trials(finished_job) == [0, 1, 2, 3]
    listed = server.client.get(done["links"]["artifacts"]).json()["artifacts"]
    assert [item["name"] for item in listed] == [
        "model.onnx",
        "patches.json",
        "plan.json",
        "report.html",
        "report.json",
    ]
    for item in listed:
        content = server.client.get(item["href"]).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (item["bytes"], item["sha256"])


def test_a_new_job_is_accepted_with_its_address(server: Server) -> None:
    answer = server.client.post("/v1/jobs", json=job_body(server.model(), trials=1))
    job = answer.json()
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")
    assert answer.headers["location"] == job["links"]["self"]
    assert (job["status"], job["attempt"], job["result"], job["parent"]) == ("queued", 0, None, None)
    waiting = server.client.get(job["links"]["self"])
    assert waiting.headers.get("retry-after") == (None if waiting.json()["status"] == "succeeded" else "1")


def test_a_poll_for_what_has_not_changed_is_answered_without_a_body(server: Server, finished_job: str) -> None:
    path = f"/v1/jobs/{finished_job}"
    whole = server.client.get(path)
    again = server.client.get(path, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", whole.headers["etag"])
    before = server.client.get(path, headers={"If-None-Match": '"of another state"'})
    assert (before.status_code, before.json()) == (200, whole.json())


def test_trials_come_in_pages(server: Server, finished_job: str) -> None:
    path = f"/v1/jobs/{finished_job}/trials"
    first = server.client.get(path, params={"page_size": 3}).json()
    rest = server.client.get(path, params={"page_size": 3, "page_token": first["next_page_token"]}).json()
    assert [row["number"] for row in first["trials"] + rest["trials"]] == [0, 1, 2, 3]
    assert rest["next_page_token"] is None


def test_a_download_resumes_and_its_digest_is_of_the_whole_file(server: Server, finished_job: str) -> None:
    href = f"/v1/jobs/{finished_job}/artifacts/model.onnx"
    whole = server.client.get(href)
    digest = hashlib.sha256(whole.content)
    assert whole.headers["etag"] == f'"{digest.hexdigest()}"'
    assert whole.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert whole.headers["accept-ranges"] == "bytes"
    same = {"Range": "bytes=1000-", "If-Range": whole.headers["etag"]}
    part = server.client.get(href, headers=same)
    assert (part.status_code, part.content) == (206, whole.content[1000:])
    assert part.headers["repr-digest"] == whole.headers["repr-digest"]
    other = server.client.get(href, headers={**same, "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, whole.content)
    assert server.client.get(href, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert server.client.head(href).headers["content-length"] == str(len(whole.content))
    beyond = server.client.get(href, headers={"Range": "bytes=999999999-"})
    assert (beyond.status_code, beyond.json()["type"]) == (416, "/problems/range-unsatisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert beyond.headers["content-type"] == "application/problem+json"


def test_only_artefacts_can_be_downloaded(server: Server, finished_job: str) -> None:
    for name in ("model.onx", "..%2Fwork%2Fevaluated.txt", "%2Fetc%2Fpasswd", "%2e%2e", "log.txt"):
        answer = server.client.get(f"/v1/jobs/{finished_job}/artifacts/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), name
    assert "model.onnx" in server.client.get(f"/v1/jobs/{finished_job}/artifacts/model.onx").json()["nearest"]


def test_a_failure_of_the_engine_stands_in_the_job(server: Server) -> None:
    model = server.model()
    ids = [server.submit(model, name=name) for name in ("impossible", "bug")]
    impossible, bug = (server.wait(job_id) for job_id in ids)
    assert [job["status"] for job in (impossible, bug)] == ["failed", "failed"]
    assert [job["attempt"] for job in (impossible, bug)] == [1, 1]
    assert impossible["error"]["type"] == "/problems/impossible-budget" and impossible["result"] is None
    assert impossible["error"]["reachable"] == 0.31 and "0.31" in impossible["error"]["detail"]
    assert bug["error"]["type"] == "/problems/internal-error" and "RuntimeError" in bug["error"]["detail"]


def test_a_worker_that_dies_once_is_started_again_and_one_that_always_dies_is_given_up(server: Server) -> None:
    model = server.model()
    once, always = server.submit(model, name="dies-once"), server.submit(model, name="dies")
    assert [server.wait(once)[key] for key in ("status", "attempt")] == ["succeeded", 2]
    job = server.wait(always)
    assert (job["status"], job["attempt"], job["error"]["type"]) == ("failed", 2, "/problems/worker-crashed")
    assert "SIGKILL" in job["error"]["detail"]


def test_cancel_ends_any_running_job_and_all_its_processes(server: Server) -> None:
    model = server.model()
    jobs = {name: server.submit(model, name=name, trials=2000) for name in ("polite", "deaf", "stubborn")}
    processes = []
    for job in jobs.values():
        server.wait_for_trials(job, 1)
        processes.append(server.evaluated(job)[0][1])
    processes.append(int((server.data / "jobs" / jobs["stubborn"] / "work" / "child.txt").read_text()))
    for job in (*jobs.values(), *jobs.values()):  # a user may repeat a cancel
        assert server.client.post(f"/v1/jobs/{job}/cancel").json()["status"] in ("canceling", "canceled")
    for job in jobs.values():
        ended = server.wait(job)
        assert (ended["status"], ended["error"]) == ("canceled", None)
        assert server.client.post(f"/v1/jobs/{job}/cancel").json() == ended
        assert len(server.trials(job)) >= 1
    wait_until(lambda: not any(is_alive(pid) for pid in processes), "the end of all processes")


def test_cancel_of_queued_and_of_finished_jobs(own_server: Server) -> None:
    model = own_server.model()
    running, queued = own_server.submit(model, trials=500), own_server.submit(model)
    own_server.wait(running, "running")
    assert own_server.job(queued)["status"] == "queued"  # the server runs one job at a time
    assert own_server.client.post(f"/v1/jobs/{queued}/cancel").json()["status"] == "canceled"
    own_server.client.post(f"/v1/jobs/{running}/cancel")
    assert own_server.wait(running)["status"] == "canceled"
    third = own_server.submit(model, trials=1)
    done = own_server.wait(third)
    assert own_server.client.post(f"/v1/jobs/{third}/cancel").json() == done
    assert done["status"] == "succeeded"
    assert own_server.job(queued)["started_at"] is None


def test_unfinished_jobs_and_what_they_use_cannot_be_deleted(server: Server) -> None:
    model = server.model()
    job = server.submit(model, trials=500)
    for path in (f"/v1/jobs/{job}", f"/v1/models/{model}"):
        answer = server.client.delete(path)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
    server.client.post(f"/v1/jobs/{job}/cancel")
    server.wait(job)
    for path in (f"/v1/jobs/{job}", f"/v1/models/{model}"):
        assert server.client.delete(path).status_code == 204
        assert server.client.get(path).status_code == 404
    assert not (server.data / "jobs" / job).exists() and not (server.data / "models" / model).exists()


def test_twenty_equal_posts_with_one_key_make_one_job(server: Server) -> None:
    model = server.model()
    body, headers = job_body(model, trials=1), {"Idempotency-Key": "twenty"}

    def post(_: int) -> tuple[int, dict[str, object]]:
        answer = server.client.post("/v1/jobs", json=body, headers=headers)
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert {status for status, _ in answers} == {202}
    assert all(job == answers[0][1] for _, job in answers)
    server.wait(str(answers[0][1]["id"]))
    later = server.client.post("/v1/jobs", json=body, headers=headers)
    assert later.json() == answers[0][1] and later.headers["idempotency-replayed"] == "true"
    other = server.client.post("/v1/jobs", json={**body, "seed": 1}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (409, "/problems/idempotency-key-reused")
    unfinished = [job for job in server.client.get("/v1/jobs").json()["jobs"] if job["request"]["model"] == model]
    assert len(unfinished) == 1


def test_another_trial_of_a_search_is_delivered_without_searching(server: Server, finished_job: str) -> None:
    parent = finished_job
    answer = server.client.post(f"/v1/jobs/{parent}/deliver", json={"trial": 1})
    assert answer.status_code == 202 and answer.json()["parent"] == parent
    child = server.wait(answer.json()["id"])
    assert (child["status"], child["result"]["delivered_trial"]) == ("succeeded", 1)
    assert (server.evaluated(child["id"]), server.trials(child["id"])) == ([], [0, 1, 2, 3])
    unknown = server.client.post(f"/v1/jobs/{parent}/deliver", json={"trial": 99})
    assert unknown.status_code == 422 and "no finished trial 99" in unknown.json()["detail"]


def test_a_connection_that_breaks_during_an_upload_leaves_nothing_behind(server: Server) -> None:
    before = {path for path in server.data.rglob("*") if path.is_file() and path.suffix == ".npz"}
    head = "POST /v1/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    part = '--B\r\nContent-Disposition: form-data; name="file"; filename="a.npz"\r\n\r\n'
    address = (server.client.base_url.host, server.client.base_url.port)
    with socket.create_connection(address) as connection:
        connection.sendall(f"{head}Content-Length: 100000000\r\n\r\n{part}".encode() + b"x" * 3_000_000)
        arriving = wait_until(lambda: list((server.data / "uploads").rglob("arriving")), "the upload on disk")
        wait_until(lambda: arriving[0].stat().st_size > 0, "its first bytes")
    wait_until(lambda: not arriving[0].parent.exists(), "the clean-up")
    after = {path for path in server.data.rglob("*") if path.is_file() and path.suffix == ".npz"}
    assert before == after


@pytest.mark.parametrize("trouble", ["port", "folder", "newer"])
def test_a_server_that_cannot_start_says_why_in_one_line(server: Server, tmp_path: Path, trouble: str) -> None:
    options = {"data": str(tmp_path / "data"), "port": "0"}
    if trouble == "port":
        options["port"] = str(server.client.base_url.port)
    elif trouble == "folder":
        (tmp_path / "file").write_text("not a folder")
        options["data"] = str(tmp_path / "file" / "data")
    else:
        _write_newer_database(tmp_path / "data")
    command = [sys.executable, "-m", "service.serve", "--data", options["data"], "--port", options["port"]]
    ended = subprocess.run([*command, "--engine", "fake"], capture_output=True, text=True, timeout=60)
    complaint = {"port": "is in use", "folder": "cannot be written", "newer": "a newer version wrote it"}[trouble]
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and line.startswith("vitfit: ") and complaint in line


def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.serve", "--data", str(tmp_path), "--port", "70000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "port: 70000 is not allowed. It must be at most 65,535." in ended.stderr


def _write_newer_database(folder: Path) -> None:
    from sqlalchemy import text

    from service.db.migrate import upgrade
    from service.db.tables import Store

    folder.mkdir()
    store = Store(folder / "vitfit.sqlite")
    upgrade(store)
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Check that the socket names TCP as its protocol.

    Only for such sockets does asyncio turn Nagle's algorithm off. Without that, each answer on a kept connection takes
    40 ms.
    """
    with _listen(Settings(data=tmp_path, port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP
