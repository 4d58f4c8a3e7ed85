"""Tests of jobs whose budgets hold on a device with an agent.

One agent measures a slow device. The other agent measures a fake device on which MLPs are expensive.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latency.devices.host import ADDED
from tests.support.agents import agent, token
from tests.support.running import wait_until
from tests.support.served import served
from tests.support.small_jobs import Ran, Workshop, briefly, budget, digits

pytestmark = pytest.mark.slow
LOW = ("nice", "-n", "10", "taskset", "-c", "0")
"""The prefix of the agent's command: one core at lower priority, so that its device differs from the job's device."""


@contextmanager
def device(data: Path, folder: Path, *options: str) -> Iterator[str]:
    """Start a server that only passes on tasks, and the agent of a device. Give the name of the device."""
    with (
        served(folder, "--data", str(data), "--port", "0") as address,
        agent(address, token(data, "agent"), folder, *options, under=LOW),
    ):
        wait_until(lambda: (data / "devices" / "agent-pi-5" / "seen").exists(), "the agent")
        yield "agent-pi-5"


def test_a_job_meets_its_budget_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDED, str(tmp_path / "data" / "devices"))
    workshop = Workshop(tmp_path, *digits(tmp_path))
    with device(tmp_path / "data", tmp_path) as name:
        ran = workshop.run(budget("latency_keep", 0.7, name), trials=4)
        assert ran.result.guarantee == "measured" and ran.report["setting"].startswith("agent-pi-5, 1 thread")
        assert ran.report["ratio"]["high"] <= 0.7
        assert [path.name for path in (tmp_path / "tables").glob("agent-pi-5-*")]


def kept(ran: Ran) -> tuple[float, float]:
    """Return the kept shares of the heads' dims and of the neurons."""
    blocks = ran.report["blocks"]
    dims = [[b["heads"][i] * b["v"][i] for b in blocks] for i in (0, 1)]
    neurons = [[b["neurons"][i] for b in blocks] for i in (0, 1)]
    return sum(dims[0]) / sum(dims[1]), sum(neurons[0]) / sum(neurons[1])


def test_where_mlps_are_dear_neurons_fall_and_heads_rise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDED, str(tmp_path / "data" / "devices"))
    workshop = Workshop(tmp_path, *digits(tmp_path))
    with device(tmp_path / "data", tmp_path, "--measuring", "latency.measuring.fake_measuring") as name:
        dear = workshop.run(budget("latency_keep", 0.35, name), trials=8, method="up-vit")
    with briefly():
        plain = workshop.run(budget("macs_keep", 0.35), trials=8, method="up-vit")
    assert dear.result.guarantee == "measured"
    assert kept(dear)[0] > kept(plain)[0] and kept(dear)[1] < kept(plain)[1]
