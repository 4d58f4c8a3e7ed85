"""A space with a single policy: a target shape (UP-ViTs). It is not searched, only checked and delivered."""

from collections.abc import Sequence

from models.structure import Plan, Structure
from search.policy import Policy
from search.ranking import Array


class TargetSpace:
    """Every direction ends in the same plan. A budget that this plan does not meet is impossible."""

    def __init__(self, structure: Structure, plan: Plan) -> None:
        self.structure = structure
        self._plan, self._sketch = plan, plan.apply_to(structure)

    @property
    def dimensions(self) -> list[str]:
        return []

    def along(self, _direction: Sequence[float], _t: float) -> Policy:
        return Policy()

    def canonical(self, points: Array) -> Array:
        return points

    def starts(self) -> list[list[float]]:
        return [[]]

    def fuller(self, policy: Policy, _steps: int) -> list[Policy]:
        return [policy]

    def by_block(self, policy: Policy) -> Policy | None:
        return None

    def sketch(self, _policy: Policy) -> Structure:
        return self._sketch

    def plan(self, _policy: Policy) -> Plan:
        return self._plan
