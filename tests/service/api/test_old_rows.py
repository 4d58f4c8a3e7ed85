"""Tests that rows of earlier versions still open: their JSON lacks fields that were added later."""

from fastapi.testclient import TestClient

from service.db.tables import ModelRow, Store
from tests.service.conftest import DESCRIPTION, new_job


def test_results_and_descriptions_of_earlier_versions_open(web: TestClient, store_of_web: Store) -> None:
    with store_of_web.write() as session:
        session.add(ModelRow(id="mdl_a", owner="", name="m", description=DESCRIPTION))
        session.flush()
        for result in (
            {"score": -0.1, "trials": 4, "delivered_trial": 2},
            {"rows": [["a", "b", "c"]], "delivered_trial": 0},
        ):
            row = new_job().row()
            row.status, row.result = "succeeded", result
            session.add(row)
    jobs = web.get("/v1/jobs").json()["jobs"]
    assert sorted(job["result"]["delivered_trial"] for job in jobs) == [0, 2]
    assert web.get("/v1/models").json()["models"][0]["description"]["assumptions"] == []


def test_an_ended_job_has_no_time_left_even_if_its_row_holds_an_estimate(web: TestClient, store_of_web: Store) -> None:
    with store_of_web.write() as session:
        session.add(ModelRow(id="mdl_a", owner="", name="m", description=DESCRIPTION))
        session.flush()
        for status in ("succeeded", "failed", "canceled"):
            row = new_job().row()
            row.status, row.progress = status, {**row.progress, "trials_done": 1, "seconds_left": 6678.4}
            session.add(row)
    jobs = web.get("/v1/jobs").json()["jobs"]
    assert [job["progress"]["seconds_left"] for job in jobs] == [None] * 3
    assert {web.get(job["links"]["self"]).json()["progress"]["seconds_left"] for job in jobs} == {None}
    assert jobs[0]["progress"]["trials_done"] == 1
