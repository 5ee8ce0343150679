"""Many shapes from few recordings: the same events, with sizes that are polynomials in batch and sequence length.

As long as a step runs the same operators, the sizes of its storages are polynomials: of degree one in the batch b and
two in the sequence length s (attention scores). Their coefficients follow exactly from as many recordings as there are
terms; one recording more, at another point, has to agree. What kernels allocate inside is no polynomial (it is rounded
to blocks, or staged by how busy the device is); it is sized anew, from the shapes of each call's arguments.

Paddings of rows (masks to 16 elements, positions to 128) are polynomials only from one multiple to the next, so along s
the recordings, and the lengths that may be asked for, are a multiple of 128 tokens apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal

from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.simulate.calls import combined
from lorafa_prof.simulate.platforms import Platform
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import Call, Event, Recording, Segment
from lorafa_prof.simulate.trace import Block
from lorafa_prof.specs import RunSpec

Axis = Literal["bs", "seq"]
Point = tuple[int, int]
"""(batch, sequence length)"""

#: Lengths differ by multiples of this, to which kernels pad.
PADDED_TO = 128
#: Exponents of b and s in the terms of a size along each axis.
_TERMS: dict[tuple[Axis, ...], tuple[tuple[int, int], ...]] = {
    ("bs",): ((0, 0), (1, 0)),
    ("seq",): ((0, 0), (0, 1), (0, 2)),
    ("bs", "seq"): ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)),
}


class DifferentStepsError(UnsupportedError):
    """Two shapes of one run do not run the same operators, or sizes between them are no polynomial."""


class Polynomials:
    """Integers that are known at some points, at any other."""

    def __init__(self, terms: Sequence[tuple[int, int]], points: Sequence[Point]) -> None:
        self._terms, self._points = terms, points
        rows = [self._row(point) for point in points[: len(terms)]]
        self._inverse = _inverse(rows)
        self._known: dict[tuple[int, ...], tuple[Fraction, ...]] = {}

    def _row(self, point: Point) -> list[Fraction]:
        return [Fraction(point[0] ** i * point[1] ** j) for i, j in self._terms]

    def at(self, point: Point) -> Callable[[tuple[int, ...]], int]:
        """Return a function from the values at the known points to the value at `point`.

        Raises (the function):
            DifferentStepsError: the values are on no polynomial with these terms.
        """
        row = self._row(point)

        def value(values: tuple[int, ...]) -> int:
            result = sum(c * x for c, x in zip(self._coefficients(values), row, strict=True))
            if result.denominator != 1:
                raise DifferentStepsError(f"a size is no whole number at {point}: {result}")
            return int(result)

        return value

    def _coefficients(self, values: tuple[int, ...]) -> tuple[Fraction, ...]:
        if values not in self._known:
            found = tuple(sum(a * v for a, v in zip(row, values, strict=False)) for row in self._inverse)
            for point, seen in zip(self._points, values, strict=True):
                if sum(c * x for c, x in zip(found, self._row(point), strict=True)) != seen:
                    raise DifferentStepsError(f"a size is no polynomial of the shape: {values} at {self._points}")
            self._known[values] = tuple(map(Fraction, found))
        return self._known[values]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Return the inverse by Gauss-Jordan elimination, exactly."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [x / rows[column][column] for x in rows[column]]
        for i in range(size):
            if i != column and (factor := rows[i][column]):
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


@dataclass(frozen=True)
class Shapes:
    """A run's recording for any batch or sequence length along some axes."""

    run: RunSpec
    axes: tuple[Axis, ...]
    polynomials: Polynomials
    recordings: tuple[Recording, ...]

    @classmethod
    def of(
        cls,
        run: RunSpec,
        platform: Platform,
        axes: tuple[Axis, ...],
        recorded: Callable[[RunSpec], Recording] | None = None,
        *,
        notes_all: bool = False,
    ) -> Shapes:
        """Record `run` at as many shapes as are needed.

        Args:
            run: at any of its shapes.
            platform: the device whose kernels run.
            axes: along which shapes differ.
            recorded: where recordings come from; None: each is made.
            notes_all: note the calls of all operators where each is made, as in `record`.

        Args:
            run, platform: as in `record`.
            axes: along which shapes are asked for.
            known: recordings of this run, which may be at shapes that are needed.
            notes_all: note the calls of all operators, as in `record`.

        Raises:
            DifferentStepsError: the shapes do not run the same operators, or a size is no polynomial.
            UnsupportedError, BadInputError: as `record`.
        """
        points = _points(run, axes)
        made = partial(record, platform=platform, notes_all=notes_all) if recorded is None else recorded
        recordings = tuple(made(run.replace(bs=bs, seq=seq)) for bs, seq in points)
        shapes = cls(run, axes, Polynomials(_TERMS[axes], points), recordings)
        shapes.at(*points[-1])  # looks at every event, and at every size at every point
        return shapes

    def admits(self, bs: int, seq: int) -> bool:
        """Say whether a shape is one of those that these recordings stand for."""
        along_s = "seq" in self.axes
        right_length = (seq - self.run.seq) % PADDED_TO == 0 if along_s else seq == self.run.seq
        return right_length and (bs >= 2 if "bs" in self.axes else bs == self.run.bs)

    def at(self, bs: int, seq: int, *, calls: bool = False) -> Recording:
        """Return the recording at another shape.

        Args:
            bs, seq: the shape.
            calls: with the calls whose work is noted, of all operators where all recordings have those.

        Raises:
            BadInputError: a shape that other operators run for, or may run for: see `admits`.
            DifferentStepsError: the recordings do not agree.
        """
        if not self.admits(bs, seq):
            raise BadInputError(f"these recordings do not stand for batch {bs} of {seq} tokens")
        first, *others = self.recordings
        if any(other.operators != first.operators for other in others):
            raise DifferentStepsError("other shapes of this run run other operators")
        number = self.polynomials.at((bs, seq))
        specs: dict[tuple[int, ...], int] = {}
        segments = zip(*((r.load, *r.first, *r.again) for r in self.recordings), strict=True)
        load, *steps = [_same_segment(together, specs, calls=calls) for together in segments]
        blocks = [_same_block(together, number) for together in zip(*(r.blocks for r in self.recordings), strict=True)]
        described = [tuple(r.specs[i] for r, i in zip(self.recordings, key, strict=True)) for key in specs]
        run, once = self.run.replace(bs=bs, seq=seq), len(first.first)
        return replace(
            first, run=run, blocks=blocks, load=load, first=tuple(steps[:once]), again=tuple(steps[once:]),
            specs=[combined(specs, number) for specs in described],
        )  # fmt: skip


def _points(run: RunSpec, axes: tuple[Axis, ...]) -> list[Point]:
    """Return the shapes to record at, the run's own first where it is one of the kind: enough for the terms and one."""
    batches = list(dict.fromkeys([*([run.bs] if run.bs >= 2 else []), 2, 3, 5]))[:3]
    if axes == ("bs",):
        return [(b, run.seq) for b in batches]
    limit = run.model.max_positions or 2**30
    steps = [PADDED_TO * i for i in (0, 1, 2, 4)]
    lengths = [run.seq + step for step in steps]
    if lengths[-1] > limit:
        lengths = [run.seq - step for step in steps]
    if lengths[-1] < 1:
        raise DifferentStepsError(f"no room for several lengths {PADDED_TO} tokens apart within {limit}")
    if axes == ("seq",):
        return [(run.bs, s) for s in lengths]
    return [*((b, s) for b in batches[:2] for s in lengths[:3]), (batches[2], lengths[3])]


def _same_segment(together: tuple[Segment, ...], specs: dict[tuple[int, ...], int], *, calls: bool) -> Segment:
    if len({(s.phase, len(s.events), len(s.calls) if calls else 0) for s in together}) > 1:
        raise DifferentStepsError(f"the {together[0].phase} of other shapes has other events")
    events = [_same_event(e, specs) for e in zip(*(s.events for s in together), strict=True)]
    noted = [_same_call(c, specs) for c in zip(*(s.calls for s in together), strict=True)] if calls else []
    return Segment(together[0].phase, events, noted)


def _same_call(together: tuple[Call, ...], specs: dict[tuple[int, ...], int]) -> Call:
    return replace(together[0], spec=specs.setdefault(tuple(call.spec for call in together), len(specs)))


def _same_event(together: tuple[Event, ...], specs: dict[tuple[int, ...], int]) -> Event:
    first = together[0]
    if isinstance(first, Call):
        calls = [event for event in together if isinstance(event, Call) and event.born == first.born]
        if len(calls) == len(together):
            return _same_call(tuple(calls), specs)
    elif all(event == first for event in together):
        return first
    raise DifferentStepsError(f"storages of other shapes come and go in another order: {together}")


def _same_block(together: tuple[Block, ...], number: Callable[[tuple[int, ...]], int]) -> Block:
    first = together[0]
    sizes = tuple(block.nbytes for block in together)
    if all(block.shape == first.shape for block in together) and len(set(sizes)) == 1:
        return first
    if len({(block.op, block.module, block.dtype, len(block.shape)) for block in together}) > 1:
        raise DifferentStepsError(f"other shapes have other storages: {together}")
    shape = tuple(number(dims) for dims in zip(*(block.shape for block in together), strict=True))
    return replace(first, nbytes=number(sizes), shape=shape)
