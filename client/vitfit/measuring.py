"""The measuring child: `python -m vitfit.measuring`. One JSON request on stdin, one JSON answer on stdout.

A process of its own, because thread count and affinity must be set before any session exists and because memory layout
differs from process to process: several short processes are worth more than one long one.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from vitfit.child import die_with_parent

WARMUP_RUNS = 5
WARMUP_LIMIT = 40
STABLE, WARMUP_MS = 0.02, 300.0
"""Warm is what agrees from one group of runs to the next. Where a neighbour keeps them apart that would never end: after so
many ms two groups will do, and the rounds tell the rest."""
SETTLE_MS, SETTLE_RUNS = 10.0, 10
"""After another network ran, caches and branch predictors are that one's: of a 1 ms network the first run takes half as
long again as the tenth. So files take turns in bursts, and the runs of a burst's first milliseconds are not counted."""
KEEP_MS, KEEP_RUNS = 8.0, 8
"""How much of a burst is counted: at least one run."""


def main() -> None:
    die_with_parent()
    request = json.load(sys.stdin)
    try:
        answer = measure(request)
    except Refused as error:
        answer = {"refused": str(error)}
    json.dump(answer, sys.stdout)


class Refused(Exception):
    """The wrong thing would be measured."""


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """request: files, threads, batch, provider, gpu (its number, or None), seconds, rounds (at least), seed, images (an .npy file, or None).

    With images, round r feeds image r to every file, over and over: each process sees every image equally often.

    Answers {"samples_ms": [file][round][run of the burst]}: bursts of one round were taken one after the other.
    """
    pin(request["threads"])
    sessions = [open_session(file, request) for file in request["files"]]
    fed = [feeds(session, request) for session in sessions]
    place, images = [0], len(fed[0])
    runs = [_runner(session, feed, place, request.get("gpu")) for session, feed in zip(sessions, fed, strict=True)]
    bursts = [_burst(_warm_up(run)) for run in runs]
    order, shuffle = list(range(len(runs))), random.Random(request["seed"])
    samples: list[list[list[float]]] = [[] for _ in runs]
    end = time.perf_counter() + request["seconds"]
    while len(samples[0]) < request["rounds"] or len(samples[0]) % images or time.perf_counter() < end:
        place[0] = len(samples[0]) % images
        shuffle.shuffle(order)
        for i in order:
            settle, keep = bursts[i]
            burst = [_timed_ms(runs[i]) for _ in range(settle + keep)]
            samples[i].append(burst[settle:])
    return {"samples_ms": samples}


def pin(threads: int) -> None:
    """The last cores: the first ones serve most interrupts."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise Refused(f"{threads} threads were asked for, this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[-threads:])


def open_session(file: str, request: dict[str, Any], profile: str | None = None) -> Any:
    """request: threads, provider. profile: where the runtime writes the times of operators. Raises: Refused."""
    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if request["provider"] not in onnxruntime.get_available_providers():
        raise Refused(f"ONNX Runtime here has no {request['provider']}; it has {onnxruntime.get_available_providers()}")
    gpu = request.get("gpu")
    wanted = [request["provider"] if gpu is None else (request["provider"], {"device_id": gpu})]
    session = onnxruntime.InferenceSession(file, options, providers=wanted)
    if session.get_providers()[0] != request["provider"]:
        raise Refused(f"ONNX Runtime fell back from {request['provider']} to {session.get_providers()}")
    return session


def feeds(session: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What the rounds feed in turn: noise, or the given images one by one."""
    (entry,) = session.get_inputs()
    batch = request["batch"]
    shape = [batch if not isinstance(size, int) else size for size in entry.shape]
    if shape[0] != batch:
        raise Refused(f"The file has a fixed batch of {shape[0]}, {batch} was asked for")
    if request.get("images") is None:
        return [{entry.name: np.random.default_rng(request["seed"]).standard_normal(shape, dtype=np.float32)}]
    if batch != 1:
        raise Refused(f"images are measured one by one, a batch of {batch} was asked for")
    images = np.load(request["images"], allow_pickle=False)
    if list(images.shape[1:]) != shape[1:]:
        raise Refused(f"the images have shape {list(images.shape[1:])}, the file takes {shape[1:]}")
    return [{entry.name: image[None]} for image in images]


def _runner(session: Any, feed: list[dict[str, Any]], place: list[int], gpu: int | None) -> Callable[[], Any]:
    """Runs on feed[place[0]]. On a GPU inputs and outputs stay there, and a run ends when its outputs are ready."""
    if gpu is None:
        return lambda: session.run(None, feed[place[0]])
    bound = [bind(session, inputs, "cuda", gpu) for inputs in feed]

    def run() -> None:
        binding = bound[place[0]]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def bind(session: Any, inputs: dict[str, Any], device: str, number: int) -> Any:
    """Inputs copied to the device once, outputs made there."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, device, number))
    for output in session.get_outputs():
        binding.bind_output(output.name, device, number)
    return binding


def _burst(run_ms: float) -> tuple[int, int]:
    """How many runs of a burst settle, and how many are counted."""
    return min(SETTLE_RUNS, math.ceil(SETTLE_MS / run_ms)), max(1, min(KEEP_RUNS, round(KEEP_MS / run_ms)))


def _warm_up(run: Any) -> float:
    """Until two successive groups of runs agree, or a limit. Returns about how many ms a run takes."""
    before, spent = float("inf"), 0.0
    for _ in range(WARMUP_LIMIT // WARMUP_RUNS):
        group = [_timed_ms(run) for _ in range(WARMUP_RUNS)]
        now, spent = min(group), spent + sum(group)
        if abs(now - before) <= STABLE * now or (spent > WARMUP_MS and math.isfinite(before)):
            break
        before = now
    return now


def _timed_ms(run: Any) -> float:
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


if __name__ == "__main__":
    main()
