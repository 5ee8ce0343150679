"""The largest batch, sequence or rank that fits: the search, the same for every engine, and the proof at its end.

An engine searches as it can (closed forms at once, a simulation by recordings, a device by real runs). What it finds is
then held against its own verdicts: `max` has to fit and `max + 1` must not, or the search goes on by verdicts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from lorafa_prof.errors import ContradictionError
from lorafa_prof.results import Axis, Edge, Memory, Prediction, Threshold, along
from lorafa_prof.search import largest
from lorafa_prof.specs import DeviceSpec, RunSpec

#: No longer sequence is looked for where the model's positions do not end.
LONGEST_SEQUENCE = 2**20
#: Architectures whose positions are rows of a table that ends.
_LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "roberta", "xlm-roberta", "bert")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an engine says of one configuration on one device."""

    fits: bool
    headroom_bytes: int | None
    memory: Memory | None
    capacity_bytes: int
    context_bytes: int | None
    versions: Mapping[str, str]
    assumptions: tuple[str, ...]
    unmodelled: tuple[str, ...]
    oom: str | None = None

    @classmethod
    def predicted(cls, prediction: Prediction) -> Verdict:
        """Return the verdict of a prediction on its first device."""
        fit = prediction.fit[0]
        return cls(
            fits=fit.fits, headroom_bytes=fit.headroom_bytes, memory=prediction.memory, oom=fit.oom,
            capacity_bytes=fit.capacity_bytes, context_bytes=fit.context_bytes, versions=prediction.versions,
            assumptions=prediction.assumptions, unmodelled=prediction.unmodelled,
        )  # fmt: skip

    def edge(self, value: int) -> Edge:
        """Return the verdict as the edge of a threshold."""
        return Edge(
            value=value, fits=self.fits, headroom_bytes=self.headroom_bytes, memory=self.memory, oom=self.oom
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found."""

    max: int
    fails_from: int | None = None
    """The smallest that does not fit, where it is known to be below `max`."""


class Engine(Protocol):
    """What a search for a threshold needs of an engine."""

    name: str
    largest_batch: int
    """No larger one is looked for."""

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        """Judge one configuration, exactly as the engine's other commands do."""
        ...

    def search(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> Found:
        """Look for the threshold from 1 to `most`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How far along an axis can be looked."""

    most: int
    why: str


def limit_of(run: RunSpec, axis: Axis, largest_batch: int) -> Limit:
    """Return how far along an axis a run can go.

    Raises:
        ContradictionError: the axis of ranks for full fine-tuning, which has none.
    """
    if axis == "bs":
        return Limit(most=largest_batch, why=f"no batch beyond {largest_batch:,} is looked for")
    if axis == "rank":
        if run.method.name == "full":
            raise ContradictionError("full fine-tuning has no rank: --axis rank needs an adapter method")
        width = run.model.hidden_size
        return Limit(
            most=width,
            why=f"a rank beyond the hidden size, {width:,}, adds nothing: every adapted weight has that side",
        )
    return _longest_sequence(run)


def _longest_sequence(run: RunSpec) -> Limit:
    positions, name = run.model.max_positions, run.model.name
    if positions is None:
        return Limit(most=LONGEST_SEQUENCE, why=f"no sequence beyond {LONGEST_SEQUENCE:,} is looked for")
    if run.model.architecture in _LEARNED_POSITIONS:
        return Limit(most=positions, why=f"the table of positions of {name} ends at {positions:,}: no longer step runs")
    return Limit(
        most=positions,
        why=f"{name} is made for {positions:,} positions; its rotary positions go on, so that a config.json with a "
        "larger max_position_embeddings is searched further",
    )


def find_threshold(engine: Engine, run: RunSpec, axis: Axis, device: DeviceSpec) -> Threshold:
    """Find where `run` stops fitting `device` along an axis.

    Raises:
        LorafaProfError: what the engine refuses.
    """
    return _Search(engine, run, axis, device).threshold()


class _Search:
    def __init__(self, engine: Engine, run: RunSpec, axis: Axis, device: DeviceSpec) -> None:
        self.engine, self.run, self.axis, self.device = engine, run, axis, device
        self.limit = limit_of(run, axis, engine.largest_batch)
        self._verdicts: dict[int, Verdict] = {}

    def threshold(self) -> Threshold:
        """Search, prove, and describe."""
        found = self.found
        beyond = found.max + 1 if found.max < self.limit.most else None
        told = self.verdict(found.max or 1)
        return Threshold(
            engine=self.engine.name, device=self.device.name, axis=self.axis, run=self.run, versions=told.versions,
            max=found.max, first_oom=beyond, limit=self.limit.most, limited_by=self.limit.why,
            capacity_bytes=told.capacity_bytes, context_bytes=told.context_bytes,
            at_max=told.edge(found.max) if found.max else None,
            at_first_oom=None if beyond is None else self.verdict(beyond).edge(beyond),
            fails_from=found.fails_from, assumptions=told.assumptions, unmodelled=told.unmodelled,
        )  # fmt: skip

    @cached_property
    def found(self) -> Found:
        """What the engine has found, if its verdicts bear it out; else what they say."""
        found = self.engine.search(self.run, self.axis, self.device, self.limit.most)
        last, beyond = found.max, found.max + 1
        if (last == 0 or self.fits(last)) and (last == self.limit.most or not self.fits(beyond)):
            return found
        return Found(max=largest(self.fits, most=self.limit.most, guess=max(1, last)))

    def fits(self, value: int) -> bool:
        """Return the engine's verdict at a value of the axis."""
        return self.verdict(value).fits

    def verdict(self, value: int) -> Verdict:
        """Return all that the engine says at a value of the axis."""
        if value not in self._verdicts:
            self._verdicts[value] = self.engine.verdict(along(self.run, self.axis, value), self.device)
        return self._verdicts[value]
