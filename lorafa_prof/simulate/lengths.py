"""Batches of different lengths, simulated: the largest batch as recorded, and what is reserved after steps in turn.

Which batch is the largest, and which are the quantiles, is asked of the step itself: of the shapes that no other has as
many sequences and tokens as, the first ones by an estimate are recorded. Then steps are played in their order through
one caching allocator. Shapes of a kind take their sizes from four recordings (`Series`), as long as that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from lorafa_prof.allocator.replay import replay
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.lengths.epoch import Epoch, Lengths, Shapes
from lorafa_prof.lengths.reading import Integers
from lorafa_prof.lengths.summary import assumed, largest_of, not_counted, run_at, shape_ranks, summary
from lorafa_prof.results import BatchLengths, Prediction, Throughput
from lorafa_prof.simulate.engine import LEAST_STEPS, Simulation, device_traits, platform_of
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.recording import Recording, trace_of
from lorafa_prof.simulate.recordings import Recordings
from lorafa_prof.simulate.series import Series, kind_of, spread
from lorafa_prof.simulate.shapes import DifferentStepsError
from lorafa_prof.simulate.trace import Trace
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.step import StepTime
from lorafa_prof.workload.versions import installed_versions

#: Shapes that are recorded to learn which is the largest; steps that are played in their order.
MOST_CANDIDATES, MOST_PLAYED = 4, (32, 24, 16, 12, 8, 4)
#: Shapes that are recorded; fewer steps are played than the most where these would take more.
MOST_RECORDED = 16

Estimate = Callable[[RunSpec, Shapes], "Integers | None"]
"""Bytes that the step of each shape may take at its peak, to look at the largest first; None: no idea."""


def by_tokens(run: RunSpec, shapes: Shapes) -> Integers:
    """Return how many tokens each shape has, padding counted."""
    del run
    return shapes.bs * shapes.seq


def simulate_epoch(
    run: RunSpec,
    lengths: Lengths,
    device: DeviceSpec | None = None,
    *,
    settings: AllocatorSettings | None = None,
    estimate: Estimate = by_tokens,
    recordings: Recordings | None = None,
) -> EpochSimulation:
    """Record what is needed of an epoch's batches, and put its first steps, and those around its largest, in order.

    Args:
        run: `bs` sequences in a batch, truncated to `seq` tokens.
        lengths: the data set.
        device: whose kernels run; None: those of a card before Hopper.
        settings: of the caching allocator; None: PyTorch's defaults.
        estimate: which shapes to look at first, and the ranks of all others.
        recordings: those that are kept; None: its own.

    Raises:
        UnsupportedError: as `simulate`, or a run whose steps are not alike.
        BadInputError: batches that cannot be made, or that the model has not the positions for.
    """
    versions = installed_versions(quantized=run.resolved_quant != "none")
    epoch = lengths.epoch(run.bs, run.seq, run.accumulation)
    platform = platform_of(device)
    recordings = Recordings() if recordings is None else recordings
    settings = AllocatorSettings() if settings is None else settings
    known = Recorded(run, epoch.shapes, platform, settings, recordings)
    estimated = estimate(run, epoch.shapes)
    guesses = by_tokens(run, epoch.shapes) if estimated is None else estimated
    worst = _largest(epoch, guesses, known)
    ranks = {} if lengths.batching.rule == "tokens" else shape_ranks(epoch, guesses)  # which nearly all are as large
    quantiles = {name: known.peak(i) for name, i in ranks.items() if name != "max"}
    turns = _in_turn(epoch, worst, known)
    known.prepare(turns)
    largest = known.exact(worst)
    alike = {i: _with_batch_of(largest, known.at(i)) for i in set(turns)}
    _refuse_replacing(run, list(alike.values()))
    return EpochSimulation(
        recording=largest, platform=platform, settings=settings, steps=len(turns), versions=versions, device=device,
        recordings=recordings,
        played=tuple(alike[i] for i in turns), lengths=lengths, asked=run, epoch=epoch, worst=worst,
        quantiles=quantiles, recorded=len(known), ranked=estimated is not None, estimate=estimate,
    )  # fmt: skip


def _refuse_replacing(run: RunSpec, recordings: Sequence[Recording]) -> None:
    """Refuse steps that replace what the one before has kept, where another step has it under another number."""
    if any(found.replaced != recordings[0].replaced for found in recordings):
        raise UnsupportedError(
            f"each step of {run.method.name} makes anew what the one before has kept, which is not simulated where "
            "padded and full batches, or lengths of different kinds, take turns; --engine analytic does without"
        )


def _largest(epoch: Epoch, guesses: Integers, known: Recorded) -> int:
    """Return the shape with the largest peak: of those that no other exceeds, the first by the guess are recorded."""
    candidates = unexceeded(epoch.shapes)
    first = candidates[np.argsort(-guesses[candidates], kind="stable")[:MOST_CANDIDATES]]
    peaks = np.full(len(epoch.shapes), -1, dtype=object)
    for number in first:
        peaks[number] = known.peak(int(number))
    return largest_of(epoch, peaks)


def unexceeded(shapes: Shapes) -> Integers:
    """Return the shapes of which no other has as many sequences and as many tokens each, and a mask if they have one.

    In a step of any of the others nothing is larger than in one of these.
    """
    rank = np.lexsort((~shapes.padded, -shapes.seq, -shapes.bs))  # by sequences, then tokens, then those with a mask
    kept = []
    longest = longest_masked = 0
    for number in rank:
        seq, masked = int(shapes.seq[number]), bool(shapes.padded[number])
        if seq > (longest_masked if masked else longest):
            kept.append(int(number))
        longest = max(longest, seq)
        longest_masked = max(longest_masked, seq if masked else 0)
    return np.array(kept, dtype=np.int64)


def _in_turn(epoch: Epoch, worst: int, known: Recorded) -> list[int]:
    """Return the shapes of the steps that are played, in order: as many as recordings allow.

    The first ones, those up to the largest and one more, and the largest once again, as in a later epoch: in the very
    first step the optimizer has no states yet.
    """
    at = int(epoch.shapes.first[worst])
    for most in MOST_PLAYED:
        numbers = [*(int(epoch.shapes.of_batch[i]) for i in _around(at, len(epoch), most)), worst]
        if known.needed(numbers) <= MOST_RECORDED:
            return numbers
    return [worst] * LEAST_STEPS


def _around(at: int, count: int, most: int) -> list[int]:
    """Return the batches that are played: the first, and those before the one at `at`."""
    if at < most - 1 or count <= most:
        return list(range(min(most, count)))
    half = most // 2
    return [*range(half), *range(max(half, at + 2 - half), min(at + 2, count))]


def _with_batch_of(largest: Recording, recording: Recording) -> Recording:
    """Return a recording whose batch (ids, mask, labels), which is there from the beginning, is the largest one's."""
    blocks = list(recording.blocks)
    for number in largest.load.births():
        blocks[number] = largest.blocks[number]
    return replace(recording, blocks=blocks)


@dataclass
class Recorded:
    """Steps of the shapes of an epoch, recorded when they are asked for."""

    run: RunSpec
    shapes: Shapes
    platform: Cuda
    settings: AllocatorSettings
    kept: Recordings
    _exact: dict[RunSpec, Recording] = field(default_factory=dict)
    _between: dict[RunSpec, Recording] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._exact)

    def exact(self, number: int) -> Recording:
        """Return the step of a shape as it was recorded."""
        return self._recorded(run_at(self.run, self.shapes, number))

    def at(self, number: int) -> Recording:
        """Return the step of a shape that has been prepared for: as recorded, or as others of its kind have it."""
        run = run_at(self.run, self.shapes, number)
        return self._exact.get(run) or self._between[run]

    def needed(self, numbers: Sequence[int]) -> int:
        """Return how many recordings there are when all these shapes are prepared for, if they are as they seem."""
        chosen = {run for alike in self._by_kind(numbers) for run in _chosen(alike)}
        return len(chosen | self._exact.keys())

    def prepare(self, numbers: Sequence[int]) -> None:
        """Record what it takes for `at` to answer for some shapes."""
        for alike in self._by_kind(numbers):
            for run in _chosen(alike):
                self._recorded(run)
            self._prepare_rest([run for run in alike if run not in self._exact])

    def peak(self, number: int) -> int:
        """Return the most that is allocated where every batch has this shape: as `simulate` says of that run."""
        trace = self.exact(number).trace(LEAST_STEPS, self.platform)
        return replay(trace.events, trace.sizes, settings=self.settings, streams=trace.streams).allocated.size

    def _by_kind(self, numbers: Sequence[int]) -> list[list[RunSpec]]:
        kinds: dict[object, list[RunSpec]] = {}
        for run in dict.fromkeys(run_at(self.run, self.shapes, number) for number in dict.fromkeys(numbers)):
            kinds.setdefault(kind_of(run), []).append(run)
        return list(kinds.values())

    def _recorded(self, run: RunSpec) -> Recording:
        if run not in self._exact:
            found = self.kept.of(run, self.platform)
            if not found.again:
                raise UnsupportedError(
                    "steps of this run keep what they make: its batches of different lengths are not simulated"
                )
            self._exact[run] = found
        return self._exact[run]

    def _prepare_rest(self, rest: list[RunSpec]) -> None:
        if not rest:
            return
        kind = kind_of(rest[0])
        series = Series([found for run, found in self._exact.items() if kind_of(run) == kind])
        for run in rest:
            self._prepare_one(run, series)

    def _prepare_one(self, run: RunSpec, series: Series) -> None:
        try:
            self._between[run] = series.at(run.seq)
        except DifferentStepsError:
            self._recorded(run)


def _chosen(alike: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs to record of some that differ in their lengths alone."""
    at = {run.seq: run for run in alike}
    return [at[seq] for seq in spread(at)]


@dataclass(frozen=True)
class EpochSimulation(Simulation):
    """Steps of an epoch, and what the allocator made of them; the recording is that of the largest batch."""

    played: tuple[Recording, ...]
    lengths: Lengths
    asked: RunSpec
    epoch: Epoch
    worst: int
    quantiles: dict[str, int]
    recorded: int
    ranked: bool
    estimate: Estimate

    @cached_property
    def trace(self) -> Trace:
        """The events of the steps that are played, from the loading of the weights on."""
        return trace_of(self.played, self.platform)

    @cached_property
    def said(self) -> BatchLengths:
        """What the prediction says of the epoch."""
        peaks = {**self.quantiles, "max": self.replayed.allocated.size}
        return summary(
            self.lengths, self.asked, self.epoch, self.worst, peaks, steps_played=self.steps,
            shapes_recorded=self.recorded,
        )  # fmt: skip

    def prediction(
        self, devices: Sequence[DeviceSpec] = (), *, largest_batch: bool = False, profile: DeviceProfile | None = None
    ) -> Prediction:
        """Return the prediction, held against `devices`; neither the largest batch size nor times are looked for."""
        del largest_batch
        found = super().prediction(devices, largest_batch=False, profile=profile)
        return replace(
            found, lengths=self.said, assumptions=(*assumed(self.said, self.asked), *found.assumptions),
            unmodelled=(*found.unmodelled, *not_counted(self.said, self.asked)), throughput=Throughput(),
        )  # fmt: skip

    def _untimed(self, times: Sequence[StepTime]) -> tuple[str, ...]:
        return ("step time, MFU and FLOPs of batches of different lengths (closed forms have the mean of the FLOPs)",)

    def _which_steps(self) -> str:
        by = "closed forms" if self.ranked else "their tokens"
        largest = unexceeded(self.epoch.shapes).size
        return (
            f"{self.steps} steps in the epoch's order: the first ones, those up to the largest batch, and that once "
            f"more at the end; {self.recorded} of {len(self.epoch.shapes)} shapes recorded; the largest is one of "
            f"{min(MOST_CANDIDATES, largest)}, by {by}, of {largest} that no other exceeds in sequences and tokens; "
            "ids, masks and labels always as large as those of the largest batch"
        )

    def _on(self, device: DeviceSpec) -> Simulation:
        if device_traits(device) == self.platform.traits:
            return self
        return simulate_epoch(
            self.asked, self.lengths, device, settings=self.settings, estimate=self.estimate,
            recordings=self.recordings,
        )  # fmt: skip
