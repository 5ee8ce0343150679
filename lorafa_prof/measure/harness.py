"""One configuration measured in this process: warm-up, timed steps without any tracing, and one traced step."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from lorafa_prof.ledger import Category
from lorafa_prof.measure.attribution import Attribution
from lorafa_prof.measure.communication import (
    Lookout,
    Sighting,
    buckets_of,
    found_by_size,
    settling_collectives,
    watching,
    without_address,
)
from lorafa_prof.measure.devices import Clock, Device, open_device
from lorafa_prof.measure.endings import is_out_of_memory
from lorafa_prof.measure.flops import count_work
from lorafa_prof.measure.look import Look
from lorafa_prof.measure.marks import ModuleMarks
from lorafa_prof.measure.memory import untraced_memory, with_pass, with_trace
from lorafa_prof.measure.names import (
    Name,
    Names,
    address_of,
    head_of,
    logits_sizes,
    names_of_gradients,
    names_of_model,
    names_of_states,
)
from lorafa_prof.measure.promises import check_promises, checked_twice
from lorafa_prof.measure.timing import Work, spread, throughput
from lorafa_prof.measure.trace import StepTrace, Tell
from lorafa_prof.results import Measurement, StepTime
from lorafa_prof.results.figures import sequences_line
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import format_bytes
from lorafa_prof.workload import Workload
from lorafa_prof.workload.checkpointing import never_run
from lorafa_prof.workload.lora_ga import has_pre_pass, linear_layers_alone
from lorafa_prof.workload.naming import counted_parameters, named_states
from lorafa_prof.workload.optimizers import REPLACING_STATES
from lorafa_prof.workload.parallel import Group
from lorafa_prof.workload.step import before_pre_pass, training_step
from lorafa_prof.workload.versions import installed_versions

Report = Callable[[Measurement], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure."""

    device: str = "cuda"
    """"cuda", "cuda:1", "cpu"."""
    steps: int = 10
    """Timed steps."""
    warmup: int = 3
    """Steps before: the first makes the optimizer's states, and libraries choose their kernels."""
    trace: bool = True
    cap_bytes: int | None = None
    """Memory of a smaller card to emulate."""
    peak_flops: float | None = None
    """Dense peak of the device in the run's dtype, FLOP/s; without it there is no MFU."""


def measure(
    run: RunSpec,
    options: Options,
    report: Report = lambda measurement: None,
    group: Group | None = None,
) -> Measurement:
    """Take real training steps of `run` and return what was observed.

    Args:
        run: the configuration.
        options: how to measure.
        report: is told the measurement as far as it has come, after each stage and each timed step.
        group: the processes that take the step together; torch.distributed is initialised for them.

    Raises:
        UnsupportedError: what no real step is built for.
        BadInputError: options that contradict each other, or no such device.
        DeviceError: the device is not there, or cannot do it.
        torch.OutOfMemoryError: the device's memory is full.
    """
    device = open_device(options.device, options.cap_bytes)
    seen = Measurement(
        outcome="ok",
        run=run,
        versions={
            **installed_versions(quantized=run.resolved_quant != "none"), "python": platform.python_version()
        },
        environment={**device.environment(), "steps": options.steps, "warmup": options.warmup},
        assumptions=_assumptions(run, device, options),
        rank=0 if group is None else group.rank,
        world_size=1 if group is None else group.world_size,
    )  # fmt: skip
    report(seen)
    before: StepTrace | None = None
    if has_pre_pass(run) and options.trace and group is None:
        work, before = _traced_pass(run, device)
    else:
        work = Workload.build(run, device.torch_name, group)
    seen = replace(seen, parameters=counted_parameters(work.model))
    if has_pre_pass(run):
        seen = replace(seen, assumptions=(*seen.assumptions, _before_training(before)))
    report(seen)
    for _ in range(max(1, options.warmup)):
        training_step(work)
    seen = replace(seen, promises=check_promises(work.model, work.optimizer, run, forward=work.loss))
    report(seen)
    if group is not None:
        torch.distributed.barrier()
    device.restart_peaks()
    for steps in _timed(work, device, options.steps):
        seen = replace(seen, steps=tuple(steps), spread=spread(steps))
        report(seen)
    seen = replace(seen, memory=untraced_memory(device))
    trace = None
    if options.trace:
        trace, attribution = traced_step(work, device)
        seen = with_trace(seen, trace, attribution, device)
        seen = seen if before is None else with_pass(seen, before)
        report(seen)
    seen = _judged(_looked_at(seen, work, options, trace), device)
    report(seen)
    return seen


def _traced_pass(run: RunSpec, device: Device) -> tuple[Workload, StepTrace]:
    """Build a run with a pass before training, the pass and what comes of it traced."""
    base, data = before_pre_pass(run, device.torch_name)
    names = names_of_model(base, device.type) | _names_of_batch(data)
    built: list[Workload] = []

    def go(tell: Tell) -> None:
        built.append(Workload.through_pre_pass(run, device.torch_name, base, data, lambda phase: tell(phase, "")))

    with device.tracing_kernels():
        trace = device.trace(go, {address: name.nbytes for address, name in names.items()})
    return built[0], trace


def _before_training(trace: StepTrace | None) -> str:
    """Say what the pass before training has needed, if it was traced; all else is of training."""
    told = "" if trace is None else f", in which up to {format_bytes(trace.peak)} were allocated"
    return f"memory and times are those of training; LoRA-GA's gradient pass ran before it{told}"


def _timed(work: Workload, device: Device, number: int) -> Iterator[list[StepTime]]:
    """Take `number` steps without waiting for the device in between; yield the times known so far, when more are."""
    steps: list[StepTime] = []
    waiting: list[Clock] = []
    for _ in range(number):
        clock = device.clock()
        training_step(work, _ticking(clock))
        waiting.append(clock)
        while waiting and waiting[0].ready():
            steps.append(_step_time(waiting.pop(0), work.run))
            yield steps
    steps += [_step_time(clock, work.run) for clock in waiting]
    yield steps


def _ticking(clock: Clock) -> Callable[[str], None]:
    return lambda phase: clock.tick()


def _step_time(clock: Clock, run: RunSpec) -> StepTime:
    *passes, optimizer, clearing = clock.seconds()  # a forward and a backward for each micro-batch
    forward, backward = sum(passes[::2]), sum(passes[1::2])
    return StepTime(
        step_s=forward + backward + optimizer + clearing, forward_s=forward, backward_s=backward,
        optimizer_s=optimizer + clearing, tokens=run.tokens,
    )  # fmt: skip


def traced_step(work: Workload, device: Device) -> tuple[StepTrace, Attribution]:
    """Take one step under the device's tracer; return what the allocator did, and what its blocks are for."""
    buckets = buckets_of(work.wrapper)
    before: Names = {}

    def look() -> dict[int, int]:
        before.clear()
        before.update(_names_before(work, device))
        if device.type == "cpu":
            before.update(without_address(buckets))
        return {address: name.nbytes for address, name in before.items()}

    def prepare() -> dict[int, int]:
        training_step(work)
        return look()

    gradients: Names = {}
    states: Names = {}
    sightings: list[Sighting] = []

    def step(tell: Tell) -> None:
        lookout = Lookout(tell)
        with watching(work.run.shard == "fsdp", lookout), ModuleMarks(work.entry, lookout.tell) as marks:

            def enter(phase: str) -> None:
                if phase == "optimizer":
                    gradients.update(names_of_gradients(work.model))
                elif phase == "zero_grad":
                    states.update(names_of_states(work.model, work.optimizer, device.type))
                marks.enter_phase(phase)

            training_step(work, enter)
        sightings.extend(lookout.sightings)

    # what a method or an optimizer makes anew in each step has to be made under the tracer for its end to be heard
    replaces = any(True for _ in named_states(work.model)) or work.run.resolved_optimizer in REPLACING_STATES
    with device.tracing_kernels(), _settled(work, device):
        trace = device.trace(step, look(), prepare if replaces else None)
    before.update(found_by_size(buckets, before, trace.base))
    head, sizes = _logits(work)
    return trace, Attribution(trace, before, gradients, states, sizes, head, device.granule, sightings)


def _settled(work: Workload, device: Device) -> contextlib.AbstractContextManager[None]:
    in_gloo = work.wrapper is not None and device.type == "cpu"
    return settling_collectives() if in_gloo else contextlib.nullcontext()


def _names_before(work: Workload, device: Device) -> Names:
    names = names_of_model(work.model, device.type)
    names |= names_of_states(work.model, work.optimizer, device.type)
    names |= names_of_gradients(work.model)  # those that nobody clears, of what is trained without an optimizer
    return names | _names_of_batch(work.batch)


def _names_of_batch(batch: Mapping[str, torch.Tensor]) -> Names:
    return {address_of(tensor): Name.of(f"batch.{key}", tensor, Category.ACTIVATIONS) for key, tensor in batch.items()}


def _logits(work: Workload) -> tuple[str | None, frozenset[int]]:
    run = work.run
    return head_of(work.model), logits_sizes([(run.bs, run.seq)], run.model.vocab_size)


def _looked_at(seen: Measurement, work: Workload, options: Options, trace: StepTrace | None) -> Measurement:
    """Take a last step under modes that see every operator: it tells how much is computed, and by which kernels.

    The modes keep a few tensors longer; a step that just fits may not fit under them, which is no end of the run's own.
    """
    look: Look | None = Look()
    try:
        counted = count_work(work, look)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        look, counted = None, Work.of_tokens(work.run.bs * work.run.seq)
        seen = replace(seen, unmodelled=(*seen.unmodelled, _UNCOUNTED))
    if look is not None:
        seen = replace(seen, assumptions=(*seen.assumptions, *never_run(work.run, look.operators)))
    rates = throughput(seen.steps, counted, options.peak_flops)
    found = check_promises(work.model, work.optimizer, work.run, forward=work.loss, trace=trace, look=look)
    return replace(seen, throughput=rates, promises=checked_twice(seen.promises, found))


_UNCOUNTED = (
    "operations are not counted, nor which kernels run: the step that counts them, under modes that keep tensors "
    "longer, ran out of memory"
)


def _judged(seen: Measurement, device: Device) -> Measurement:
    """Hold the peak against the cap where the allocator could not be told of it."""
    peak = None if seen.memory is None else seen.memory.peak_allocated_bytes
    if device.type != "cpu" or device.cap_bytes is None or peak is None or peak <= device.cap_bytes:
        return seen
    short = peak - device.cap_bytes
    return replace(
        seen, outcome="oom", error=f"the step peaks at {peak} bytes, {short} beyond the {device.cap_bytes} of the cap"
    )


def _assumptions(run: RunSpec, device: Device, options: Options) -> tuple[str, ...]:
    lines = [
        f"random weights; {sequences_line(run.padded)}",
        "of the model's output only the loss is held in backward (loss = model(**batch).loss)",
        f"optimizer {run.resolved_optimizer}; gradients are set to None after each step",
        f"{max(1, options.warmup)} steps before the first that counts; the traced step is not among those timed",
    ]
    if run.shard != "none":
        lines.append(f"one of {run.gpus} processes with {run.shard}, each with a batch of its own; defaults of torch's")
    if device.type == "cpu":
        lines.append(
            "the traced step runs PyTorch's own kernels, without oneDNN; host memory that would not be on a device "
            "(numbers, random states) is left out"
        )
    return (*lines, *linear_layers_alone(run))
