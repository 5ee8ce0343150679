"""The rank of the adapters as a symbol: one traced plan for every rank.

A plan is traced with numbers, the rank's among them. Traced with a rank that is a prime which divides no other size of
the model, the plan shows where the rank is: a size whose coefficient is c * prime**k is c * r**k for every rank r. That
the plans of two ranks differ in nothing else is checked where it is used (`same_step`).
"""

from __future__ import annotations

from lorafa_prof.analytic.sizes import SENTINEL, WITNESS, Size
from lorafa_prof.analytic.step_plan import StepPlan

__all__ = ["RANK", "SENTINEL", "WITNESS", "same_step", "with_rank"]

#: The symbol of the rank, beside those of `sizes.SYMBOLS`.
RANK = "r"


def with_rank(size: Size, rank: int = SENTINEL) -> Size:
    """Return a size that was traced with a sentinel rank as a monomial in the rank: (c * rank, "bs") as (c, "brs")."""
    coefficient, symbols = size
    while coefficient and coefficient % rank == 0:
        coefficient, symbols = coefficient // rank, symbols + RANK
    return coefficient, "".join(sorted(symbols))


def same_step(one: StepPlan, other: StepPlan, ranks: tuple[int, int] = (SENTINEL, WITNESS)) -> bool:
    """Return whether two plans, traced with two ranks, are one plan with the rank as a symbol."""
    first, second = (_symbolic(plan, rank) for plan, rank in zip((one, other), ranks, strict=True))
    return first == second


def _symbolic(plan: StepPlan, rank: int) -> tuple[object, ...]:
    kinds = [(kind.module, kind.name, kind.category, with_rank(kind.size, rank)) for kind in plan.timeline.kinds]
    held = [
        [(kind.name, kind.category, with_rank(kind.size, rank), count) for kind, count in tensors]
        for tensors in (plan.static, plan.step_temporaries)
    ]
    return kinds, held, plan.timeline.events, plan.timeline.places
