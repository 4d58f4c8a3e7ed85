"""Tests of server-sent events of a job, over a connection that breaks."""

import json
from typing import Any

import httpx
import pytest

from tests.support.running import Server


def told(server: Server, job: str, after: int | None = None, until: int | None = None) -> list[tuple[str, int, Any]]:
    """Return (event, id, body) for the events of a stream, and stop after `until` events."""
    found: list[tuple[str, int, Any]] = []
    fields: dict[str, str] = {}
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with server.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("event", "id", "data"):
                fields[name] = value
            elif not line and fields:
                found.append((fields["event"], int(fields["id"]), json.loads(fields["data"])))
                fields = {}
                if until is not None and len(found) >= until:
                    break
    return found


def numbers(found: list[tuple[str, int, Any]]) -> list[int]:
    return [body["number"] for event, _, body in found if event == "trial"]


def test_every_trial_is_told_once_and_the_stream_ends_with_the_job(server: Server) -> None:
    job = server.submit(server.model())
    found = told(server, job)
    assert numbers(found) == [0, 1, 2, 3]
    last = found[-1]
    assert last[0] == "job" and last[2]["status"] == "succeeded" and last[1] == 4
    assert last[2] == server.job(job)


def test_a_broken_stream_goes_on_where_it_stopped(own_server: Server) -> None:
    job = own_server.submit(own_server.model(), trials=6)
    first = told(own_server, job, until=4)
    own_server.end()
    own_server.start()
    rest = told(own_server, job, after=first[-1][1])
    assert numbers(first) + numbers(rest) == [0, 1, 2, 3, 4, 5]
    assert rest[-1][2]["status"] == "succeeded"


def test_a_finished_job_is_told_at_once(server: Server, finished_job: str) -> None:
    assert numbers(told(server, finished_job)) == [0, 1, 2, 3]
    assert [event for event, _, _ in told(server, finished_job, after=4)] == ["job"]


@pytest.mark.parametrize(("job", "last", "status"), [("job_none", "0", 404), (None, "-1", 422), (None, "x", 422)])
def test_what_cannot_be_followed_is_refused(
    server: Server, finished_job: str, job: str | None, last: str, status: int
) -> None:
    path = f"/v1/jobs/{job or finished_job}/events"
    answer: httpx.Response = server.client.get(path, headers={"Last-Event-ID": last})
    assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
