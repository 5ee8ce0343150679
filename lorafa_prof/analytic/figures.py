"""All figures that `predict` has of a run's memory and arithmetic, for arrays of batch sizes and sequence lengths.

A plan gives the candidate moments of the peak (see `grid`). Which of them it is decides what is alive, and so the
parts, each of which is a sum of sizes again. Equal to what `predict` says of each configuration, to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lorafa_prof.analytic.engine import NEEDED_FLOPS, communicated, refuse_unmodelled
from lorafa_prof.analytic.families.common import reaches_window
from lorafa_prof.analytic.grid import Candidates, Grid, granules, totals
from lorafa_prof.analytic.plan import ParameterCount, StepPlan, plan
from lorafa_prof.analytic.sizes import CAN_VANISH, Size, product_of, rounded, symbol_values
from lorafa_prof.results import PART_FIELDS
from lorafa_prof.specs import LARGEST_BATCH, RunSpec
from lorafa_prof.units import ALLOCATION_GRANULE

Numbers = npt.NDArray[Any]
"""Integers of 64 bits, or Python's own (dtype object) where those could overflow."""
Polynomial = Mapping[str, int]
"""Coefficients by the product of symbols that each belongs to."""

#: Below so many bytes float64 holds every size exactly, as a number of granules with its fraction.
EXACT_BYTES = 2**53
LARGEST_INT64 = 2**63 - 1
#: Configurations for which it pays to sort out beforehand which moments can never be the peak.
MANY = 2000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of some configurations, one array a figure, without library workspaces: those are the device's."""

    peak_allocated: Numbers
    """Bytes at the peak."""
    parts: Mapping[str, Numbers]
    """Bytes of each part at the peak, by field of `Memory`; they add up to `peak_allocated`."""
    moments: Sequence[str]
    """Moments of peaks, in words."""
    moment: npt.NDArray[np.int64]
    """Which of them is each configuration's."""
    saved_activations: Numbers
    """Bytes that autograd keeps at the end of the forward, unrounded."""
    model_flops: Numbers
    executed_flops: Numbers


class RunFigures:
    """The figures of one run at any batch size and sequence length; what the run itself says of these does not matter.

    Raises:
        UnsupportedError: what the engine does not model.
        ContradictionError: options that the method cannot take.
    """

    def __init__(self, run: RunSpec) -> None:
        refuse_unmodelled(run)
        self._run = run
        self._plans: dict[tuple[bool, bool], PlanFigures] = {}

    def groups(self, bs: Numbers, seq: Numbers) -> list[npt.NDArray[np.intp]]:
        """Return where the configurations of each plan are: one sequence is another step than several, and so is a
        sequence that reaches the sliding window.
        """
        number = (bs == 1) * 2 + np.broadcast_to(reaches_window(self._run.spec, seq), seq.shape)
        return [np.nonzero(number == each)[0] for each in np.unique(number)]

    def at(self, bs: Numbers, seq: Numbers) -> Figures:
        """Return the figures of configurations that are of one group.

        Raises:
            UnsupportedError: an architecture, method or option that is not modelled.
        """
        return self._plan(int(bs[0]), int(seq[0])).at(bs, seq)

    def parameters(self, bs: int, seq: int) -> ParameterCount:
        """Return how many parameters there are; the same for all."""
        return self._plan(bs, seq).plan.parameters

    def communicated(self, bs: int, seq: int) -> int | None:
        """Return the bytes that each of several GPUs sends in a step; the same for all configurations."""
        sent = communicated(self._plan(bs, seq).plan)
        return None if sent is None else sum(sent.values())

    def allocated(self, bs: Numbers, seq: Numbers) -> Numbers:
        """Return the peak allocated bytes, library workspaces not counted, of configurations of any group."""
        peaks = np.empty(bs.size, dtype=object)
        for where in self.groups(bs, seq):
            plan = self._plan(int(bs[where[0]]), int(seq[where[0]]))
            peaks[where] = plan.allocated(bs[where], seq[where])
        return peaks

    def largest_batches(self, seq: Numbers, limit: int) -> Numbers:
        """Return the largest batch of each sequence length whose peak stays within `limit` bytes, 0 where none does.

        As `frontier.largest_within` finds it: one sequence is a step of its own, from two on memory rises with them.
        """
        lengths, back = np.unique(seq, return_inverse=True)

        def fits(bs: Numbers, where: Numbers) -> npt.NDArray[np.bool_]:
            return np.asarray(self.allocated(bs, lengths[where]) <= limit, dtype=bool)

        best = np.zeros(lengths.size, dtype=np.int64)
        rising = np.arange(lengths.size)
        for batch in [2**power for power in range(1, LARGEST_BATCH.bit_length())]:
            rising = rising[fits(np.full(rising.size, batch), rising)]
            if not rising.size:
                break
            best[rising] = batch
        between = np.nonzero((best > 1) & (best < LARGEST_BATCH))[0]
        for power in range(int(best.max()).bit_length() - 2, -1, -1):
            tried = between[best[between] >= 2 ** (power + 1)]
            more = tried[fits(best[tried] + 2**power, tried)]
            best[more] += 2**power
        single = np.nonzero(best == 0)[0]
        best[single[fits(np.ones(single.size, dtype=np.int64), single)]] = 1
        return best[back]

    def _plan(self, bs: int, seq: int) -> PlanFigures:
        key = (bs == 1, bool(reaches_window(self._run.spec, seq)))
        if key not in self._plans:
            self._plans[key] = PlanFigures(plan(self._run.replace(bs=bs, seq=seq)))
        return self._plans[key]


class PlanFigures:
    """The figures of one plan."""

    def __init__(self, of: StepPlan) -> None:
        self.plan = of
        kinds = [*of.timeline.kinds, *(kind for kind, _ in of.step_temporaries)]
        self._column = {size: i for i, size in enumerate(dict.fromkeys(kind.size for kind in kinds))}
        self._alive: dict[int, _Alive] = {}

    def at(self, bs: Numbers, seq: Numbers) -> Figures:
        """Return the figures for arrays of batch sizes and sequence lengths."""
        values = self._values(bs, seq)
        positions = self._positions(values)
        found = granules(list(self._column), values)
        parts = np.empty((len(PART_FIELDS), bs.size), dtype=found.dtype)
        distinct, moment = np.unique(positions, return_inverse=True)
        alive = [self._alive_at(int(position)) for position in distinct]
        for number, one in enumerate(alive):
            here = np.nonzero(moment == number)[0]
            parts[:, here] = one.static[:, None] + totals(one.counts, found[:, here])
        whole = (parts * ALLOCATION_GRANULE).astype(np.int64 if parts.dtype == np.float64 else object)
        saved, model, executed = (evaluated(polynomial, bs, seq) for polynomial in (self._saved, *self._flops))
        return Figures(
            peak_allocated=whole.sum(axis=0), parts=dict(zip(PART_FIELDS, whole, strict=True)),
            moments=[one.moment for one in alive], moment=moment, saved_activations=saved, model_flops=model,
            executed_flops=executed,
        )  # fmt: skip

    def allocated(self, bs: Numbers, seq: Numbers) -> Numbers:
        """Return the peak allocated bytes for arrays of batch sizes and sequence lengths."""
        values = self._values(bs, seq)
        live = totals(self._candidates.rows, granules(self._candidates.sizes, values))
        peaks: Numbers = live.max(axis=0).astype(object) * ALLOCATION_GRANULE + self.plan.static_bytes
        return peaks

    # -- which moment is the peak ---------------------------------------------------------------------------------

    @cached_property
    def _candidates(self) -> Candidates:
        return Candidates(self.plan)

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.plan)

    def _values(self, bs: Numbers, seq: Numbers) -> Mapping[str, Any]:
        """Return the values of the symbols, as floats if all that can be alive is exact in them."""
        highest = self._candidates.rows.max(axis=0)
        most = {symbols: 0 for _, symbols in self._candidates.sizes}
        for count, (coefficient, symbols) in zip(highest, self._candidates.sizes, strict=True):
            most[symbols] += int(count) * (coefficient + ALLOCATION_GRANULE)
        bound = self.plan.static_bytes + _bound(most, bs, seq)
        dtype: Any = np.float64 if bound < EXACT_BYTES else object
        return symbol_values(bs.astype(dtype), seq.astype(dtype))

    def _positions(self, values: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """Return the position in the plan's events of each configuration's peak."""
        moments: Candidates | Grid = self._candidates
        if values["b"].size >= MANY or "_grid" in self.__dict__:
            moments = self._grid
        live = totals(moments.rows, granules(moments.sizes, values))
        highest: npt.NDArray[np.int64] = np.array(moments.positions)[live.argmax(axis=0)]  # the first of the largest
        return highest

    # -- what is alive in it --------------------------------------------------------------------------------------

    def _alive_at(self, position: int) -> _Alive:
        if position not in self._alive:
            static = np.zeros(len(PART_FIELDS), dtype=np.int64)
            counts = np.zeros((len(PART_FIELDS), len(self._column)))
            for kind, count in self.plan.alive(position):
                number = _PART_OF[kind.category]
                if kind.size[1]:
                    counts[number, self._column[kind.size]] += count
                else:
                    static[number] += rounded(kind.size[0]) * count // ALLOCATION_GRANULE
            self._alive[position] = _Alive(self.plan.place_at(position).moment, static, counts)
        return self._alive[position]

    @cached_property
    def _saved(self) -> Polynomial:
        return _summed((kind.size, count) for kind, count in self.plan.saved())

    @cached_property
    def _flops(self) -> tuple[Polynomial, Polynomial]:
        """Operations that the method needs, and all that run."""
        flops = self.plan.flops_by_size
        needed = ((size, 1) for where, kind, size in flops if (where, kind) in NEEDED_FLOPS)
        return _summed(needed), _summed((size, 1) for _, _, size in flops)


@dataclass(frozen=True)
class _Alive:
    """What is alive at one moment, by part."""

    moment: str
    static: npt.NDArray[np.int64]
    """Granules whatever the batch: (parts,)."""
    counts: npt.NDArray[np.float64]
    """How many of each size: (parts, sizes)."""


_PART_OF = {category.value: number for number, category in enumerate(PART_FIELDS.values())}


def _summed(sizes: Iterable[tuple[Size, int]]) -> Polynomial:
    polynomial: dict[str, int] = {}
    for (coefficient, symbols), count in sizes:
        polynomial[symbols] = polynomial.get(symbols, 0) + coefficient * count
    return polynomial


def _bound(polynomial: Polynomial, bs: Numbers, seq: Numbers) -> int:
    """Return what a polynomial does not exceed for any of the configurations."""
    values = symbol_values(int(bs.max()), int(seq.max()))
    values.update(dict.fromkeys(CAN_VANISH, values["F"]))
    return sum(coefficient * int(product_of(symbols, values)) for symbols, coefficient in polynomial.items())


def evaluated(polynomial: Polynomial, bs: Numbers, seq: Numbers) -> Numbers:
    """Return the polynomial's values for integers: exact, with Python's integers where 64 bits could overflow."""
    dtype: Any = np.int64 if _bound(polynomial, bs, seq) <= LARGEST_INT64 else object
    values = symbol_values(bs.astype(dtype), seq.astype(dtype))
    total = np.zeros(bs.shape, dtype=dtype)
    for symbols, coefficient in polynomial.items():
        total = total + coefficient * product_of(symbols, values)
    return total
