"""What a paper says, and what each engine says of it, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lorafa_prof.results.prediction import Prediction

Certainty = Literal["paper", "derived", "uncertain"]
#: How sure a statement is; every rendering says what the words mean.
CERTAINTY: Mapping[Certainty, str] = {
    "paper": "the paper says it, with all that it holds for",
    "derived": "it follows from what the paper says",
    "uncertain": "the paper says it, and not all that it holds for: the rest is assumed here",
}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One figure or claim of a paper."""

    key: str
    where: str
    """Figure, table or section."""
    says: str
    """In short, in our words and the paper's numbers."""
    certainty: Certainty
    assumed: str = ""
    """What of the configuration is not said there, and how it is read here."""
    value: float | None = None
    """Its number, in the unit that `says` names; None for a claim without one."""


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """One way in which the run may have been set up, of which a paper does not say."""

    name: str
    """"fp32 adapters": what tables call it."""
    options: Mapping[str, object]
    """Fields of the run."""
    means: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one engine says of one statement, for one subject under one assumption."""

    statement: str
    """Key of the statement."""
    subject: str
    """What the statement is asked of: a method, a length, a rank."""
    assumption: str
    engine: str
    expected: str
    """What the paper says of the subject."""
    ours: str | None
    """What the engine says, for people; None: it does not produce the figure."""
    value: float | None = None
    """The same as a number: bytes, sequences, FLOPs, a ratio; None for a verdict."""
    agrees: bool | None = None
    """None: this engine cannot tell."""
    refusal: str = ""
    """Why it does not, in its own words."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One prediction that figures are drawn of."""

    assumption: str
    prediction: Prediction
    x: float | None = None
    """What it is drawn against, where that is no field of the run: the share of adapted layers."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A line across a figure: the memory of a card, or what the paper says."""

    name: str
    nbytes: float


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A group of statements on one figure or section, answered."""

    title: str
    statements: tuple[Statement, ...]
    answers: tuple[Answer, ...]
    setting: str
    """The configuration in words."""
    remarks: tuple[str, ...] = ()
    """The reasons of differences, and what else has to be known."""
    points: tuple[Point, ...] = ()
    figure: str = ""
    """Name of the figure that belongs to it; empty: none."""
    against: str = ""
    """What the points are drawn against; empty: the methods."""
    levels: tuple[Level, ...] = ()


def taken(prediction: Prediction) -> int:
    """Return the bytes of its card that a run takes at most, as far as its engine knows.

    Reserved where the engine knows it, else allocated, with the CUDA context where that is known. On a card that is
    nearly full the allocator gives cached blocks back, and takes less than it would on an endless one.
    """
    if prediction.fit:
        return prediction.fit[0].capacity_bytes - prediction.fit[0].headroom_bytes
    memory = prediction.memory
    size = memory.peak_allocated_bytes if memory.peak_reserved_bytes is None else memory.peak_reserved_bytes
    return (size or 0) + (memory.context_bytes or 0)
