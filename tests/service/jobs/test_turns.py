"""Tests of the turns of checks: who is next, and who may wait."""

import asyncio
from collections.abc import Callable

import pytest

from service.core.errors import TooMany
from service.jobs.turns import Turns

Release = Callable[[str], None]


class Bench:
    """Requests that stay in their turn until the test ends them."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.running = turns, list[str]()
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """Begin requests. The person is the name without its last letter."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._request(name))
        await settle()

    async def _request(self, name: str) -> None:
        async with self.turns.turn(name[:-1]):
            self.running.append(name)
            await self._ends[name].wait()
            self.running.remove(name)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_person_takes_all_turns() -> None:
    async def story() -> None:
        bench = Bench(Turns(parallel=3, each=2))
        await bench.ask("ann1", "ann2", "ann3", "ann4")
        assert bench.running == ["ann1", "ann2"]
        await bench.ask("bob1")
        assert bench.running == ["ann1", "ann2", "bob1"]
        await bench.end("bob1")
        assert bench.running == ["ann1", "ann2"], "a turn stays free for others"
        await bench.end("ann1")
        assert bench.running == ["ann2", "ann3"]

    asyncio.run(story())


def test_a_stranger_waits_for_one_turn_of_each_other_person() -> None:
    async def story() -> None:
        bench = Bench(Turns(parallel=1, each=1))
        await bench.ask("ann1", "ann2", "ann3", "bob1", "bob2", "eve1")
        order = []
        for _ in range(6):
            (running,) = bench.running
            order.append(running)
            await bench.end(running)
        assert order == ["ann1", "ann2", "bob1", "eve1", "ann3", "bob2"]

    asyncio.run(story())


def test_a_request_that_is_given_up_leaves_its_place() -> None:
    async def story() -> None:
        bench = Bench(Turns(parallel=1, each=1))
        await bench.ask("ann1", "bob1", "eve1")
        await bench.cancel("bob1")
        await bench.cancel("ann1")
        assert bench.tasks["ann1"].cancelled() and bench.running[-1] == "eve1"
        await bench.end("eve1")
        await bench.ask("bob2")
        assert bench.running[-1] == "bob2"

    asyncio.run(story())


def test_a_turn_that_comes_while_its_request_is_given_up_goes_to_the_next() -> None:
    async def story() -> None:
        bench = Bench(Turns(parallel=1, each=1))
        await bench.ask("ann1", "bob1", "eve1")
        bench._ends["ann1"].set()
        await asyncio.sleep(0)  # ann's turn ends, and bob's begins; bob does not know it yet
        bench.tasks["bob1"].cancel()
        await settle()
        assert bench.running == ["eve1"]

    asyncio.run(story())


def test_too_many_waiting_requests_of_a_person_are_refused() -> None:
    async def story() -> None:
        bench = Bench(Turns(parallel=1, each=1, waiting=2))
        await bench.ask("ann1", "ann2", "ann3", "ann4")
        with pytest.raises(TooMany, match="2 uploads and jobs of yours wait"):
            await bench.tasks["ann4"]
        await bench.ask("bob1")
        assert not bench.tasks["bob1"].done()
        await bench.cancel("ann2")

    asyncio.run(story())
