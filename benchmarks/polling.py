"""Claim: 500 clients that poll a job every 5 s get answers within 50 ms (p95) and slow the job by less than 10 %.

    python -m benchmarks.polling                                about 5 minutes on 2 cores

A real job compresses the digits model on one thread. Its budget limits MACs, so it measures nothing. The job runs
alone, and then again while the clients poll it. Both runs are done twice, in turn. Each client starts at a random
moment of the first 5 s.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.machine import machine
from benchmarks.serving import serving

DIGITS = Path(__file__).parent / "digits"
EVERY_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/polling.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitfit-polling-") as folder:
        found = measured(Path(folder), options.clients, options.trials, options.times)
    for name, value in found.items():
        print(f"{name}: {value}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**found, **machine()}, indent=1))


def measured(folder: Path, clients: int, trials: int, times: int) -> dict[str, Any]:
    alone: list[float] = []
    beside: list[float] = []
    answers: list[float] = []
    with serving(folder, OMP_NUM_THREADS="1", VITFIT_REQUESTS_PER_MINUTE="100000000") as address:
        body = request(address, trials)
        job_seconds(address, body)  # the first job fills the file caches, so it is not timed
        for _ in range(times):
            alone.append(job_seconds(address, body))
            print(f"alone: {alone[-1]:.1f} s", flush=True)
            seconds, found = asyncio.run(polled(address, body, clients))
            beside.append(seconds)
            print(f"polled: {seconds:.1f} s, {len(found)} requests", flush=True)
            answers += found
    slower = statistics.mean(beside) / statistics.mean(alone) - 1
    p50, p95 = (float(np.quantile(answers, q)) * 1000 for q in (0.5, 0.95))
    return {
        "clients": clients,
        "requests": len(answers),
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "job alone, s": [round(s, 1) for s in alone],
        "job while polled, s": [round(s, 1) for s in beside],
        "job slower by": f"{100 * slower:.1f} %",
    }


def request(address: str, trials: int) -> dict[str, Any]:
    config = json.loads((DIGITS / "model.json").read_text())
    kept = {
        name: config[name] for name in ("name", "options", "preprocessing", "classes") if config.get(name) is not None
    }
    with (DIGITS / "weights.safetensors").open("rb") as weights, (DIGITS / "digits.npz").open("rb") as data:
        files: dict[str, Any] = {"config": (None, json.dumps(kept)), "checkpoint": ("weights.safetensors", weights)}
        model = httpx.post(f"{address}/v1/models", files=files, timeout=120).json()["id"]
        dataset = httpx.post(f"{address}/v1/datasets", files={"file": ("digits.npz", data)}, timeout=120).json()["id"]
    budget = {"metric": "macs_keep", "limit": 0.6}
    return {"model": model, "dataset": dataset, "budgets": [budget], "trials": trials}


def job_seconds(address: str, body: dict[str, Any]) -> float:
    """Run a job and return the seconds of its search.

    This is the sum over its trials, so the start of the job and its report do not count.
    """
    job = httpx.post(f"{address}/v1/jobs", json=body, timeout=60).json()["id"]
    while httpx.get(f"{address}/v1/jobs/{job}", timeout=60).json()["finished_at"] is None:
        time.sleep(0.5)
    return _search_s(address, job)


def _search_s(address: str, job: str) -> float:
    found = httpx.get(f"{address}/v1/jobs/{job}/trials", params={"page_size": 500}, timeout=60).json()["trials"]
    return float(sum(trial["seconds"] for trial in found))


async def polled(address: str, body: dict[str, Any], clients: int) -> tuple[float, list[float]]:
    answers: list[float] = []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        job = (await client.post("/v1/jobs", json=body)).json()["id"]
        over = asyncio.Event()

        async def poll(number: int) -> None:
            await asyncio.sleep(random.Random(number).uniform(0, EVERY_S))
            while not over.is_set():
                began = time.perf_counter()
                answer = await client.get(f"/v1/jobs/{job}")
                answers.append(time.perf_counter() - began)
                if answer.json()["finished_at"] is not None:
                    over.set()
                await asyncio.sleep(max(0.0, EVERY_S - (time.perf_counter() - began)))

        await asyncio.gather(*(poll(number) for number in range(clients)))
    return _search_s(address, job), answers


if __name__ == "__main__":
    main()
