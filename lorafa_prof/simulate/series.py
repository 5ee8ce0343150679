"""Steps of one batch size and any sequence length, from a few recordings at lengths as they come.

Sizes are polynomials in the length s, as `shapes` has it, or go with s rounded up as kernels pad: rows of masks to 16
tokens, sums of attention's rows to 32 or 128. What is consistent with all recordings, and says one size at the length
that is asked for, is that size; where there is none, or more than one, the length has to be recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fractions import Fraction

from lorafa_prof.errors import BadInputError
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.simulate.shapes import DifferentStepsError, Polynomials, between
from lorafa_prof.specs import ModelSpec, RunSpec

#: Terms of a polynomial in s, and how many recordings that takes: one more has to agree.
_TERMS = ((0, 0), (0, 1), (0, 2))
ENOUGH = len(_TERMS) + 1
#: Tokens that kernels pad to.
UNITS = (16, 32, 128)


def kind_of(run: RunSpec) -> tuple[object, ...]:
    """Return what the runs of a series have in common: other lengths may take other copies, or a mask."""
    window = run.model.sliding_window if isinstance(run.model, ModelSpec) else None
    return run.bs, run.padded, run.seq % UNITS[0] == 0, window is not None and run.seq >= window


def spread(lengths: Iterable[int]) -> list[int]:
    """Return the lengths to record at so that those between them follow: all, where there are no more than enough.

    Where some length is no multiple of what kernels pad to, one that is recorded is not either.
    """
    rising = sorted(set(lengths))
    if len(rising) <= ENOUGH:
        return rising
    chosen = [rising[(len(rising) - 1) * i // (ENOUGH - 1)] for i in range(ENOUGH)]
    for unit in UNITS:
        between_two = [s for s in rising if s % unit and s not in chosen]
        if not any(s % unit for s in chosen) and between_two:
            chosen[1] = between_two[len(between_two) // 2]
    return sorted(set(chosen))


class Series:
    """A run at other lengths than it was recorded at.

    Args:
        recordings: of one kind (`kind_of`), at different lengths; at least `ENOUGH`.

    Raises:
        BadInputError: too few of them, or of different kinds.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        by_length = {recording.run.seq: recording for recording in recordings}
        if len(by_length) < ENOUGH or len({kind_of(recording.run) for recording in recordings}) > 1:
            raise BadInputError(f"a series takes recordings of one kind at {ENOUGH} lengths")
        self._recordings = [by_length[seq] for seq in sorted(by_length)]
        run = self._recordings[0].run
        self._lengths = sorted(by_length)
        self._polynomials = Polynomials(_TERMS, [(run.bs, seq) for seq in self._lengths])

    def at(self, seq: int) -> Recording:
        """Return the recording at another length of the same kind.

        Raises:
            DifferentStepsError: the recordings do not say what it is.
        """
        run = self._recordings[0].run.replace(seq=seq)
        if kind_of(run) != kind_of(self._recordings[0].run):
            raise DifferentStepsError(f"these recordings do not stand for sequences of {seq} tokens")
        return between(self._recordings, run, self._number(run))

    def _number(self, run: RunSpec) -> Callable[[tuple[int, ...]], int]:
        polynomial = self._polynomials.at((run.bs, run.seq))

        @functools.cache
        def number(values: tuple[int, ...]) -> int:
            answers = set(self._rounded(values, run.seq))
            with suppress(DifferentStepsError):
                answers.add(polynomial(values))
            if len(answers) != 1:
                raise DifferentStepsError(f"sizes {values} at lengths {self._lengths} do not say one at {run.seq}")
            return answers.pop()

        return number

    def _rounded(self, values: tuple[int, ...], seq: int) -> Iterable[int]:
        """Yield what a size is at a length if it goes with the length rounded up, for each way in which it may."""
        for unit in UNITS:
            for form in _FORMS:
                factors = {Fraction(v, form(s, _up(s, unit))) for v, s in zip(values, self._lengths, strict=True)}
                if len(factors) == 1:
                    size = factors.pop() * form(seq, _up(seq, unit))
                    if size.denominator == 1:
                        yield int(size)


#: How a size may go with a length s and the same rounded up.
_FORMS: tuple[Callable[[int, int], int], ...] = (
    lambda s, rounded: rounded,
    lambda s, rounded: s * rounded,
    lambda s, rounded: rounded * rounded,
)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
