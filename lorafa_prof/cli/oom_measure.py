"""The device that is there as an engine that is searched for thresholds: each trial is a real run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorafa_prof.cli.measurement_file import MeasurementFile
from lorafa_prof.cli.measuring import Sweep
from lorafa_prof.cli.progress import Progress
from lorafa_prof.errors import BadInputError, DeviceError
from lorafa_prof.reports.measurement import outcome_line
from lorafa_prof.results import Axis, Measurement, along, value_along
from lorafa_prof.search import largest, last_within
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.thresholds import Guess, Verdict
from lorafa_prof.units import format_bytes

if TYPE_CHECKING:
    from lorafa_prof.measure.isolate import Place
    from lorafa_prof.measure.stop import Stop

#: Steps of a trial: two that settle the optimizer's states and the allocator's cache, one more, and the traced one.
TRIAL = {"steps": 1, "warmup": 2, "trace": True}
#: No larger batch is tried.
LARGEST_BATCH = 2**16


@dataclass(kw_only=True)
class Trials:
    """Judges by real steps, each configuration measured once.

    Args:
        device: what torch calls it.
        place: what is there.
        stop: ends the search when requested.
        guess: where to begin to look.
        timeout_s: seconds that one trial may take.
        file: where trials are kept, and taken from.
        restart: measure anew what the file has.
        progress: told of each trial.
    """

    device: str
    place: Place
    stop: Stop
    guess: Guess
    timeout_s: float | None
    file: MeasurementFile | None
    restart: bool
    progress: Progress
    name: str = "measure"
    largest_batch: int = LARGEST_BATCH
    is_quick: bool = False
    _seen: dict[tuple[RunSpec, int | None], Measurement] = field(default_factory=dict)

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        """See `lorafa_prof.thresholds.Engine.verdict`.

        Raises:
            DeviceError: the run ended in another way than by success or a full memory.
        """
        seen, cap = self._measured(run, device), cap_of(device, self.place)
        memory = seen.memory
        context = device.context_bytes
        if context is None and cap is None and memory is not None:
            context = memory.context_bytes
        return Verdict(
            fits=seen.outcome == "ok", headroom_bytes=_headroom(seen, cap, device), memory=memory,
            capacity_bytes=device.total_bytes, context_bytes=context, versions=seen.versions,
            assumptions=seen.assumptions, unmodelled=seen.unmodelled, oom=seen.error,
        )  # fmt: skip

    def headroom(self, run: RunSpec, device: DeviceSpec) -> int | None:
        """See `lorafa_prof.thresholds.Engine.headroom`; None of a run that ended before its peak was known."""
        return self.verdict(run, device).headroom_bytes

    def largest(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        """See `lorafa_prof.thresholds.Engine.largest`; where to begin is all that a prediction has a say in.

        A step on the CPU, which cannot be refused memory, tells how much it needs, and so where to look next.
        """
        guess = self.guess(run, axis, device, most) or value_along(run, axis)
        if self.place.environment.get("device_type") != "cpu":
            return largest(lambda n: self.verdict(along(run, axis, n), device).fits, most=most, guess=guess)

        def needed(value: int) -> int:
            seen = self._measured(along(run, axis, value), device)
            peak = None if seen.memory is None else seen.memory.peak_allocated_bytes
            return device.total_bytes + 1 if peak is None else peak  # the host's memory was full before

        return last_within(needed, device.total_bytes - (device.context_bytes or 0), most=most, guess=guess)

    def gap(self, run: RunSpec, axis: Axis, device: DeviceSpec, below: int) -> int | None:
        """Not looked for: each look is a real run."""
        return None

    def _measured(self, run: RunSpec, device: DeviceSpec) -> Measurement:
        cap = cap_of(device, self.place)
        if (run, cap) not in self._seen:
            self._seen[run, cap] = self._measure(run, cap)
        return self._seen[run, cap]

    def _measure(self, run: RunSpec, cap: int | None) -> Measurement:
        sweep = Sweep(
            runs=[run], options={"device": self.device, "cap_bytes": cap, **TRIAL}, peak_flops={}, place=self.place,
            stop=self.stop, timeout_s=self.timeout_s, file=self.file, restart=self.restart, progress=self.progress,
        )  # fmt: skip
        sweep.go()
        if self.stop.requested or not sweep.seen:
            raise KeyboardInterrupt
        [seen] = sweep.seen
        if seen.outcome not in ("ok", "oom"):
            raise DeviceError(f"{run.method.name}, batch {run.bs} x {run.seq}: {outcome_line(seen)}")
        return seen


def cap_of(device: DeviceSpec, place: Place) -> int | None:
    """Return what the allocator may have for the device to be as large as it says; None: all there is."""
    if device.total_bytes == place.environment.get("total_bytes"):
        return None
    return device.total_bytes - (device.context_bytes or 0)


def devices_at(place: Place, named: Sequence[DeviceSpec], cap: int | None) -> list[DeviceSpec]:
    """Return the device that is there, or smaller ones that it is to emulate.

    Args:
        place: the device.
        named: cards of the catalog to emulate, each by a cap of its memory less its CUDA context.
        cap: bytes that the allocator may have.

    Raises:
        BadInputError: a card larger than the device; the CPU without a cap.
    """
    environment = place.environment
    total, name = int(environment["total_bytes"]), str(environment["device"])
    here = DeviceSpec(
        name=name, full_name=name, vendor="nvidia" if environment.get("device_type") == "cuda" else "", architecture="",
        compute_capability=_capability(environment), total_bytes=total, bandwidth=None, peak_flops={},
    )  # fmt: skip
    if named:
        return [_emulated(card, here) for card in named]
    if cap is not None:
        return [_emulated(replace(here, name=format_bytes(cap), total_bytes=cap), here)]
    if environment.get("device_type") != "cuda":
        raise BadInputError(
            "the host's memory is no card's: say how much of it a run may have, with --cap 8GiB or --gpu"
        )
    return [here]


def _emulated(card: DeviceSpec, here: DeviceSpec) -> DeviceSpec:
    if card.total_bytes > here.total_bytes:
        raise BadInputError(
            f"{card.name} has {format_bytes(card.total_bytes)}, more than the {format_bytes(here.total_bytes)} of "
            f"{here.name}, which cannot emulate it"
        )
    return replace(
        card, name=f"{card.name} emulated on {here.name}", compute_capability=here.compute_capability
    )  # fmt: skip


def _capability(environment: Mapping[str, Any]) -> tuple[int, int] | None:
    found = environment.get("compute_capability")
    return (int(found[0]), int(found[1])) if isinstance(found, (list, tuple)) and len(found) == 2 else None


def _headroom(seen: Measurement, cap: int | None, device: DeviceSpec) -> int | None:
    """Return what is left of the memory that the run could use, as far as its peak is known.

    The CPU has no reserved memory; a cap has no CUDA context in it.
    """
    if seen.memory is None:
        return None
    reserved, allocated = seen.memory.peak_reserved_bytes, seen.memory.peak_allocated_bytes
    peak = allocated if reserved is None else reserved
    room = cap if cap is not None else device.total_bytes - (seen.memory.context_bytes or 0)
    return None if peak is None else room - peak
