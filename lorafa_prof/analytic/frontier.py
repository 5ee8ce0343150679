"""Where a run stops fitting, by closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafa_prof.analytic.plan import Peak, StepPlan, plan, regime, traced_alike
from lorafa_prof.results import Axis, along
from lorafa_prof.search import last_within
from lorafa_prof.specs import RunSpec

#: Kernels pad sequences to this; whether they have to decides over a copy.
PADDED_TO = 16


class Plans:
    """The plans of runs, each made once: runs that differ in batch and length alone share theirs, within a regime.

    Runs that differ in the optimizer share forward and backward.
    """

    def __init__(self) -> None:
        self._plans: dict[_Key, StepPlan] = {}
        self._peaks: dict[_Key, Peak] = {}
        self._allocated: dict[_Key, int] = {}

    def of(self, run: RunSpec) -> StepPlan:
        """Return the plan of a run.

        Raises:
            UnsupportedError: an architecture, method or option that this engine does not model.
        """
        standing = regime(run)
        key = _key(standing)
        if key not in self._plans:
            first = traced_alike(standing)
            self._plans[key] = plan(standing) if first == standing else self.of(first).stepping_as(standing)
        return self._plans[key]

    def peak(self, run: RunSpec) -> Peak:
        """Return the peak of a run, library workspaces not counted."""
        key = _key(run)
        if key not in self._peaks:
            self._peaks[key] = self.of(run).peak(run.bs, run.seq)
        return self._peaks[key]

    def allocated(self, run: RunSpec) -> int:
        """Return the bytes of a run's peak, library workspaces not counted."""
        key = _key(run)
        if key not in self._allocated:
            self._allocated[key] = self.of(run).allocated(run.bs, run.seq)
        return self._allocated[key]


_Key = tuple[RunSpec, int]


def _key(run: RunSpec) -> _Key:
    """Return what two runs have in common that have one plan; a model's configuration is no part of its equality."""
    return run, id(run.model.config)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Values of an axis along which memory never falls: the first, how many, and how far apart or which are skipped."""

    first: int
    last: int
    padded: bool | None = None
    """Of sequence lengths: those that kernels pad (True), or take as they are (False). None: all values."""

    def __len__(self) -> int:
        return self._up_to(self.last) - self._up_to(self.first - 1)

    def __getitem__(self, index: int) -> int:
        """Return the value with `index` others of the stretch before it."""
        number = self._up_to(self.first - 1) + index + 1
        if self.padded is None:
            return number
        return number * PADDED_TO if self.padded is False else number + (number - 1) // (PADDED_TO - 1)

    def _up_to(self, value: int) -> int:
        """Return how many values of this kind there are from 1 to `value`."""
        aligned = value // PADDED_TO
        return value if self.padded is None else value - aligned if self.padded else aligned


def stretches(run: RunSpec, axis: Axis, most: int) -> Sequence[Stretch]:
    """Return the values from 1 to `most` in stretches along which memory never falls.

    A batch of one takes other copies than one of several. From the sliding window on, windowed layers have a mask. A
    length that is no multiple of 16 is padded for some kernels, which takes a copy that the next multiple does without.
    """
    if axis == "rank":
        return [Stretch(first=1, last=most)]
    if axis == "bs":
        parts = [Stretch(first=1, last=1), Stretch(first=2, last=most)]
    else:
        window = run.spec.sliding_window
        edge = most if window is None else min(window - 1, most)
        halves = ((1, edge), (edge + 1, most))
        parts = [Stretch(first=a, last=b, padded=padded) for a, b in halves for padded in (False, True)]
    return [part for part in parts if part.last >= part.first and len(part)]


def largest_within(plans: Plans, run: RunSpec, axis: Axis, limit: int, most: int) -> int:
    """Return the largest value from 1 to `most` whose peak is within `limit` bytes; 0 where none is."""
    best = 0
    for part in reversed(stretches(run, axis, most)):
        if part.last > best and (count := _within(plans, run, axis, limit, part)):
            best = max(best, part[count - 1])
    return best


def smallest_beyond(plans: Plans, run: RunSpec, axis: Axis, limit: int, most: int) -> int | None:
    """Return the smallest value from 1 to `most` whose peak is beyond `limit` bytes; None where none is."""
    counted = ((part, _within(plans, run, axis, limit, part)) for part in stretches(run, axis, most))
    return min((part[count] for part, count in counted if count < len(part)), default=None)


def _within(plans: Plans, run: RunSpec, axis: Axis, limit: int, part: Stretch) -> int:
    """Return how many values of a stretch, from its first on, are within `limit`."""
    return last_within(lambda n: plans.allocated(along(run, axis, part[n - 1])), limit, most=len(part))
