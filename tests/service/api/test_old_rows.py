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
