"""One traced step as plain data: what the allocator did, and which module was at work meanwhile."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from lorafa_prof.results import PhaseMemory, Stretch
from lorafa_prof.workload.naming import LOSS

#: What a forward within the backward is called: checkpointing computes activations again.
RECOMPUTE = "recompute"

Tell = Callable[[str, str], None]
"""Is told of each change of phase or module."""


@dataclass(frozen=True, slots=True)
class Event:
    """A block that came (`nbytes` > 0) or went (< 0)."""

    nbytes: int
    """Bytes that were requested, unrounded."""
    address: int
    operator: str = ""
    """The innermost operator at work, where the device tells."""
    call: int = 0
    """Which call of it; 0 where the device does not tell."""


@dataclass(frozen=True, slots=True)
class Mark:
    """From here on (an index into the events) this module is at work, in this phase."""

    position: int
    phase: str
    module: str


@dataclass(frozen=True, slots=True)
class Levels:
    """The four memories at one moment, bytes; None where the device has no such memory."""

    requested: int
    allocated: int
    active: int | None = None
    reserved: int | None = None
    device: int | None = None
    """Used on the whole card."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was observed between one mark and the next: the most of each memory, and what there was at its end."""

    peak: Levels
    end: Levels


@dataclass(frozen=True, slots=True)
class BaseBlock:
    """A block that was there before the step."""

    requested: int
    allocated: int


NO_DEPARTURES: Mapping[int, Sequence[int]] = {}


class Tracer(Protocol):
    """A record of what the allocator does, which has begun."""

    def tell(self, phase: str, module: str) -> None:
        """Say which module is at work from now on; to be called first of all, before anything is allocated."""
        ...

    def restart(self, storages: Mapping[int, int]) -> None:
        """Begin anew, with these storages and with what is there of all that was made since the beginning.

        Only for a device that forgets.
        """
        ...

    def finish(self, departures: Mapping[int, Sequence[int]] = NO_DEPARTURES) -> StepTrace:
        """End the record, and return it.

        Args:
            departures: for a mark, addresses of what was there before the record and is not there any more; of use
                where the device forgets.
        """
        ...

    def abandon(self) -> None:
        """End the record without a result."""
        ...


Prepare = Callable[[], Mapping[int, int]]
"""Does what comes before the record but under the tracer, and returns what is there then: address -> bytes."""


def traced(tracer: Tracer, step: Callable[[Tell], None], prepare: Prepare | None = None) -> StepTrace:
    """Run a step that tells of phases and modules under a tracer, and return its record."""
    try:
        if prepare is not None:
            tracer.restart(prepare())
        step(tracer.tell)
    except BaseException:
        tracer.abandon()
        raise
    return tracer.finish()


#: Phases as `workload.training_step` enters them, and what people call them.
PHASE_NAMES = {"optimizer": "optimizer step"}


@dataclass(frozen=True)
class StepTrace:
    """A step, traced."""

    base: Mapping[int, BaseBlock]
    """What was there before the first event, by address."""
    events: Sequence[Event]
    marks: Sequence[Mark]
    """The first one at position 0."""
    readings: Sequence[Reading]
    """One for each mark."""

    def mark_of(self, event: int) -> Mark:
        """Return the mark that an event falls under."""
        return self.marks[bisect.bisect_right(self._positions, event) - 1]

    @cached_property
    def _positions(self) -> list[int]:
        return [mark.position for mark in self.marks]

    def end_of(self, phase: str) -> int:
        """Return the index of the first event after a phase of the step, recomputation taken as backward."""
        last = max(number for number, mark in enumerate(self.marks) if _step_phase(mark.phase) == phase)
        return self.marks[last + 1].position if last + 1 < len(self.marks) else len(self.events)

    @property
    def peak(self) -> int:
        """The most that was allocated, bytes."""
        return max(reading.peak.allocated for reading in self.readings)

    def peaks(self) -> Levels:
        """The most of each memory."""
        found = [reading.peak for reading in self.readings]
        return Levels(
            max(peak.requested for peak in found), max(peak.allocated for peak in found),
            _most([peak.active for peak in found]), _most([peak.reserved for peak in found]),
        )  # fmt: skip

    def peak_event(self) -> int:
        """Return the index of the first event after which most bytes are in use, by their requested sizes.

        The search keeps to the stretch in which the allocator reports its peak of allocated bytes: rounding could move
        the maximum to another one otherwise.
        """
        at = max(range(len(self.readings)), key=lambda i: self.readings[i].peak.allocated)
        begin = self.marks[at].position
        end = self.marks[at + 1].position if at + 1 < len(self.marks) else len(self.events)
        live = most = sum(event.nbytes for event in self.events[:begin])
        best = begin - 1
        for index in range(begin, end):
            live += self.events[index].nbytes
            if live > most:
                most, best = live, index
        return best

    def stretches(self) -> Iterator[Stretch]:
        """Yield the timeline: marks in a row of one module in one phase are one stretch, those without events none."""
        current: Stretch | None = None
        for mark, reading in zip(self.marks, self.readings, strict=True):
            new = Stretch(
                phase=mark.phase, module=mark.module, peak_allocated_bytes=reading.peak.allocated,
                end_allocated_bytes=reading.end.allocated, reserved_bytes=reading.end.reserved,
            )  # fmt: skip
            if current is None or (current.phase, current.module) != (new.phase, new.module):
                if current is not None:
                    yield current
                current = new
            else:
                current = Stretch(
                    phase=new.phase, module=new.module,
                    peak_allocated_bytes=max(current.peak_allocated_bytes, new.peak_allocated_bytes),
                    end_allocated_bytes=new.end_allocated_bytes, reserved_bytes=new.reserved_bytes,
                )  # fmt: skip
        if current is not None:
            yield current

    def phases(self) -> tuple[PhaseMemory, ...]:
        """Return the most of each memory in each phase, in the order in which the phases first come.

        A stretch in which nothing is made does not count, where its phase has others: it only sees what another phase
        has left, as the forward does when it comes back from the loss.
        """
        groups: dict[str, list[tuple[Reading, bool]]] = {}
        for number, (mark, reading) in enumerate(zip(self.marks, self.readings, strict=True)):
            groups.setdefault(phase_name(mark), []).append((reading, self._makes(number)))
        return tuple(_phase(name, found) for name, found in groups.items() if name != "end")

    def _makes(self, number: int) -> bool:
        """Return whether anything is made between a mark and the next."""
        end = self.marks[number + 1].position if number + 1 < len(self.marks) else len(self.events)
        return any(event.nbytes > 0 for event in self.events[self.marks[number].position : end])


def phase_name(mark: Mark) -> str:
    """Return what people call the phase of a mark; the loss counts as one, forward and backward."""
    return LOSS if mark.module == LOSS else PHASE_NAMES.get(mark.phase, mark.phase)


def _step_phase(phase: str) -> str:
    return "backward" if phase == RECOMPUTE else phase


def _phase(name: str, found: Sequence[tuple[Reading, bool]]) -> PhaseMemory:
    readings = [reading for reading, makes in found if makes] or [reading for reading, _ in found]
    end = found[-1][0].end
    return PhaseMemory(
        phase=name,
        peak_requested_bytes=max(reading.peak.requested for reading in readings),
        peak_allocated_bytes=max(reading.peak.allocated for reading in readings),
        peak_active_bytes=_most([reading.peak.active for reading in readings]),
        peak_reserved_bytes=_most([reading.peak.reserved for reading in readings]),
        device_bytes=end.device,
        end_allocated_bytes=end.allocated,
    )


def _most(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
