"""The largest batch or sequence of a run that fits, by replaying it at many shapes."""

from __future__ import annotations

from functools import cached_property, lru_cache

from lorafa_prof.search import largest
from lorafa_prof.simulate.allocator.replay import Replay, replay
from lorafa_prof.simulate.allocator.settings import AllocatorSettings
from lorafa_prof.simulate.platforms import Platform
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.simulate.shapes import DifferentStepsError, Shapes

#: No step of a batch beyond this is looked for.
LARGEST_BATCH = 2**16


class Thresholds:
    """Where one run stops fitting.

    Args:
        recording: the run as it is.
        platform: the device whose kernels run.
        settings: of the allocator.
        steps: how many steps have to fit.
    """

    def __init__(self, recording: Recording, platform: Platform, settings: AllocatorSettings, steps: int) -> None:
        self._platform, self._settings, self._steps = platform, settings, steps
        self._recording = recording
        self._recorded = lru_cache(maxsize=8)(self._record)

    def largest_batch(self, capacity: int, outside: int) -> int:
        """Return the largest batch that a card of `capacity` bytes holds, of which the allocator cannot have `outside`.

        The threshold is looked for with sizes from a few recordings. At the batch that is found the step itself is
        recorded, and has to be what those say; a run for which it is not is recorded at every batch that is tried.
        A batch of one sequence often takes other copies than several, and is always recorded.
        """

        def fits(bs: int) -> bool:
            return self.replay_at(bs, capacity, outside).oom is None

        def really_fits(bs: int) -> bool:
            return self._replay(self._recorded(bs), capacity, outside).oom is None

        found = largest(fits, most=LARGEST_BATCH, guess=self._recording.run.bs)
        if found < 2 or self._is_as_recorded(found):
            return found
        return largest(really_fits, most=LARGEST_BATCH, guess=found)

    def replay_at(self, bs: int, capacity: int | None = None, outside: int = 0) -> Replay:
        """Replay the run with a batch of `bs`."""
        recording = (
            self._recorded(bs) if bs == 1 or self._shapes is None else self._shapes.at(bs, self._recording.run.seq)
        )
        return self._replay(recording, capacity, outside)

    @cached_property
    def _shapes(self) -> Shapes | None:
        """The run at any batch from two on; None where its steps are not alike."""
        try:
            return Shapes.of(self._recording.run, self._platform, ("bs",), [self._recording])
        except DifferentStepsError:
            return None

    def _record(self, bs: int) -> Recording:
        run = self._recording.run
        return self._recording if bs == run.bs else record(run.replace(bs=bs), self._platform)

    def _replay(self, recording: Recording, capacity: int | None, outside: int) -> Replay:
        trace = recording.trace(self._steps, self._platform)
        return replay(
            trace.events, trace.sizes, settings=self._settings, capacity=capacity, outside=outside,
            streams=trace.streams,
        )  # fmt: skip

    def _is_as_recorded(self, bs: int) -> bool:
        if self._shapes is None:
            return True
        predicted = self._shapes.at(bs, self._recording.run.seq).trace(self._steps, self._platform)
        real = self._recorded(bs).trace(self._steps, self._platform)
        return predicted.events == real.events and predicted.sizes == real.sizes
