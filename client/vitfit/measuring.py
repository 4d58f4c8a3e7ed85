"""The process that measures latency: `python -m vitfit.measuring`, with JSON on stdin and stdout.

It reads one request and writes one answer. It is a separate process for two reasons. Thread count and affinity must be
set before any session exists. And memory layout differs between processes, so several short processes give a better
estimate than one long process.
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

from vitfit.child import die_with_parent, stay_offline

WARMUP_RUNS = 5
WARMUP_LIMIT = 40
STABLE, WARMUP_MS = 0.02, 300.0
"""The warm-up ends when two successive groups of runs agree within the fraction `STABLE`.

If other processes disturb the machine, they may never agree. The warm-up therefore ends after `WARMUP_MS` of runs and
at least two groups; the measured rounds show the remaining noise.
"""
SETTLE_MS, SETTLE_RUNS = 10.0, 10
"""Length of the uncounted first part of a burst: at most this many ms and at most this many runs.

After another network has run, caches and branch predictors hold the state of that network. The first run of a 1 ms
network then takes 1.5 times as long as its tenth run. The files are therefore measured in alternating bursts, whose
first runs are not counted.
"""
KEEP_MS, KEEP_RUNS = 8.0, 8
"""Length of the counted part of a burst: at most this many ms and this many runs, but at least one run."""


def main() -> None:
    die_with_parent()
    stay_offline()
    request = json.load(sys.stdin)
    try:
        answer = measure(request)
    except Refused as error:
        answer = {"refused": str(error)}
    json.dump(answer, sys.stdout)


class Refused(Exception):
    """The request cannot be measured as asked, for example because the provider is missing."""


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Measure the latency of ONNX files.

    request: an object with files, threads, batch, provider, gpu (its number, or None), seconds (minimum time), rounds
    (minimum number), seed, and images (an .npy file, or None).

    With images, all files get the same image in a round, and the images are used in turn. The number of rounds is a
    multiple of the number of images, so each process uses every image equally often.

    Return {"samples_ms": [file][round][run within the burst]}. The bursts of one round are measured one after the
    other.

    Raises: Refused.
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
    """Pin this process to the last `threads` cores, because the first cores serve most interrupts. Raises: Refused."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise Refused(f"the request needs {threads} threads, but this process may use only {len(cores)} cores")
    os.sched_setaffinity(0, cores[-threads:])


def open_session(file: str, request: dict[str, Any], profile: str | None = None) -> Any:
    """Open an ONNX Runtime session.

    request: threads, provider, and gpu (its number; may be missing).
    profile: prefix of the file to which the runtime writes the times of operators; None for no profile.

    Raises: Refused.
    """
    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if request["provider"] not in onnxruntime.get_available_providers():
        raise Refused(
            f"ONNX Runtime on this machine does not have {request['provider']}; "
            f"it has {onnxruntime.get_available_providers()}"
        )
    gpu = request.get("gpu")
    wanted = [request["provider"] if gpu is None else (request["provider"], {"device_id": gpu})]
    session = onnxruntime.InferenceSession(file, options, providers=wanted)
    if session.get_providers()[0] != request["provider"]:
        raise Refused(f"ONNX Runtime could not use {request['provider']} and uses {session.get_providers()} instead")
    return session


def feeds(session: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the inputs that the rounds use in turn.

    They are the given images one by one, or one batch of noise.

    Raises: Refused.
    """
    (entry,) = session.get_inputs()
    batch = request["batch"]
    shape = [batch if not isinstance(size, int) else size for size in entry.shape]
    if shape[0] != batch:
        raise Refused(f"the file has a fixed batch of {shape[0]}, but the request has a batch of {batch}")
    if request.get("images") is None:
        return [{entry.name: np.random.default_rng(request["seed"]).standard_normal(shape, dtype=np.float32)}]
    if batch != 1:
        raise Refused(f"images are measured one by one, but the request has a batch of {batch}")
    images = np.load(request["images"], allow_pickle=False)
    if list(images.shape[1:]) != shape[1:]:
        raise Refused(f"the images have the shape {list(images.shape[1:])}, but the file needs {shape[1:]}")
    return [{entry.name: image[None]} for image in images]


def _runner(session: Any, feed: list[dict[str, Any]], place: list[int], gpu: int | None) -> Callable[[], Any]:
    """Return a function that runs the session once, on feed[place[0]].

    On a GPU, inputs and outputs stay in its memory, and a run ends when its outputs are ready.
    """
    if gpu is None:
        return lambda: session.run(None, feed[place[0]])
    bound = [bind(session, inputs, "cuda", gpu) for inputs in feed]

    def run() -> None:
        binding = bound[place[0]]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def bind(session: Any, inputs: dict[str, Any], device: str, number: int) -> Any:
    """Return a binding whose inputs are copied to the device once and whose outputs are created there."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, device, number))
    for output in session.get_outputs():
        binding.bind_output(output.name, device, number)
    return binding


def _burst(run_ms: float) -> tuple[int, int]:
    """Return how many runs at the start of a burst are not counted, and how many runs after them are counted."""
    return min(SETTLE_RUNS, math.ceil(SETTLE_MS / run_ms)), max(1, min(KEEP_RUNS, round(KEEP_MS / run_ms)))


def _warm_up(run: Any) -> float:
    """Run until two successive groups of runs agree, or until a limit. Return the approximate time of a run in ms."""
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
