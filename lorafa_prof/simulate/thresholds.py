"""The largest batch or sequence of a run that fits, by replaying it at many shapes."""

from __future__ import annotations

from lorafa_prof.allocator.replay import Replay, replay
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.search import largest
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.simulate.recordings import Recordings
from lorafa_prof.specs import RunSpec

#: No step of a batch beyond this is looked for.
LARGEST_BATCH = 2**16


class Thresholds:
    """Where one run stops fitting.

    Args:
        run: as it is; its batch is where the search begins.
        platform: the device whose kernels run.
        settings: of the allocator.
        steps: how many steps have to fit.
        recordings: where its steps come from.
    """

    def __init__(
        self, run: RunSpec, platform: Cuda, settings: AllocatorSettings, steps: int, recordings: Recordings
    ) -> None:
        self._run, self._platform, self._settings, self._steps = run, platform, settings, steps
        self._recordings = recordings

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

        found = largest(fits, most=LARGEST_BATCH, guess=self._run.bs)
        if found < 2 or self._is_as_recorded(found):
            return found
        return largest(really_fits, most=LARGEST_BATCH, guess=found)

    def replay_at(self, bs: int, capacity: int | None = None, outside: int = 0) -> Replay:
        """Replay the run with a batch of `bs`."""
        return self._replay(self._worked_out(bs) or self._recorded(bs), capacity, outside)

    def _worked_out(self, bs: int) -> Recording | None:
        """Return the step at a batch by few recordings; None where none but its own will do."""
        return None if bs == 1 else self._recordings.at_batch(self._run, bs, self._platform)

    def _recorded(self, bs: int) -> Recording:
        return self._recordings.of(self._run.replace(bs=bs), self._platform)

    def _replay(self, recording: Recording, capacity: int | None, outside: int) -> Replay:
        trace = recording.trace(self._steps, self._platform)
        return replay(
            trace.events, trace.sizes, settings=self._settings, capacity=capacity, outside=outside,
            streams=trace.streams,
        )  # fmt: skip

    def _is_as_recorded(self, bs: int) -> bool:
        worked_out = self._worked_out(bs)
        if worked_out is None:
            return True
        predicted = worked_out.trace(self._steps, self._platform)
        real = self._recorded(bs).trace(self._steps, self._platform)
        return predicted.events == real.events and predicted.sizes == real.sizes
