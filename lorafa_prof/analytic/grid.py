"""A plan over arrays of batch sizes and sequence lengths at once.

Live memory after an event is a sum of sizes, each a monomial rounded up to the allocator's granule. Most events can
never be the peak, because another one has at least as much of everything alive; what remains is a handful of candidate
moments, and the peak of a million configurations is the maximum of one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorafa_prof.analytic.sizes import CAN_VANISH, Size, product_of, symbol_values
from lorafa_prof.errors import BadInputError
from lorafa_prof.units import ALLOCATION_GRANULE

if TYPE_CHECKING:
    from lorafa_prof.analytic.step_plan import StepPlan

Floats = npt.NDArray[np.float64]

#: Configurations evaluated together: few enough that the working set stays in a core's cache.
CHUNK = 8192
#: Granules up to which float64 holds every integer.
EXACT = 2.0**53


class Grid:
    """The candidate peaks of one plan, ready to be evaluated.

    Everything is counted in granules of 512 B, so that float64 is exact far beyond any memory there is.
    """

    def __init__(self, plan: StepPlan) -> None:
        self._static = plan.static_bytes // ALLOCATION_GRANULE
        candidates = Candidates(plan)
        rows, sizes = _merged(candidates.rows, candidates.sizes)
        kept = _undominated(rows, sizes)
        self.rows = rows[kept]
        self.sizes = sizes
        self.positions = [candidates.positions[i] for i in kept]
        """Position in the plan's events of each row's moment, rising."""

    def peak_allocated(self, bs: npt.ArrayLike, seq: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the peak in bytes for each (bs, seq), broadcast together.

        Raises:
            BadInputError: sizes below 1, or so large that the result would not be exact.
        """
        b, s = np.broadcast_arrays(np.asarray(bs, dtype=np.float64), np.asarray(seq, dtype=np.float64))
        if b.size and (b.min() < 1 or s.min() < 1):
            raise BadInputError("batch sizes and sequence lengths must be at least 1")
        flat_b, flat_s = b.ravel(), s.ravel()
        out = np.empty(flat_b.size, dtype=np.int64)
        for start in range(0, flat_b.size, CHUNK):
            part = slice(start, start + CHUNK)
            out[part] = self._peak(symbol_values(flat_b[part], flat_s[part]))
        return (out * ALLOCATION_GRANULE).reshape(b.shape)

    def _peak(self, values: Mapping[str, Floats]) -> npt.NDArray[np.int64]:
        peak = (self.rows @ granules(self.sizes, values)).max(axis=0) + self._static
        if peak.size and peak.max() >= EXACT:
            raise BadInputError("batch and sequence length are too large for any memory")
        granules_needed: npt.NDArray[np.int64] = peak.astype(np.int64)
        return granules_needed


def granules(sizes: Sequence[Size], values: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return the granules that each size takes for each configuration: (sizes, configurations).

    Floats for symbols that are arrays of float64, exact below 2^53 bytes; Python's integers for arrays of objects.
    """
    products = {symbols: product_of(symbols, values) for symbols in {size[1] for size in sizes}}
    number = values["b"]
    found = np.empty((len(sizes), number.size), dtype=number.dtype)
    for i, (coefficient, symbols) in enumerate(sizes):
        if number.dtype == object:
            found[i] = -(-coefficient * products[symbols] // ALLOCATION_GRANULE)
            continue
        np.multiply(products[symbols], coefficient / ALLOCATION_GRANULE, out=found[i])
        if coefficient % ALLOCATION_GRANULE:
            np.ceil(found[i], out=found[i])
    return found


def totals(counts: Floats, found: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the granules of each row of counts, (rows, configurations), from those of the sizes."""
    weights = counts.astype(np.int64).astype(object) if found.dtype == object else counts
    total: npt.NDArray[Any] = weights @ found
    return total


class Candidates:
    """The moments that can be the peak, each with how many of each size are alive in it."""

    def __init__(self, plan: StepPlan) -> None:
        kinds = [kind.size for kind in plan.timeline.kinds]
        stepping = plan.step_temporaries
        self.sizes: list[Size] = list(dict.fromkeys([*kinds, *(temporary.size for temporary, _ in stepping)]))
        self._live = np.zeros(len(self.sizes))
        self._rows: list[Floats] = []
        self._positions: list[int] = []
        self._walk(plan, [self.sizes.index(size) for size in kinds])
        for temporary, count in stepping:
            self._live[self.sizes.index(temporary.size)] += count
        self._note(len(plan.timeline.events))
        # of moments with the same alive in them the first
        first = np.sort(np.unique(np.array(self._rows), axis=0, return_index=True)[1])
        self.rows: Floats = np.array(self._rows)[first]
        self.positions = [self._positions[i] for i in first]

    def _walk(self, plan: StepPlan, column: Sequence[int]) -> None:
        """Note the moments after which something dies, or something is born that may have no bytes."""
        may_vanish = [any(symbol in CAN_VANISH for symbol in kind.size[1]) for kind in plan.timeline.kinds]
        self._note(-1)
        rising = False
        for position, (kind, change, _) in enumerate(plan.timeline.events):
            if rising and (change < 0 or may_vanish[kind]):
                self._note(position - 1)
            rising = change > 0
            self._live[column[kind]] += change
        self._note(len(plan.timeline.events) - 1)

    def _note(self, position: int) -> None:
        self._rows.append(self._live.copy())
        self._positions.append(position)


def _merged(rows: Floats, sizes: list[Size]) -> tuple[Floats, list[Size]]:
    """Merge the sizes that need no rounding into one a monomial: they add up before they are evaluated."""
    columns: dict[Size, Floats] = {}
    for i, (coefficient, symbols) in enumerate(sizes):
        if coefficient % ALLOCATION_GRANULE:
            columns[coefficient, symbols] = rows[:, i]
        else:
            whole = (ALLOCATION_GRANULE, symbols)
            added = rows[:, i] * (coefficient // ALLOCATION_GRANULE)
            columns[whole] = columns[whole] + added if whole in columns else added
    return np.stack(list(columns.values()), axis=1), list(columns)


def _undominated(rows: Floats, sizes: list[Size]) -> list[int]:
    """Return the rows that no other row takes the place of, for all batch sizes and sequence lengths, in their order.

    Rounding adds less than a granule a storage, so row A is bounded by row B where A's polynomial plus one granule a
    rounded storage is at most B's polynomial. That holds for all symbols from 1 up where B - A, written in the symbols
    less one, has no negative coefficient. The symbols that can be 0 stay as they are. Of two rows that can be equal the
    earlier stays, for the first moment of the largest memory is the peak: a later one has to be larger everywhere.
    """
    lower = (rows * (np.array([size[0] for size in sizes]) / ALLOCATION_GRANULE)) @ shifted_coefficients(sizes)
    rounding = [i for i, (coefficient, _) in enumerate(sizes) if coefficient % ALLOCATION_GRANULE]
    upper = lower.copy()
    upper[:, 0] += rows[:, rounding].sum(axis=1)  # the first monomial is the constant
    there = [i for i, (_, symbols) in enumerate(sizes) if not any(symbol in CAN_VANISH for symbol in symbols)]
    kept: list[int] = []
    for i in np.argsort(-lower.sum(axis=1), kind="stable"):
        bounds, live, earlier = lower[kept], rows[kept], np.array(kept, dtype=np.int64) < i
        by_size = (upper[i] <= bounds).all(axis=1) & (earlier | (upper[i, 0] < bounds[:, 0]))
        by_count = (rows[i] <= live).all(axis=1) & (earlier | (rows[i, there] < live[:, there]).any(axis=1))
        if not (by_size | by_count).any():
            kept.append(int(i))
    return sorted(kept)


def shifted_coefficients(sizes: list[Size]) -> Floats:
    """Return a row for each size: its product of symbols with each written as one plus the rest.

    (1+x)(1+y) = 1 + x + y + xy. The columns are the monomials that turn up, the constant first.
    """
    found = {"", *(monomial for _, symbols in sizes for monomial in _expanded(symbols))}
    column = {name: i for i, name in enumerate(sorted(found, key=lambda monomial: (len(monomial), monomial)))}
    coefficients = np.zeros((len(sizes), len(column)))
    for row, (_, symbols) in zip(coefficients, sizes, strict=True):
        for monomial in _expanded(symbols):
            row[column[monomial]] += 1
    return coefficients


def _expanded(symbols: str) -> Iterator[str]:
    """Yield the shifted monomials of a product of symbols, each as often as it comes up."""
    fixed = [symbol for symbol in symbols if symbol in CAN_VANISH]
    shifted = [symbol for symbol in symbols if symbol not in CAN_VANISH]
    for n in range(len(shifted) + 1):
        yield from ("".join(sorted([*fixed, *part])) for part in combinations(shifted, n))
