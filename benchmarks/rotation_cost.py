"""What bases, statistics and fits cost: DeiT-B on 512 pictures takes 4.6 GiB at its peak.

    python -m benchmarks.rotation_cost                                       DeiT-B, 512 pictures of noise
    python -m benchmarks.rotation_cost --model vit_large_patch16_224 --images 64

For each step, the script prints its seconds and the largest memory of the process (resident, of Linux). Weights and
pictures are random: they change neither.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import timm
import torch

from benchmarks.machine import machine
from models.data.preprocessing import Preprocessing
from models.loading.load_model import network_of
from search.criteria import rank
from search.criteria.rotated import with_bases
from search.methods import METHODS
from search.spaces.compact import CompactSpace

T = TypeVar("T")
DEPTH = 0.5
"""How far the measured network is cut along the direction that cuts all axes alike: about half of the MACs."""


def step(name: str, run: Callable[[], T]) -> T:
    """Run a step, print its seconds and its peak of memory, and return its result."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    started = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - started
    print(f"| {name} | {seconds:.0f} | {peak_gib():.2f} |", flush=True)
    return found


def peak_gib() -> float:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_base_patch16_224")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{options.model}, {options.images} pictures\n\n| step | seconds | GiB |\n|---|---|---|")
    module = timm.create_model(options.model).eval()
    network = step("model", lambda: network_of(module, options.model, Preprocessing.of_model(module)))
    images = step("pictures", lambda: torch.randn(options.images, *network.structure.image))
    bases = step("bases", lambda: network.bases(images))
    assert bases is not None
    source = step("rotation", lambda: network.rotated(bases))
    statistics = step("statistics", lambda: source.statistics(images, source.input_kinds))
    ranking = step("ranking", lambda: with_bases(rank("reconstruction", source.weights(), statistics), bases))
    space = CompactSpace(source.structure, ranking, METHODS["joint"].axes)
    plan = space.plan(space.along(space.starts()[0], DEPTH))
    small = step("prune and recover", lambda: source.pruned(plan, statistics))
    if small.recovers_in_sequence:
        step("sequential recovery", lambda: small.recovered_in_sequence(source, images))
    share = small.structure.macs / network.structure.macs
    print(f"\nThe pruned network has {share:.2f} of the MACs. {', '.join(machine().values())}")


if __name__ == "__main__":
    main()
