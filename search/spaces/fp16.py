"""Any space in fp16. A device with fp16 runs every network faster in it, so the search has nothing to decide."""

import dataclasses
from collections.abc import Sequence

from models.structure import Plan, Structure
from search.policy import Policy
from search.ranking import Array
from search.spaces.space import Space


class HalfSpace:
    """The space `inner`, with every network in fp16."""

    def __init__(self, inner: Space) -> None:
        self.structure, self.inner = inner.structure, inner

    @property
    def dimensions(self) -> list[str]:
        return self.inner.dimensions

    def along(self, direction: Sequence[float], t: float) -> Policy:
        return self.inner.along(direction, t)

    def canonical(self, points: Array) -> Array:
        return self.inner.canonical(points)

    def starts(self) -> list[list[float]]:
        return self.inner.starts()

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        return self.inner.fuller(policy, steps)

    def by_block(self, policy: Policy) -> Policy | None:
        return self.inner.by_block(policy)

    def sketch(self, policy: Policy) -> Structure:
        return self.inner.sketch(policy).in_precision("fp16")

    def plan(self, policy: Policy) -> Plan:
        return dataclasses.replace(self.inner.plan(policy), precision="fp16")
