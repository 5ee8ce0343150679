"""The largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from lorafa_prof.analytic.plan import StepPlan, plan
from lorafa_prof.search import largest
from lorafa_prof.specs import RunSpec

#: No step of a batch beyond this is looked for.
LARGEST_BATCH = 2**20


class Plans:
    """The plans of one run for any batch: a single sequence takes other copies than several, so it has its own."""

    def __init__(self, run: RunSpec) -> None:
        self.run = run
        self._single = lru_cache(maxsize=2)(lambda single: plan(run.replace(bs=1 if single else max(2, run.bs))))

    def of(self, bs: int) -> StepPlan:
        """Return the plan for a batch of `bs` sequences."""
        made: StepPlan = self._single(bs == 1)
        return made

    def allocated(self, bs: int) -> int:
        """Return the peak allocated bytes for a batch of `bs` sequences, library workspaces not counted."""
        return self.of(bs).peak(bs, self.run.seq).allocated


def largest_batch(fits: Callable[[int], bool]) -> int:
    """Return the largest batch for which `fits` holds, 0 where not even one sequence does."""
    return largest(fits, most=LARGEST_BATCH)
