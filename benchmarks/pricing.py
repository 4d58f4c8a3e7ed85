"""Claim: a price costs far less than a measurement, and most of a trial is the pruned model's forward passes.

    python -m benchmarks.pricing                            about 5 minutes on 2 cores

The claim has three parts. First, at least 10,000 structures are priced per second. Second, the time for one price is at
most 1/1000 of the time to export, load and measure the network. Third, the forward passes of the pruned model take most
of the time of a trial. The model is DeiT-S with random weights. The selection split is 256 images of noise.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from latency.measuring.meter import Effort
from models.data.noise import noise_data
from models.structure import Structure, identity
from search.policy import Policy
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.pipeline.evaluation import Evaluation
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import profile
from service.pipeline.ranked import Ranked, rank_network
from service.pipeline.verification import Verifier

MODEL = "deit_small_patch16_224"
POLICIES = 2000
MEASURE = Effort(seconds=3.0, processes=2, rounds=10)
"""Effort of a quick measurement. The measurement of a job takes longer."""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(table(Path(folder), options.trials, options.images))


def table(folder: Path, trials: int, images: int) -> str:
    (folder / "model.json").write_text(json.dumps({"name": MODEL, "options": {}, "pretrained": False}))
    request = JobRequest.model_validate({"model": "x", "budgets": [{"metric": "latency_keep", "limit": 0.6}]})
    evaluation = Evaluation.open(request, JobFiles(folder, None, folder, folder, folder))
    data = noise_data(evaluation.network.preprocessing, 4 * images, 0)
    evaluation = dataclasses.replace(evaluation, data=data, selection=data.take("selection", images, 0))
    ranked = rank_network(evaluation, request, folder)
    space, pricing = ranked.space, Pricing(request, evaluation.network.structure)
    verifier = Verifier(evaluation.network, pricing, folder, 0)
    fitting = seconds(lambda: profile(pricing, evaluation.network, verifier, folder, work=folder))
    random = np.random.default_rng(0)
    policies = [space.along(list(random.random(len(space.dimensions))), random.random()) for _ in range(POLICIES)]
    sketches: list[Structure] = []
    sketch = seconds(lambda: sketches.extend(space.sketch(policy) for policy in policies)) / len(policies)
    price = seconds(lambda: pricing.price(sketches)) / len(policies)
    network = evaluation.network.pruned(identity(evaluation.network.structure), None)
    place = pricing.report_place
    measure = seconds(lambda: verifier.measure([("one", network)], place, MEASURE))
    shares = [trial_share(ranked, policies[i]) for i in range(trials)]
    return "\n".join(
        [
            f"{MODEL}, one thread, batch 1",
            f"fit the table: {fitting:.1f} s",
            f"from a policy to its structure: {1e3 * sketch:.3f} ms; "
            f"its price, in a batch of {len(policies)} that were never priced: "
            f"{1e3 * price:.3f} ms, {1 / price:,.0f} per second",
            f"export, load and measure one: {measure:.1f} s, {measure / (sketch + price):,.0f} times as long",
            f"share of a trial that is the pruned model's forward passes ({images} images): "
            f"{statistics.mean(shares):.3f} (each: {', '.join(f'{s:.3f}' for s in shares)})",
            ", ".join(machine().values()),
        ]
    )


def trial_share(ranked: Ranked, policy: Policy) -> float:
    """Return the share of a trial's time that its forward passes take.

    A trial makes the plan, prunes, recovers, runs the network and scores it.
    """
    plan = ranked.space.plan(policy)
    whole = seconds(lambda: ranked.scorer(recovery=True)(policy))
    network = ranked.prune(plan, recovery=True)
    return min(1.0, seconds(lambda: network.outputs(ranked.evaluation.selection.images)) / whole)


if __name__ == "__main__":
    main()
