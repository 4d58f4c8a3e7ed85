"""The space of one policy: a target shape (UP-ViTs). There is nothing to search, only a shape to check and deliver."""

from collections.abc import Sequence

from models.structure import Plan, Structure
from search.policy import Policy
from search.ranking import Array


class TargetSpace:
    """Every direction ends in the same plan; a budget that it does not meet is impossible."""

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

    def sketch(self, _policy: Policy) -> Structure:
        return self._sketch

    def plan(self, _policy: Policy) -> Plan:
        return self._plan
