"""Whose check may run: a queue for each person, and slots that no person can take all.

The person who has waited longest for a turn comes next. So a stranger waits for one turn of each other person at most,
however many uploads these have sent.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.core.errors import TooMany


class Turns:
    """Gives out at most `parallel` turns at a time, and at most `each` of them to one person."""

    def __init__(self, parallel: int, each: int, waiting: int = 100) -> None:
        """waiting: upper limit on the number of requests of one person that wait."""
        self._parallel, self._each, self._waiting = parallel, each, waiting
        self._running: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        """The persons who wait, in the order of their next turns."""

    @asynccontextmanager
    async def turn(self, person: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it inside the block. Raises: TooMany if too many requests of the person wait."""
        await self._wait(person)
        try:
            yield
        finally:
            self._give_back(person)

    async def _wait(self, person: str) -> None:
        queue = self._queues.setdefault(person, deque())
        if len(queue) >= self._waiting:
            raise TooMany(
                f"{len(queue)} uploads and jobs of yours wait for their check, which is the limit. Wait until some of"
                " them are answered, and try again.",
                allowed=self._waiting,
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn came in the same moment
                self._give_back(person)
            elif turn in queue:
                queue.remove(turn)
                if not queue:
                    self._queues.pop(person, None)
            raise

    def _give_back(self, person: str) -> None:
        self._running[person] -= 1
        self._running += Counter()  # forgets persons without a turn
        self._next()

    def _next(self) -> None:
        while self._running.total() < self._parallel:
            person = next((one for one in self._queues if self._running[one] < self._each), None)
            if person is None:
                return
            queue = self._queues.pop(person)
            turn = queue.popleft()
            if queue:
                self._queues[person] = queue  # behind all others
            self._running[person] += 1
            turn.set_result(None)
