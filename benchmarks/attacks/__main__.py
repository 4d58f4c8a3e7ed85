"""Claim: none of the attacks of docs/attacks.md works, and the server stays small and quick over all of them.

    python -m benchmarks.attacks                 a few minutes on 2 cores, on loopback only

Each attack is bounded. The script prints a table: the attack, what it did before, what it does now. It ends with
status 1 if an attack works, if the server's memory grows by more than 200 MiB, or if /livez took longer than 1 s.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.attacks import agents, browser, databases, rogue_servers, single_requests, uploads
from benchmarks.attacks.target import Open, Target, target
from benchmarks.machine import machine

MEMORY_MOST, LIVEZ_MOST_S = 200 * 2**20, 1.0
ATTACKS: tuple[tuple[str, str, str, Callable[[Target], str]], ...] = (
    ("1", "260 idle connections", "the server is shut, 6 of 8 jobs fail", single_requests.connections),
    ("2", "odd page tokens", "500, /livez waits 44 s, 3.5 MB of log", single_requests.page_tokens),
    ("3", "an empty database", "all finished jobs are deleted", databases.empty_database),
    ("4", "another page in the browser", "reads and deletes everything", browser.rebinding_and_other_origins),
    ("5", "two Content-Type headers", "1.6 GB in the server", single_requests.two_content_types),
    ("6", "headers and networks of many GB", "the check takes all memory", uploads.memory),
    ("7", "methods as labels", "/metrics of 289 MB", single_requests.methods),
    ("8", "repositories named in a config.json", "the hub is asked", uploads.hub),
    ("9", "uploads that take all time", "others wait for 300 s", uploads.starving),
    ("10", "a small archive of large pictures", "the disk is full", uploads.unpacking),
    ("11", "uploads without a length", "122 MB kept at a quota of 20 MB", uploads.quota),
    ("14", "the device of another agent", "taken over", agents.takeover),
    ("15", "an agent with a rogue server", "opens any path, dies of a page", rogue_servers.rogue_server),
    ("16", "many large devices", "GET /v1/devices of 54 MB", agents.many_devices),
    ("17", "a damaged database", "200 and 201 beside 500", databases.damaged_database),
    ("18", "a session that is not ASCII", "500", agents.odd_session),
    ("12, 19, 20, 22", "odd files", "500, or paths of the machine", uploads.refusals),
    ("23", "/docs", "loads scripts of third parties", single_requests.open_pages),
    ("24", "one idempotency key, two people", "they wait for each other", single_requests.idempotency),
    ("13", "made-up access tokens", "no rate limit", single_requests.forged_tokens),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", help="the numbers of some attacks")
    parser.add_argument("--output", type=Path, default=Path("build/attacks.json"))
    options = parser.parse_args()
    wanted = [one for one in ATTACKS if options.only is None or one[0] in options.only]
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        rows, watched = run(Path(folder), wanted)
    for row in rows:
        print(f"| {' | '.join(row)} |")
    for name, value in watched.items():
        print(f"{name}: {value}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"attacks": rows, **watched, **machine()}, indent=1))
    held = watched["memory, MiB more"] <= MEMORY_MOST >> 20 and watched["/livez, slowest s"] <= LIVEZ_MOST_S
    if not held or any(row[-1] == "open" for row in rows):
        sys.exit(1)


def run(
    folder: Path, wanted: list[tuple[str, str, str, Callable[[Target], str]]]
) -> tuple[list[tuple[str, str, str, str, str]], dict[str, float]]:
    """Do the attacks one after the other. Return the table, and what the watch has seen."""
    hub = f"http://127.0.0.1:{uploads.HUB_PORT}"
    rows = []
    limits = {"QUOTA_BYTES": str(uploads.QUOTA_BYTES), "CHECK_CPU_S": "15", "REQUESTS_PER_MINUTE": "300"}
    with target(folder, HF_ENDPOINT=hub, **{f"VITFIT_{name}": value for name, value in limits.items()}) as server:
        for number, what, before, attack in wanted:
            began = time.monotonic()
            try:
                after, state = attack(server), "closed"
            except Open as reason:
                after, state = str(reason), "open"
            print(f"{number}: {what}: {state} ({time.monotonic() - began:.0f} s): {after}", flush=True)
            rows.append((number, what, before, after, state))
        watch = server.watch
    more = (watch.memory_most - watch.memory_at_start) / 2**20
    return rows, {"memory, MiB more": round(more), "/livez, slowest s": round(watch.slowest_s, 2)}


if __name__ == "__main__":
    main()
