"""Decode a direction (a point of the search cube) to the largest policy within the budgets, by predicted costs alone.

Latency is not monotone in the keep ratios (vector widths, cache sizes), so nothing here bisects. Policies along the
direction are priced in one batch, and the first one that meets all budgets is taken. Then neurons, the finest axis, use
up what is left of the budgets.
"""

from collections.abc import Callable, Sequence

import numpy as np

from models.structure import Structure
from search.budgets import Budgets
from search.policy import Policy
from search.ranking import Array
from search.spaces.space import Space

Price = Callable[[Sequence[Structure]], Array]
"""Costs (S, B) of S structures under B budgets, each in its budget's unit. No structure is built for this."""

GRID, REFINE, FILL = 48, 8, 12
END = 2.0
SCALES = np.linspace(1.25, 0.5, 151)


def decode(space: Space, direction: Sequence[float], budgets: Budgets, price: Price) -> Policy:
    """The largest policy along the direction that meets all budgets.

    Raises: ImpossibleBudget, which names the best reachable value, when even the end of the direction exceeds a budget.
    """
    steps = np.linspace(0, END, GRID + 1)
    first = _first_within(space, direction, budgets, price, steps=steps)
    if first is None:
        best = price([space.sketch(space.along(direction, END))])[0]
        raise budgets.impossible([float(cost) for cost in best])
    if first == 0:
        return space.along(direction, 0)
    finer = np.linspace(steps[first - 1], steps[first], REFINE + 1)[1:]
    place = _first_within(space, direction, budgets, price, steps=finer)
    assert place is not None
    return _filled(space, space.along(direction, finer[place]), budgets, price)


def refitted(space: Space, policy: Policy, budgets: Budgets, price: Price) -> Policy | None:
    """A policy with numbers for each block, with all its shares scaled by one factor: the largest that meets all
    budgets. None if no factor in `SCALES` is small enough."""
    scaled = [_scaled(space, policy, float(factor)) for factor in SCALES]
    costs = price([space.sketch(one) for one in scaled])
    within = (one for one, row in zip(scaled, costs, strict=True) if budgets.met([float(cost) for cost in row]))
    found = next(within, None)
    return None if found is None else _filled(space, found, budgets, price)


def _scaled(space: Space, policy: Policy, factor: float) -> Policy:
    shares = {name: min(1.0, factor * keep) for name, keep in policy.shares.items()}
    found = space.by_block(policy.with_shares(shares))
    assert found is not None
    return found


def _first_within(
    space: Space, direction: Sequence[float], budgets: Budgets, price: Price, *, steps: Array
) -> int | None:
    """Index of the first step whose policy is within the budgets; it is the largest, because policies shrink along the
    steps. None if there is no such step."""
    costs = price([space.sketch(space.along(direction, t)) for t in steps])
    within = [budgets.met([float(cost) for cost in row]) for row in costs]
    return within.index(True) if any(within) else None


def _filled(space: Space, policy: Policy, budgets: Budgets, price: Price) -> Policy:
    """Enlarge the policy along the finest axis within the budgets: the coarse steps of the other axes leave room."""
    fuller = space.fuller(policy, FILL)
    if len(fuller) == 1:
        return policy
    costs = price([space.sketch(candidate) for candidate in fuller])
    within = [c for c, row in zip(fuller, costs, strict=True) if budgets.met([float(cost) for cost in row])]
    return within[-1] if within else policy
