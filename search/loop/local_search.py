"""Local search: moves shares of a network between its blocks and axes at an equal price.

A direction of the search cube says how much of an axis stays in the whole network, and a ranking of each layer by
itself spreads this over the blocks. The local search starts from the best policy, with a number of its own for each
share s: the q/k dims, v dims and neurons of each block, the tokens after each reduction, and the embedding width.
1. Rates. A policy with a little less of s is scored on a part of the images. The rate r_s is what the score loses, for
   each unit of the budget that this saves. In the best policy all rates are equal: if two of them differ, an exchange
   at an equal price gains.
2. Steps. All shares move at once, keep_s <- keep_s (r_s / mean rate)^step, and are then scaled by one factor until the
   policy meets the budgets again. Each step is a trial on all images. One step makes the exchanges between all pairs of
   shares at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from search.budgets import Budgets
from search.loop.decode import Price, refitted
from search.loop.executor import Executor
from search.policy import Policy
from search.spaces.space import Space

STEPS = (0.1, 0.05, 0.2, 0.15)
"""Exponents of the steps of one round. If a round gains nothing, the next one takes steps of half the size."""
NOTCHES = (0.8, 0.6, 0.4)
"""A share is multiplied by the first of these that saves something to find its rate. Counts are rounded to multiples,
so a small network may need a large one."""
MOST_RATIO = 12.0
"""The ratio of a rate to the mean rate is cut to [1 / MOST_RATIO, MOST_RATIO], because rates are noisy."""


@dataclass
class LocalSearch:
    """The local search around one policy after another.

    part: scores policies on a part of the images. tell: gets a few words about the progress.
    """

    space: Space
    price: Price
    part: Executor
    tell: Callable[[str], None] = lambda _words: None
    _known: dict[str, dict[str, float]] = field(default_factory=dict)

    def step(self, policy: Policy, number: int, *, halved: int, budgets: Budgets) -> Policy | None:
        """The policy after one step from `policy`. None if the space has no local search, or no step is possible.

        number: which of `STEPS`. halved: how often the steps were halved.
        """
        start = self.space.by_block(policy)
        if start is None:
            return None
        ratios = self._ratios(start, budgets)
        exponent = STEPS[number % len(STEPS)] / 2**halved
        moved = {name: min(1.0, keep * ratios.get(name, 1.0) ** exponent) for name, keep in start.shares.items()}
        return refitted(self.space, start.with_shares(moved), budgets, self.price)

    def _ratios(self, policy: Policy, budgets: Budgets) -> Mapping[str, float]:
        """The rate of each share that can shrink, divided by the mean rate, cut to `MOST_RATIO`."""
        key = policy.key
        if key not in self._known:
            self._known[key] = self._measured(policy, budgets)
        return self._known[key]

    def _measured(self, policy: Policy, budgets: Budgets) -> dict[str, float]:
        smaller, savings = self._smaller(policy, budgets)
        if not smaller:
            return {}
        before, *waiting = [self.part.begin(one) for one in (policy, *smaller.values())]
        score, losses = before().score.agreement, {}
        for place, (name, wait) in enumerate(zip(smaller, waiting, strict=True)):
            self.tell(f"local search: share {place + 1} of {len(smaller)}")
            losses[name] = score - wait().score.agreement
        mean = sum(losses.values()) / sum(savings.values())
        if mean <= 0:  # the part of the images says that less is better everywhere: it knows nothing
            return {}
        ratios = {name: losses[name] / savings[name] / mean for name in smaller}
        return {name: float(np.clip(ratio, 1 / MOST_RATIO, MOST_RATIO)) for name, ratio in ratios.items()}

    def _smaller(self, policy: Policy, budgets: Budgets) -> tuple[dict[str, Policy], dict[str, float]]:
        """For each share, the policy with less of it and what this saves, as a share of the fullest budget.

        Shares that cannot shrink, or that save nothing, are missing.
        """
        shares = policy.shares
        tried = [(name, notch) for name in shares for notch in NOTCHES]
        policies = [
            self.space.by_block(policy.with_shares({**shares, name: notch * shares[name]})) for name, notch in tried
        ]
        costs = self.price([self.space.sketch(one) for one in (policy, *policies) if one is not None])
        used = costs / np.array([budget.limit for budget in budgets.items])
        saved = (used[0] - used[1:])[:, int(used[0].argmax())]
        smaller: dict[str, Policy] = {}
        savings: dict[str, float] = {}
        for (name, _), one, saving in zip(tried, policies, saved.tolist(), strict=True):
            if name not in smaller and one is not None and saving > 0:
                smaller[name], savings[name] = one, saving
        return smaller, savings
