"""The largest batch, sequence or rank that fits: the search, the same for every engine, and the proof at its end.

An engine searches as it can (closed forms at once, a simulation by recordings, a device by real runs). What it finds is
then held against its own verdicts: `max` has to fit and `max + 1` must not, or the search goes on by verdicts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from lorafa_prof.errors import ContradictionError, SequenceTooLongError
from lorafa_prof.results import Axis, Edge, Memory, Prediction, Threshold, along
from lorafa_prof.search import largest
from lorafa_prof.specs import LARGEST_RANK, DeviceSpec, RunnableModel, RunSpec

#: No longer sequence is looked for where the model's positions do not end.
LONGEST_SEQUENCE = 2**20
#: Where configurations of architectures that the catalog does not know say how many positions there are.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
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


Guess = Callable[[RunSpec, Axis, DeviceSpec, int], int | None]
"""Where along an axis, up to the last number, a run may stop fitting: a place to begin to look; None: no idea."""


class Engine(Protocol):
    """What a search for a threshold needs of an engine."""

    name: str
    largest_batch: int
    """No larger one is looked for."""
    is_quick: bool
    """Whether a question costs next to nothing, so that many may be asked."""

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        """Judge one configuration, exactly as the engine's other commands do.

        Raises:
            LorafaProfError: what the engine refuses.
        """
        ...

    def headroom(self, run: RunSpec, device: DeviceSpec) -> int | None:
        """Return the verdict's headroom alone, below zero where the run does not fit; None where it is not known."""
        ...

    def largest(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        """Return the largest value from 1 to `most` that seems to fit, 0 where none does."""
        ...

    def gap(self, run: RunSpec, axis: Axis, device: DeviceSpec, below: int) -> int | None:
        """Return the smallest value below another that does not fit although that one does, if it can tell."""
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
        if isinstance(run.model, RunnableModel):  # how wide it is only its weights say
            return Limit(most=LARGEST_RANK, why=f"no rank beyond {LARGEST_RANK:,} is looked for")
        width = run.model.hidden_size
        return Limit(
            most=width,
            why=f"a rank beyond the hidden size, {width:,}, adds nothing: no weight is wider both ways",
        )
    return _longest_sequence(run)


def _longest_sequence(run: RunSpec) -> Limit:
    positions, name = run.model.max_positions, run.model.name
    if isinstance(run.model, RunnableModel):
        said = [run.model.config.get(key) for key in _POSITIONS]
        found = next((number for number in said if isinstance(number, int) and number > 0), None)
        if found is not None:
            return Limit(most=found, why=f"the configuration of {name} has {found:,} positions")
    if positions is None:
        return Limit(most=LONGEST_SEQUENCE, why=f"no sequence beyond {LONGEST_SEQUENCE:,} is looked for")
    if run.model.architecture in _LEARNED_POSITIONS:
        return Limit(most=positions, why=_end_of_table(name, positions))
    return Limit(
        most=positions,
        why=f"{name} is made for {positions:,} positions; its rotary positions go on, so that a config.json with a "
        "larger max_position_embeddings is searched further",
    )


def _end_of_table(name: str, positions: int) -> str:
    return f"the table of positions of {name} ends at {positions:,}: no longer step runs"


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
        """Search, prove, and describe; where the model has fewer positions than were looked for, up to these."""
        try:
            return self._found()
        except SequenceTooLongError as error:
            longest = error.longest
            if self.axis != "seq" or longest is None or not 0 < longest < self.limit.most:
                raise
            self.limit = Limit(most=longest, why=_end_of_table(self.run.model.name, longest))
            return self.threshold()

    def _found(self) -> Threshold:
        last = self.last
        beyond = last + 1 if last < self.limit.most else None
        told = self.verdict(last or 1)
        return Threshold(
            engine=self.engine.name, device=self.device.name, axis=self.axis, run=self.run, versions=told.versions,
            max=last, first_oom=beyond, limit=self.limit.most, limited_by=self.limit.why,
            capacity_bytes=told.capacity_bytes, context_bytes=told.context_bytes,
            at_max=told.edge(last) if last else None,
            at_first_oom=None if beyond is None else self.verdict(beyond).edge(beyond),
            fails_from=self.engine.gap(self.run, self.axis, self.device, last) if last else None,
            assumptions=told.assumptions, unmodelled=told.unmodelled,
        )  # fmt: skip

    @cached_property
    def last(self) -> int:
        """What the engine has found, if its verdicts bear it out; else what they say."""
        most = self.limit.most
        last = self.engine.largest(self.run, self.axis, self.device, most)
        if (last == 0 or self.fits(last)) and (last == most or not self.fits(last + 1)):
            return last
        return largest(self.fits, most=most, guess=max(1, last))

    def fits(self, value: int) -> bool:
        """Return the engine's verdict at a value of the axis."""
        return self.verdict(value).fits

    def verdict(self, value: int) -> Verdict:
        """Return all that the engine says at a value of the axis."""
        if value not in self._verdicts:
            self._verdicts[value] = self.engine.verdict(along(self.run, self.axis, value), self.device)
        return self._verdicts[value]
