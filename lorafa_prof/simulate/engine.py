"""From a run to a prediction: its step recorded on meta tensors, its events replayed through the allocator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lorafa_prof.allocator.replay import Replay, replay
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import Ledger
from lorafa_prof.results import Fit, Memory, Prediction, Throughput
from lorafa_prof.results.figures import (
    FP16_INPUTS,
    FSDP_TABLES,
    FUSED_LOSS,
    LIGER_ITSELF,
    LORA_GA_ITSELF,
    MANAGED_ITSELF,
    NO_OUTLIERS,
    managed_lines,
    pass_and_training,
    sequences_line,
)
from lorafa_prof.sharding import BY_FSDP, is_shared, sent_bytes
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits, unmodelled_in
from lorafa_prof.simulate.ledgers import gradient_bytes, ledger_at, phase_name, saved_bytes
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.playback import blocks_alive_at, memory_snapshot, timeline
from lorafa_prof.simulate.recording import Recording, micro_batches
from lorafa_prof.simulate.recordings import Recordings
from lorafa_prof.simulate.refusals import OTHER_KERNELS, described
from lorafa_prof.simulate.thresholds import Thresholds
from lorafa_prof.simulate.trace import Trace
from lorafa_prof.simulate.works import checkpointing_lines, step_throughput, step_works
from lorafa_prof.specs import DeviceSpec, ModelSpec, RunSpec
from lorafa_prof.speed import step
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.links import LINKS, Link, Sharing
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.units import allocated
from lorafa_prof.workload.checkpointing import never_run
from lorafa_prof.workload.lora_ga import has_pre_pass, linear_layers_alone
from lorafa_prof.workload.versions import installed_versions

#: Steps that are replayed at least: the first makes the optimizer's states, the second is the first of all others.
#: Reserved memory settles when what one step leaves cached serves the next; steps are added until it does.
LEAST_STEPS, MOST_STEPS = 3, 8


def predict(
    run: RunSpec,
    devices: Sequence[DeviceSpec] = (),
    *,
    settings: AllocatorSettings | None = None,
    profile: DeviceProfile | None = None,
    link: Link | None = None,
) -> Prediction:
    """Simulate the first steps of `run` and say what memory they take, and how long a later one takes on each device.

    Args:
        run: the configuration.
        devices: cards to hold it against, each with its own kernels; the memory shown is that of the first.
        settings: of the caching allocator; None: PyTorch's defaults.
        profile: of the device of its name; the others have their default profiles.
        link: between several; None: that of the devices, where it is known.

    Raises:
        UnsupportedError: what no real step is built for, or what meta tensors cannot run.
        BadInputError: options that contradict each other.
        MissingComponentError: a library is not installed.
    """
    simulation = simulate(run, devices[0] if devices else None, settings=settings, timed=bool(devices))
    return simulation.prediction(devices, profile=profile, link=link)


def simulate(
    run: RunSpec,
    device: DeviceSpec | None = None,
    *,
    settings: AllocatorSettings | None = None,
    timed: bool = False,
    recordings: Recordings | None = None,
) -> Simulation:
    """Record a step of `run` with the kernels of `device` (None: of a card before Hopper) and replay it until settled.

    Args:
        run: the configuration.
        device: the card.
        settings: of the caching allocator; None: PyTorch's defaults.
        timed: note all operators, so that predictions have step times.
        recordings: those that are kept, of which this one is taken or becomes one; None: its own.

    Raises:
        as `predict`.
    """
    versions = installed_versions(quantized=run.resolved_quant != "none")
    platform = platform_of(device)
    recordings = Recordings() if recordings is None else recordings
    recording = recordings.of(run, platform, notes_all=timed)
    settings = AllocatorSettings() if settings is None else settings
    steps = LEAST_STEPS if recording.again else recording.steps
    simulation = Simulation(recording, platform, settings, steps, versions, device, recordings)
    while recording.again and not simulation.settled and simulation.steps < MOST_STEPS:
        simulation = replace(simulation, steps=simulation.steps + 1)
    return simulation


def platform_of(device: DeviceSpec | None) -> Cuda:
    """Return what runs the kernels of a card (None: of one before Hopper) under the installed releases."""
    return Cuda(device_traits(device), installed_versions()["torch"])


def device_traits(device: DeviceSpec | None) -> DeviceTraits:
    """Return what kernels ask a device for."""
    if device is None:
        return DeviceTraits(None, None)
    if device.vendor != "nvidia":
        raise UnsupportedError(
            f"{device.name}: the simulation knows CUDA's kernels and allocator, not those of {device.vendor}; "
            "--engine analytic does without"
        )
    return DeviceTraits(device.compute_capability, device.multiprocessors)


@dataclass(frozen=True)
class Simulation:
    """A run's first steps, and what the allocator made of them."""

    recording: Recording
    platform: Cuda
    settings: AllocatorSettings
    steps: int
    versions: Mapping[str, str]
    device: DeviceSpec | None
    recordings: Recordings

    @cached_property
    def trace(self) -> Trace:
        """The events of all steps, from the loading of the weights on."""
        return self.recording.trace(self.steps, self.platform)

    def replay_on(self, capacity: int | None = None, outside: int = 0) -> Replay:
        """Replay on a card of so many bytes (None: never full), of which the allocator cannot have `outside`."""
        trace = self.trace
        starts = [position for position, phase in trace.marks if phase == "forward"]
        starts = starts[:: micro_batches(self.recording.run)]
        return replay(
            trace.events, trace.sizes, settings=self.settings, capacity=capacity, outside=outside, marks=starts,
            streams=trace.streams,
        )  # fmt: skip

    @cached_property
    def replayed(self) -> Replay:
        """The replay on a card that is never full."""
        return self.replay_on()

    @property
    def settled(self) -> bool:
        """Whether the last step found in the allocator's cache all that it needed."""
        return self.replayed.end.reserved == self.replayed.marks[-1].reserved

    @cached_property
    def ledger(self) -> Ledger:
        """What is alive at the peak of allocated memory."""
        position = self.replayed.allocated.position
        return ledger_at(self.trace, position, blocks_alive_at(self.trace, position, self.settings))

    def memory(self) -> Memory:
        """Return the parts of the peak, and the peaks of all four memories."""
        peaks, context = self.replayed, self.device.context_bytes if self.device else None
        return Memory(
            **Memory.parts_from(self.ledger),
            peak_requested_bytes=peaks.requested.size,
            peak_allocated_bytes=peaks.allocated.size,
            peak_blocks_bytes=peaks.allocated.size,
            peak_reserved_bytes=peaks.reserved.size,
            fragmentation_bytes=peaks.reserved.size - peaks.allocated.size,
            context_bytes=context,
            peak_device_bytes=None if context is None else peaks.reserved.size + context,
            peak_moment=self.ledger.moment,
            saved_activations_bytes=saved_bytes(self.trace),
            trained_gradients_bytes=gradient_bytes(self.trace, allocated),
            moments=self._moments(),
            managed_bytes=self.recording.managed,
        )

    def snapshot(self) -> bytes:
        """Return the run as a memory snapshot for PyTorch's viewer."""
        return memory_snapshot(self.trace, self.settings)

    def prediction(
        self,
        devices: Sequence[DeviceSpec] = (),
        *,
        largest_batch: bool = True,
        profile: DeviceProfile | None = None,
        link: Link | None = None,
    ) -> Prediction:
        """Return the prediction, held against `devices`.

        Args:
            devices: cards; step times are given where all operators were noted.
            largest_batch: look for it, which takes more recordings.
            profile: of the device of its name, in place of its default one.
            link: between several devices; None: theirs, where it is known.
        """
        on = [(self._on(device), device) for device in devices]
        fits = tuple(there._fit(device, largest_batch) for there, device in on)
        times = [there.step_time(device, profile, link) for there, device in on if self.recording.notes_all]
        flops = step_throughput(self.recording, self.platform.traits)
        return Prediction(
            engine="simulate",
            run=self.recording.run,
            versions={"engine": "simulate", **self.versions},
            memory=self.memory(),
            throughput=times[0].throughput(flops, self.recording.run) if len(times) == 1 else flops,
            parameters=self.recording.parameters,
            fit=self._timed(fits, times, flops),
            assumptions=(*self._assumptions(devices), *step.assumptions(times)),
            unmodelled=(*self._unmodelled(devices), *self._untimed(times)),
            ledger=self.ledger,
            communication_bytes=communicated(self.recording),
        )

    def step_time(self, device: DeviceSpec, profile: DeviceProfile | None, link: Link | None = None) -> step.StepTime:
        """Return the time of a step on a device, by its profile if this is of it, else by its default one.

        Several are linked by `link`, or as such devices are known to be.
        """
        own = profile if profile is not None and profile.name == device.name else default_profile(device)
        sharing = sharing_of(self.recording, link or LINKS.get(device.name))
        return step.StepTime.of(step_works(self.recording, self.platform.traits), own, sharing)

    def _timed(self, fits: tuple[Fit, ...], times: Sequence[step.StepTime], flops: Throughput) -> tuple[Fit, ...]:
        if not times:
            return fits
        run = self.recording.run
        return tuple(time.fit(fit, flops, run) for fit, time in zip(fits, times, strict=True))

    def _untimed(self, times: Sequence[step.StepTime]) -> tuple[str, ...]:
        return step.unmodelled(times, self.recording.run) or ("step time and MFU (name a card with --gpu)",)

    def _moments(self) -> dict[str, int]:
        """The most that is allocated in each phase, in whichever step; the loss counts as a phase of its own."""
        highest: dict[str, int] = {}
        for entry in timeline(self.trace, self.settings, since=self._first_pass):
            name = phase_name(entry.phase, entry.module)
            highest[name] = max(highest.get(name, 0), entry.allocated_bytes)
        return highest

    @property
    def _first_pass(self) -> int:
        """The event with which all that is not loaded begins."""
        return next(position for position, phase in self.trace.marks if phase != "load")

    def _on(self, device: DeviceSpec) -> Simulation:
        """Return the simulation of the same run with the kernels of `device`: this one where they are the same."""
        if device_traits(device) == self.platform.traits:
            return self
        return simulate(
            self.recording.run, device, settings=self.settings, timed=self.recording.notes_all,
            recordings=self.recordings,
        )  # fmt: skip

    def _fit(self, device: DeviceSpec, largest_batch: bool) -> Fit:
        outside = device.context_bytes or 0
        tried = self.replay_on(device.total_bytes, outside)
        reserved = self.replayed.reserved.size if tried.oom else tried.reserved.size
        return Fit(
            device=device.name,
            capacity_bytes=device.total_bytes,
            context_bytes=device.context_bytes,
            fits=tried.oom is None,
            headroom_bytes=device.total_bytes - outside - reserved,
            max_bs=self.thresholds.largest_batch(device.total_bytes, outside) if largest_batch else None,
            oom=tried.oom.message() if tried.oom else None,
        )

    @cached_property
    def thresholds(self) -> Thresholds:
        """Where this run stops fitting."""
        return Thresholds(self.recording.run, self.platform, self.settings, self.steps, self.recordings)

    def _assumptions(self, devices: Sequence[DeviceSpec]) -> tuple[str, ...]:
        run = self.recording.run
        where = self.device.name if self.device else "a card before Hopper"
        lines = [
            f"{self._which_steps()}; gradients are set to None after each",
            sequences_line(run.padded),
            "of the model's output only the loss is held in backward (loss = model(**batch).loss)",
            f"optimizer {run.resolved_optimizer}",
            f"kernels of {where}; {_streams(run)}",
            f"allocator settings {self.settings.describe()}",
        ]
        if run.accumulation > (recorded := micro_batches(run)):
            last = ", but for the last" if run.shard == "ddp" else ""
            lines.append(f"of a step's micro-batches {recorded}: from the second on they are alike{last}")
        if run.loss == "fused":
            lines.append(FUSED_LOSS)
        lines += [*never_run(run, self.recording.operators), *checkpointing_lines(self.recording)]
        lines += [*described(run), *managed_lines(self.recording.managed), *shared_assumptions(run)]
        if any(device_traits(device) != self.platform.traits for device in devices):
            lines.append("whether it fits on another card is judged with that card's kernels")
        if run.method.name != "full":
            lines.append(f"adapters in {run.resolved_adapter_dtype}")
        if run.resolved_quant != "none":
            lines.append(f"linear weights in {run.resolved_quant}; k-bit preparation: {run.prepare_kbit}")
        if has_pre_pass(run):
            lines += [self._pass_and_training(), *linear_layers_alone(run)]
        if run.resolved_quant == "int8":
            lines += [NO_OUTLIERS, FP16_INPUTS]
        if not self.settled:
            lines.append("reserved memory has not settled in these steps")
        return tuple(lines)

    def _which_steps(self) -> str:
        return f"the first {self.steps} steps"

    def _pass_and_training(self) -> str:
        """Say which peak is whose: the verdict goes by the larger one."""
        live = highest = 0
        peaks: list[int] = []
        begins = self.trace.position("forward", 0)
        for number, event in enumerate(self.trace.events):
            if number == begins:
                peaks.append(highest)
                highest = live
            size = allocated(self.trace.blocks[event if event >= 0 else ~event].nbytes)
            live += size if event >= 0 else -size
            highest = max(highest, live)
        [before] = peaks
        return pass_and_training(before, highest)

    def _unmodelled(self, devices: Sequence[DeviceSpec]) -> tuple[str, ...]:
        others = [] if isinstance(self.recording.run.model, ModelSpec) else [OTHER_KERNELS]
        lines = [*_inside_kernels(self.recording), _UNMEASURED, *others]
        if self.recording.run.loss == "fused":
            lines.append(LIGER_ITSELF)
        if self.recording.managed is not None:
            lines.append(MANAGED_ITSELF)
        if has_pre_pass(self.recording.run):
            lines.append(LORA_GA_ITSELF)
        if self.recording.run.shard in BY_FSDP:
            lines.append(FSDP_TABLES)
        if is_shared(self.recording.run):
            lines.append(_OF_NCCL)
        unknown = [device.name for device in devices if device.context_bytes is None]
        if not devices:
            lines.append("CUDA context and libraries outside the allocator (name a card with --gpu)")
        elif unknown:
            lines.append(f"CUDA context of {', '.join(unknown)}: no measurement is known")
        return tuple(lines)


def _inside_kernels(recording: Recording) -> list[str]:
    """Say what operators that ran allocate inside and no formula sizes, operators of one sentence together."""
    together: dict[str, list[str]] = {}
    for operator, sentence in unmodelled_in(recording.operators).items():
        together.setdefault(sentence.rstrip("."), []).append(operator.removesuffix(".default"))
    return [f"inside {', '.join(operators)}: {sentence}" for sentence, operators in together.items()]


def _streams(run: RunSpec) -> str:
    if run.shard not in BY_FSDP:
        return "all on one stream"
    return "gathered weights and reduced gradients on FSDP2's own streams, the rest on one"


def shared_assumptions(run: RunSpec) -> tuple[str, ...]:
    """Say which of several ranks is meant, and what it runs."""
    if not is_shared(run):
        return ()
    return (f"rank 0 of {run.gpus}{_SHARED_BY[run.shard]}",)


_SHARED_BY = {
    "ddp": "; the defaults of torch's DistributedDataParallel",
    "fsdp": ", whose shards are the largest; the defaults of torch's fully_shard, each transformer block a unit of its "
    "own",
    "fsdp-grad-op": ", whose shards are the largest; torch's fully_shard with reshard_after_forward=False, each "
    "transformer block a unit of its own",
    "frozen": ", whose shards are the largest; torch's fully_shard of the frozen base weights, each transformer block "
    "a unit of its own; gradients of what is whole are averaged one by one, in place, when the backward is over",
}


def sharing_of(recording: Recording, link: Link | None) -> Sharing | None:
    """Return what a step takes of a device's time beside its own operations; None where there is no other device.

    Each layer is gathered in the forward and in the backward, what is outside of all once.
    """
    run = recording.run
    if run.gpus == 1:
        return None
    units = sum(kind == "all_gather" for kind, _ in recording.collectives) // 2
    sent = sent_bytes(recording.collectives, run.gpus)
    return Sharing(shard=run.shard, gpus=run.gpus, sent=sent, units=units, link=link, passes=run.accumulation)


def communicated(recording: Recording) -> dict[str, int] | None:
    """Return what the rank sends in a step, by kind; None where it is alone."""
    run = recording.run
    return sent_bytes(recording.collectives, run.gpus) if is_shared(run) else None


_OF_NCCL = "buffers of NCCL's communicators, which are outside PyTorch's allocator"

_UNMEASURED = (
    "differences of a real card: buffers inside kernels follow PyTorch's source, no recorded card confirms them yet"
)
