"""The simulation as an engine that is searched for thresholds."""

from __future__ import annotations

from collections.abc import Callable

from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.errors import SequenceTooLongError
from lorafa_prof.lengths.epoch import Lengths
from lorafa_prof.results import Axis, along, value_along
from lorafa_prof.search import last_within
from lorafa_prof.simulate.engine import Simulation, platform_of, simulate
from lorafa_prof.simulate.lengths import Estimate, simulate_epoch
from lorafa_prof.simulate.recordings import Recordings
from lorafa_prof.simulate.thresholds import LARGEST_BATCH, Thresholds
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.thresholds import Guess, Verdict

#: Simulations that are held with all that was worked out of them, some tens of MB each of a 7B model.
_MOST_HELD = 4


class Simulations:
    """Judges by simulated steps, each recorded once for all cards on which it is the same.

    Args:
        settings: of the caching allocator; None: PyTorch's defaults.
        guess: where to begin to look along an axis; what is found does not depend on it.
        on_trial: told of each step before it is recorded.
        recordings: where steps come from; None: those of this one alone.
    """

    name = "simulate"
    largest_batch = LARGEST_BATCH
    is_quick = False

    def __init__(
        self,
        settings: AllocatorSettings | None,
        guess: Guess,
        on_trial: Callable[[RunSpec, DeviceSpec], None] = lambda run, device: None,
        recordings: Recordings | None = None,
    ) -> None:
        self._settings, self._guess, self._on_trial = settings, guess, on_trial
        self._recordings = Recordings() if recordings is None else recordings
        self._simulations: dict[tuple[RunSpec, str], Simulation] = {}
        self._steps: dict[RunSpec, int] = {}
        self._verdicts: dict[tuple[RunSpec, str, int], Verdict] = {}

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        """See `lorafa_prof.thresholds.Engine.verdict`."""
        key = (run, device.name, device.total_bytes)
        if key not in self._verdicts:
            simulation = self._simulation(run, device)
            self._verdicts[key] = Verdict.predicted(simulation.prediction([device], largest_batch=False))
        return self._verdicts[key]

    def headroom(self, run: RunSpec, device: DeviceSpec) -> int | None:
        """See `lorafa_prof.thresholds.Engine.headroom`."""
        return self.verdict(run, device).headroom_bytes

    def largest(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        """See `lorafa_prof.thresholds.Engine.largest`.

        Batches are looked for with sizes from a few recordings. Another length is padded by kernels in its own way, and
        another rank has other adapters, so that each that is tried is recorded: a handful.
        """
        guess = self._begin(run, axis, device, most)
        if axis == "bs":
            thresholds = self._thresholds(along(run, axis, max(2, guess)), device)
            return min(thresholds.largest_batch(device.total_bytes, device.context_bytes or 0), most)
        return self._by_looking(run, axis, device, most, guess)

    def _begin(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        """Return where to look first."""
        return min(max(1, self._guess(run, axis, device, most) or value_along(run, axis)), most)

    def _by_looking(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int, guess: int) -> int:
        """Return the largest value that fits, by simulating a handful."""

        def needed(value: int) -> int:
            return device.total_bytes - (self.headroom(along(run, axis, value), device) or 0)

        return last_within(needed, device.total_bytes, most=most, guess=guess)

    def gap(self, run: RunSpec, axis: Axis, device: DeviceSpec, below: int) -> int | None:
        """Not looked for: each look is a recording."""
        return None

    def _thresholds(self, run: RunSpec, device: DeviceSpec) -> Thresholds:
        """Return where a run stops fitting a card; it settles in as many steps as it did on the first card."""
        any_batch = run.replace(bs=1)
        if any_batch not in self._steps:
            self._steps[any_batch] = self._simulation(run, device).steps
        settings = AllocatorSettings() if self._settings is None else self._settings
        return Thresholds(run, platform_of(device), settings, self._steps[any_batch], self._recordings)

    def _simulation(self, run: RunSpec, device: DeviceSpec) -> Simulation:
        key = (run, device.name)
        if key not in self._simulations:
            while len(self._simulations) >= _MOST_HELD:
                del self._simulations[next(iter(self._simulations))]
            self._on_trial(run, device)
            try:
                self._simulations[key] = self._simulate(run, device)
            except SequenceTooLongError as error:
                error.longest = run.seq - error.beyond
                raise
        return self._simulations[key]

    def _simulate(self, run: RunSpec, device: DeviceSpec) -> Simulation:
        return simulate(run, device, settings=self._settings, recordings=self._recordings)


class EpochSimulations(Simulations):
    """Judges by simulated epochs of batches of different lengths.

    Args:
        lengths: the data set. What a run says of batch and sequence is how many sequences are in a batch, and what
            they are truncated to.
        estimate: which shapes to look at first.
        settings, guess, on_trial: as `Simulations` has them.
    """

    def __init__(
        self,
        lengths: Lengths,
        estimate: Estimate,
        settings: AllocatorSettings | None,
        guess: Guess,
        on_trial: Callable[[RunSpec, DeviceSpec], None] = lambda run, device: None,
    ) -> None:
        super().__init__(settings, guess, on_trial)
        self._lengths, self._estimate = lengths, estimate
        self.largest_batch = min(LARGEST_BATCH, lengths.largest_batch)

    def largest(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        """See `lorafa_prof.thresholds.Engine.largest`: with another batch size all batches are others.

        Raises:
            BadInputError: the batch size of a rule that has none.
        """
        self._lengths.require_axis(axis)
        return self._by_looking(run, axis, device, most, self._begin(run, axis, device, most))

    def _simulate(self, run: RunSpec, device: DeviceSpec) -> Simulation:
        return simulate_epoch(
            run, self._lengths, device, settings=self._settings, estimate=self._estimate, recordings=self._recordings
        )
