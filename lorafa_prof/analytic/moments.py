"""The moments of a step that can be its peak, each with what is alive in it by part: a plan without its tensors.

`grid` keeps what decides the height of the peak. Here the peak also keeps its name and its parts, to the byte, and is
the one that `StepPlan.peak` finds: of moments that are equally high the first. Sizes are monomials in batch, sequence
length and rank (`ranks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorafa_prof.analytic.grid import shifted_coefficients
from lorafa_prof.analytic.ranks import with_rank
from lorafa_prof.analytic.sizes import CAN_VANISH, Size, rounded
from lorafa_prof.analytic.step_plan import OPTIMIZER_STEP, StepPlan
from lorafa_prof.analytic.timeline import Place
from lorafa_prof.units import ALLOCATION_GRANULE

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]

#: Rows that most others are held against first.
HIGHEST = 32
#: Rows held against all others at once, to bound the memory that this takes.
CHUNK = 512

Terms = tuple[tuple[Size, int], ...]
"""(bytes of one tensor, how many): their sum, each size rounded up to the allocator's granule, is bytes."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of the step."""

    name: str
    parts: dict[str, Terms]
    """What is alive, by category."""


def candidate_moments(plan: StepPlan) -> list[Moment]:
    """Return the moments of a plan that was traced with the sentinel rank, one of which is the peak, in their order."""
    columns = _Columns(plan)
    rows, names = _rows(plan, columns)
    kept = _undominated(rows, columns)
    return [Moment(names[i], parts) for i, parts in zip(kept, columns.parts(rows[kept]), strict=True)]


class _Columns:
    """Numbers the (category, size) pairs of a plan; sizes that need no rounding share one pair a monomial."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.pairs: list[tuple[str, Size]] = []
        self._number: dict[tuple[str, Size], int] = {}
        self._known: dict[tuple[str, Size], tuple[int, int]] = {}

    def of(self, category: str, size: Size) -> tuple[int, int]:
        """Return (column, how many of its size one tensor is)."""
        asked = category, size
        if asked not in self._known:
            self._known[asked] = self._found(category, size)
        return self._known[asked]

    def _found(self, category: str, size: Size) -> tuple[int, int]:
        coefficient, symbols = with_rank(size)
        if not symbols:
            coefficient = rounded(coefficient)
        times = 1
        if coefficient % ALLOCATION_GRANULE == 0:
            coefficient, times = ALLOCATION_GRANULE, coefficient // ALLOCATION_GRANULE
        pair = (category, (coefficient, symbols))
        number = self._number.setdefault(pair, len(self.pairs))
        if number == len(self.pairs):
            self.pairs.append(pair)
        return number, times

    def parts(self, rows: Floats) -> Iterator[dict[str, Terms]]:
        """Yield rows of counts by category."""
        order = sorted(range(len(self.pairs)), key=self.pairs.__getitem__)
        pairs = [self.pairs[number] for number in order]
        for counts in rows[:, order].astype(np.int64).tolist():
            found: dict[str, list[tuple[Size, int]]] = {}
            for (category, size), count in zip(pairs, counts, strict=True):
                if count:
                    found.setdefault(category, []).append((size, count))
            yield {category: tuple(terms) for category, terms in found.items()}


def _rows(plan: StepPlan, columns: _Columns) -> tuple[Floats, list[str]]:
    """Return the counts of the columns at every moment that could be the first of the highest, and their names."""
    timeline = plan.timeline
    held = [(*columns.of(kind.category, kind.size), count) for kind, count in plan.static]
    of_kind = [columns.of(kind.category, kind.size) for kind in timeline.kinds]
    stepping = [(*columns.of(kind.category, kind.size), count) for kind, count in plan.step_temporaries]
    kinds, change, places = (np.array(each) for each in zip(*timeline.events, strict=True))
    column, times = (np.array(each) for each in zip(*of_kind, strict=True))
    end = len(kinds) + 1
    points = np.array([0, *_tops(plan, kinds, change), end])
    # What changes between two of these points is summed at the second.
    row = np.searchsorted(points, np.arange(1, end))
    width = len(columns.pairs)
    changes = np.bincount(
        row * width + column[kinds], weights=times[kinds] * change, minlength=len(points) * width
    ).reshape(len(points), width)  # fmt: skip
    for at, tensors in ((0, held), (-1, stepping)):
        for number, each, count in tensors:
            changes[at, number] += each * count
    rows: Floats = np.cumsum(changes.astype(np.float64), axis=0)
    first: dict[bytes, int] = {}  # of moments with the same alive in them
    for i in range(len(points)):
        first.setdefault(rows[i].tobytes(), i)
    moments = [place.moment for place in timeline.places]
    names = [moments[0], *(moments[place] for place in places.tolist()), Place(OPTIMIZER_STEP, "").moment]
    return rows[[*first.values()]], [names[points[i]] for i in first.values()]


def _tops(plan: StepPlan, kinds: Numbers, change: Numbers) -> list[int]:
    """Return the numbers of the events, from 1, after which the memory can be higher than before and afterwards.

    It is a birth, and what follows is a death, the optimizer step, or the birth of what can have no size: that leaves
    the memory where it is, and the first moment of a height is the peak.
    """
    can_vanish = frozenset(CAN_VANISH)
    may_vanish = np.array([not can_vanish.isdisjoint(kind.size[1]) for kind in plan.timeline.kinds])
    followed = np.append((change[1:] < 0) | may_vanish[kinds[1:]], True)
    tops: list[int] = (np.flatnonzero((change > 0) & followed) + 1).tolist()
    return tops


def _undominated(rows: Floats, columns: _Columns) -> list[int]:
    """Return the numbers of the rows that no other one beats for every batch, sequence length and rank.

    A row beats another if it is always higher, or always as high and earlier: it has as many of every size, or its
    polynomial is at least the other's with a granule more a rounded tensor (see `grid`).
    """
    bounds = _Bounds(rows, columns)
    highest_first = np.argsort(-bounds.lower.sum(axis=1), kind="stable")
    kept = np.arange(len(rows))
    # Beating is transitive, so what the highest few beat need not be held against the others.
    for rivals in (highest_first[:HIGHEST], None):
        by = kept if rivals is None else rivals
        beaten = [bounds.beaten(part, by) for part in np.array_split(kept, -(-len(kept) // CHUNK))]
        kept = kept[~np.concatenate(beaten)]
    return [int(i) for i in kept]


class _Bounds:
    """What every row is at least and at most, as polynomials in granules."""

    def __init__(self, rows: Floats, columns: _Columns) -> None:
        sizes = list(dict.fromkeys(size for _, size in columns.pairs))
        self.total = np.zeros((len(rows), len(sizes)))
        for number, (_, size) in enumerate(columns.pairs):
            self.total[:, sizes.index(size)] += rows[:, number]
        granules = np.array([size[0] for size in sizes]) / ALLOCATION_GRANULE
        self.lower = (self.total * granules) @ shifted_coefficients(sizes)
        rounding = [i for i, (coefficient, _) in enumerate(sizes) if coefficient % ALLOCATION_GRANULE]
        self.upper = self.lower.copy()
        self.upper[:, 0] += self.total[:, rounding].sum(axis=1)  # the first monomial is the constant
        self.solid = np.array([not any(symbol in CAN_VANISH for symbol in symbols) for _, symbols in sizes])

    def beaten(self, rows: Numbers, by: Numbers) -> npt.NDArray[np.bool_]:
        """Return which of the rows are beaten by one of `by`."""
        shape = (len(rows), len(by))
        more, less, above = np.ones(shape, bool), np.zeros(shape, bool), np.ones(shape, bool)
        # Column by column: of an array of three dimensions the last would be too short for numpy to be quick.
        for total, rival, solid in zip(self.total[rows].T, self.total[by].T, self.solid, strict=True):
            more &= total[:, None] <= rival
            if solid:
                less |= total[:, None] < rival
        for upper, lower in zip(self.upper[rows].T, self.lower[by].T, strict=True):
            above &= upper[:, None] <= lower
        higher = (more & less) | (above & (self.upper[rows, :1] < self.lower[by, 0]))
        beats = (more | above) & (higher | (by < rows[:, None]))
        found: npt.NDArray[np.bool_] = np.any(beats, axis=1)
        return found
