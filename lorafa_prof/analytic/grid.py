"""A plan over arrays of batch sizes and sequence lengths at once.

Live memory after an event is a sum of sizes, each a monomial rounded up to the allocator's granule. Most events can
never be the peak, because another one has at least as much of everything alive; what remains is a handful of candidate
moments, and the peak of a million configurations is the maximum of one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lorafa_prof.analytic.sizes import CAN_VANISH, Size, product_of, symbol_values
from lorafa_prof.errors import BadInputError
from lorafa_prof.units import ALLOCATION_GRANULE

if TYPE_CHECKING:
    from lorafa_prof.analytic.plan import StepPlan

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
        rows, sizes = _candidates(plan)
        rows, sizes = _merged(rows, sizes)
        self.rows = _undominated(rows, sizes)
        self.sizes = sizes

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
            out[part] = self._evaluate(flat_b[part], flat_s[part])
        return (out * ALLOCATION_GRANULE).reshape(b.shape)

    def _evaluate(self, bs: Floats, seq: Floats) -> npt.NDArray[np.int64]:
        values = symbol_values(bs, seq)
        products = {symbols: product_of(symbols, values) for symbols in {size[1] for size in self.sizes}}
        granules = np.empty((len(self.sizes), bs.size))
        for i, (coefficient, symbols) in enumerate(self.sizes):
            np.multiply(products[symbols], coefficient / ALLOCATION_GRANULE, out=granules[i])
            if coefficient % ALLOCATION_GRANULE:
                np.ceil(granules[i], out=granules[i])
        peak = (self.rows @ granules).max(axis=0) + self._static
        if peak.size and peak.max() >= EXACT:
            raise BadInputError("batch and sequence length are too large for any memory")
        granules_needed: npt.NDArray[np.int64] = peak.astype(np.int64)
        return granules_needed


def _candidates(plan: StepPlan) -> tuple[Floats, list[Size]]:
    """Return how many of each size are alive at every moment after which something dies, and the sizes."""
    kinds = [kind.size for kind in plan.timeline.kinds]
    stepping = plan.step_temporaries
    sizes = list(dict.fromkeys([*kinds, *(temporary.size for temporary, _ in stepping)]))
    column = {size: i for i, size in enumerate(sizes)}
    live = np.zeros(len(sizes))
    rows = [live.copy()]
    rising = False
    for kind, change, _ in plan.timeline.events:
        if change < 0 and rising:
            rows.append(live.copy())
        rising = change > 0
        live[column[kinds[kind]]] += change
    rows.append(live.copy())
    for temporary, count in stepping:
        live[column[temporary.size]] += count
    rows.append(live)
    return np.unique(np.array(rows), axis=0), sizes


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


def _undominated(rows: Floats, sizes: list[Size]) -> Floats:
    """Drop every row that another row bounds from above for all batch sizes and sequence lengths.

    Rounding adds less than a granule a storage, so row A is bounded by row B where A's polynomial plus one granule a
    rounded storage is at most B's polynomial. That holds for all symbols from 1 up where B - A, written in the symbols
    less one, has no negative coefficient. The symbols that can be 0 stay as they are.
    """
    lower = (rows * (np.array([size[0] for size in sizes]) / ALLOCATION_GRANULE)) @ shifted_coefficients(sizes)
    rounding = [i for i, (coefficient, _) in enumerate(sizes) if coefficient % ALLOCATION_GRANULE]
    upper = lower.copy()
    upper[:, 0] += rows[:, rounding].sum(axis=1)  # the first monomial is the constant
    kept: list[int] = []
    for i in np.argsort(-lower.sum(axis=1), kind="stable"):
        bounds, live = lower[kept], rows[kept]
        if not (upper[i] <= bounds).all(axis=1).any() and not (rows[i] <= live).all(axis=1).any():
            kept.append(int(i))
    return rows[kept]


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
