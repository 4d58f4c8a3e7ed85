"""Claim: all queued jobs succeed: 1,000 jobs of the public fake engine, and 20 real jobs.

    python -m benchmarks.many_jobs                              about 8 minutes on 2 cores
    python -m benchmarks.many_jobs --real --jobs 20             about 10 minutes on 2 cores

Eight clients submit all jobs at the start, without waiting for any job to end. The server runs two jobs at a time. A
real job compresses the digits model to 0.6 of its MACs with four trials. The script counts the jobs that did not
succeed, the jobs that needed more than one attempt, the jobs with missing or repeated trials, and the processes that
are left at the end.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import machine
from benchmarks.polling import request
from benchmarks.serving import processes, serving
from service.db.job_states import FINISHED

FAKE = {"VITFIT_ENGINE": "fake", "VITFIT_FAKE_TRIAL_S": "0.01"}
TRIALS, CLIENTS, LOOK_S = 4, 8, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--real", action="store_true", help="the digits model instead of the fake engine")
    parser.add_argument("--output", type=Path, default=Path("build/many-jobs.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitfit-many-") as folder:
        environment = {"VITFIT_WORKERS": "2", "VITFIT_REQUESTS_PER_MINUTE": "1000000", "VITFIT_LOCKS": folder}
        with serving(Path(folder), **environment, **({} if options.real else FAKE)) as address:
            found = ended(address, options.jobs, options.real)
        found["processes left"] = len(processes(folder))
    for name, value in found.items():
        print(f"{name}: {value}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**found, **machine()}, indent=1))
    if found["ended otherwise"] or found["not in one attempt"] or found["processes left"]:
        sys.exit(1)


def ended(address: str, jobs: int, real: bool) -> dict[str, Any]:
    with httpx.Client(base_url=address, timeout=120) as client:
        body = request(address, TRIALS) if real else fake_request(client)
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            ids = list(pool.map(lambda number: submit(client, {**body, "seed": number}), range(jobs)))
        submitted_s = time.monotonic() - began
        while waiting := sum(client.get("/healthz").json()["jobs"].values()):
            print(f"{waiting} of {jobs} are not finished", flush=True)
            time.sleep(LOOK_S)
        whole_s = time.monotonic() - began
        states = [client.get(f"/v1/jobs/{job}").json() for job in ids]
        numbers = [[trial["number"] for trial in client.get(f"/v1/jobs/{job}/trials").json()["trials"]] for job in ids]
    assert all(state["status"] in FINISHED for state in states)
    return {
        "jobs": jobs,
        "ended": dict(collections.Counter(state["status"] for state in states)),
        "ended otherwise": [state["id"] for state in states if state["status"] != "succeeded"],
        "not in one attempt": [state["id"] for state in states if state["attempt"] != 1],
        "with other trials": sum(found != list(range(len(found))) or not found for found in numbers),
        "submitted per minute": round(60 * jobs / submitted_s, 1),
        "ended per minute": round(60 * jobs / whole_s, 1),
        "minutes": round(whole_s / 60, 1),
    }


def fake_request(client: httpx.Client) -> dict[str, Any]:
    model = client.post("/v1/models", json={"name": "fake_tiny_patch4_32"}).json()["id"]
    return {"model": model, "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": TRIALS}


def submit(client: httpx.Client, body: dict[str, Any]) -> str:
    answer = client.post("/v1/jobs", json=body)
    answer.raise_for_status()
    return str(answer.json()["id"])


if __name__ == "__main__":
    main()
