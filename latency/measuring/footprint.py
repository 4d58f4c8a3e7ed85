"""Costs of one file apart from its steady latency: loading, the first run, memory, and the time of each operator.

    python -m latency.measuring.footprint < request.json

Each file gets a process of its own. Only a fresh process shows the cost of the first run and the memory of the file.
"""

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from vitfit.child import ChildFailed, ask, die_with_parent, stay_offline
from vitfit.report import Footprint, OperatorTime

from latency.devices.setting import Setting
from latency.measuring.machine_lock import Tell, measuring_lease, silent
from models.errors import DeviceUnavailable

PROFILED_RUNS, WARM_RUNS = 20, 5


def footprint(file: Path, setting: Setting, tell: Tell = silent) -> Footprint:
    """Take the footprint of a file in a new process. Raises: DeviceUnavailable when the runtime refuses.

    tell: is told when the process waits for another measurement.
    """
    request = {"file": str(file), "threads": setting.threads, "batch": setting.batch, "provider": setting.provider}
    try:
        with measuring_lease(tell):
            return Footprint.from_json(ask([sys.executable, "-m", "latency.measuring.footprint"], request))
    except ChildFailed as error:
        raise DeviceUnavailable(
            f"vitfit could not measure the loading time and the memory of {file.name}: {error}. Check whether ONNX"
            " Runtime can run this file on this machine.",
            file=str(file),
        ) from error


def main() -> None:
    from vitfit.measuring import feeds, open_session, pin  # only the child process needs the runtime

    die_with_parent()
    stay_offline()
    request = json.load(sys.stdin)
    pin(request["threads"])
    before = _memory_mib("VmRSS")
    began = time.perf_counter()
    session = open_session(request["file"], request)
    load_ms = 1000 * (time.perf_counter() - began)
    feed = feeds(session, request | {"seed": 0})[0]
    began = time.perf_counter()
    session.run(None, feed)
    first_ms = 1000 * (time.perf_counter() - began)
    for _ in range(WARM_RUNS):
        session.run(None, feed)
    peak = _memory_mib("VmHWM") - before
    operators = _operators(request, feed)
    taken = Footprint(load_ms=load_ms, first_run_ms=first_ms, peak_mib=peak, operators=operators)
    json.dump(taken.to_json(), sys.stdout)


def _memory_mib(name: str) -> float:
    """Memory of this process in MiB. VmRSS: its current memory. VmHWM: its peak so far. getrusage is not used, because
    it would count the memory that the parent had before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def node_events(session: Any) -> list[dict[str, Any]]:
    """End the profiling of a session, and return each operator of each run with its time and shapes."""
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def _operators(request: dict[str, Any], feed: dict[str, Any]) -> tuple[OperatorTime, ...]:
    """Run the file under the profiler, and return the times of its operators, the slowest kind first."""
    from vitfit.measuring import open_session

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(request["file"], request, profile=os.path.join(folder, "profile"))
        for _ in range(PROFILED_RUNS):
            session.run(None, feed)
        events = node_events(session)
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in events:
        kind = event["args"]["op_name"]
        times[kind] += event["dur"] / 1000 / PROFILED_RUNS
        counts[kind] += 1
    whole = sum(times.values()) or 1.0
    ordered = sorted(times, key=lambda kind: -times[kind])
    return tuple(
        OperatorTime(operator=kind, count=counts[kind] // PROFILED_RUNS, ms=times[kind], share=times[kind] / whole)
        for kind in ordered
    )


if __name__ == "__main__":
    main()
