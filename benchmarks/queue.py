"""Claim: the database handles as many jobs per second as docs/growing.md says, on SQLite and on PostgreSQL.

    python -m benchmarks.queue                                                  SQLite, about 1 minute on 2 cores
    python -m benchmarks.queue --database-url postgresql://user@host/empty      an empty database; its tables stay

The jobs are empty, so only the queue works. `claims`: several threads claim jobs until a full queue is empty. `lives`:
several workers run complete jobs at the same time. A complete job is the claim, TRIALS trials, and the end. Each trial
comes with its progress and a heartbeat. The bytes per job are the growth of the database divided by the number of jobs.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url, text
from vitfit.report import JobResult

from benchmarks.machine import machine
from service.db.migrate import upgrade
from service.db.tables import ModelRow, Store
from service.jobs.job_store import Jobs, NewJob
from service.jobs.leases import Leases

TRIALS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--database-url", type=make_url, help="PostgreSQL; SQLite when left out")
    parser.add_argument("--jobs", type=int, default=1000, help="claimed; a twentieth of them live a whole life")
    parser.add_argument("--output", type=Path, default=Path("build/queue.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitfit-queue-") as folder:
        found = measured(options.database_url or Path(folder) / "vitfit.sqlite", options.jobs)
    for name, value in found.items():
        print(f"{name}: {value}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**found, **machine()}, indent=1))


def measured(database: Path | URL, count: int) -> dict[str, Any]:
    store = Store(database)
    upgrade(store)
    with store.write() as session:
        session.merge(ModelRow(id="mdl_queue", owner="", name="none", description={}))
    found: dict[str, Any] = {"database": store.engine.dialect.name}
    submit(store, 20)  # the first jobs open the connections, so they are not timed
    lives(store)
    began = time.perf_counter()
    submit(store, count)
    found["submitted per s"] = round(count / (time.perf_counter() - began))
    for workers in (1, 8):
        submit(store, max(0, count - Jobs(store).counts()["queued"]))
        found[f"claims per s, {workers} claimers"] = round(rate(store, workers, claims))
    before = size_bytes(store)
    for workers in (1, 8):
        submit(store, count // 20)
        found[f"lives per s, {workers} workers"] = round(rate(store, workers, lives), 1)
    grown = (size_bytes(store) - before) / (2 * (count // 20))
    found[f"database bytes per job of {TRIALS} trials"] = round(grown)
    store.close()
    return found


def submit(store: Store, count: int) -> None:
    jobs = Jobs(store, most_unfinished=10**9)
    request = {"model": "mdl_queue", "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": TRIALS}
    for _ in range(count):
        jobs.create(NewJob(request))


def rate(store: Store, workers: int, work: Callable[[Store], int]) -> float:
    """Let `workers` threads work until the queue is empty. Return the jobs per second."""
    done = list[int]()
    threads = [threading.Thread(target=lambda: done.append(work(store))) for _ in range(workers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def claims(store: Store) -> int:
    leases, count = Leases(store, 3600.0, most_running=10**9), 0
    while leases.claim("benchmark") is not None:
        count += 1
    return count


def lives(store: Store) -> int:
    leases, count = Leases(store, 3600.0, most_running=10**9), 0
    while (lease := leases.claim("benchmark")) is not None:
        for number in range(TRIALS):
            leases.record(lease, trial(number))
            leases.progress(lease, number + 1, TRIALS, -0.1, seconds_left=1.0)
            leases.heartbeat(lease)
        leases.succeed(lease, JobResult(guarantee="counted", delivered_trial=0))
        count += 1
    return count


def trial(number: int) -> dict[str, Any]:
    """Return a trial as large as the trials of the pipeline on a network of 12 blocks."""
    policy = {
        f"{axis}{part}": 0.123456789 * (number + 1) / TRIALS for axis in ("heads", "neurons", "tokens") for part in "ab"
    }
    return {
        "number": number,
        "policy": policy,
        "structure_key": f"{number:064x}",
        "score": -0.123456789,
        "accuracy": 0.9123456789,
        "agreement": 0.9512345678,
        "costs": {"macs_keep": 0.5987654321},
        "origin": "predicted",
        "seconds": 12.3456789,
        "start": False,
    }


def size_bytes(store: Store) -> int:
    with store.read() as session:
        if store.engine.dialect.name == "postgresql":
            query = "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE relname IN ('jobs', 'trials')"
            return int(session.scalar(text(query)))
        pages, page = (session.scalar(text(f"PRAGMA {name}")) for name in ("page_count", "page_size"))
        return int(pages) * int(page)


if __name__ == "__main__":
    main()
