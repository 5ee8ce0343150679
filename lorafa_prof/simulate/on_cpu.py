"""The prediction for a step on the CPU: what `measure --device cpu` observes.

The CPU's allocator neither rounds nor caches: allocated bytes are those requested, nothing is reserved. The first step
makes the optimizer's states; the second, which is predicted, is any step of the steady state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import INITIALISATION, PRE_PASS, Ledger
from lorafa_prof.lorafa import LoraFA
from lorafa_prof.results import Memory, Prediction
from lorafa_prof.results.figures import sequences_line
from lorafa_prof.simulate.cpu_platform import Cpu
from lorafa_prof.simulate.engine import communicated, shared_assumptions, sharing_of
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.ledgers import gradient_bytes, ledger_at, phase_name, saved_bytes
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.refusals import described
from lorafa_prof.simulate.trace import Trace
from lorafa_prof.simulate.works import checkpointing_lines, step_throughput, step_works
from lorafa_prof.specs import PAGED, ModelSpec, RunSpec
from lorafa_prof.speed import step
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.work import OpWork
from lorafa_prof.workload import Workload
from lorafa_prof.workload.checkpointing import never_run
from lorafa_prof.workload.conditions import without_onednn
from lorafa_prof.workload.lora_ga import has_pre_pass, linear_layers_alone
from lorafa_prof.workload.optimizers import make_optimizer, paged_on_cpu
from lorafa_prof.workload.parallel import Group
from lorafa_prof.workload.versions import installed_versions


def build_for_cpu(run: RunSpec, device: str, group: Group | None = None) -> Workload:
    """Build the workload as it is on the CPU, on another `device` ("meta"), where a group shares it as one of that.

    PEFT makes adapters on the host, in fp32, and gives them the device and the dtype of their layer's weights, which
    makes AdaLoRA's ranknum a trained parameter. Where nothing changes by that it stays frozen, as PEFT means it to be.
    LoRA-FA's optimizer steps one module after the other there.

    Raises:
        UnsupportedError: AdaLoRA in fp32 by several processes, or as `Workload.build`.
    """
    freezes = run.method.name == "adalora" and run.dtype == "fp32" and run.resolved_quant == "none"
    if freezes and group is not None:  # they share what is trained as soon as it is built
        raise UnsupportedError("AdaLoRA over fp32 weights is not simulated for several processes on the CPU")
    work = Workload.build(run, device, group)
    if isinstance(work.optimizer, LoraFA):
        work.optimizer.batched = False
    if not freezes:
        return work
    for name, parameter in work.model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return replace(work, optimizer=make_optimizer(work.model, run))


def predict_on_cpu(run: RunSpec, threads: int, profile: DeviceProfile | None = None) -> Prediction:
    """Simulate a step of `run` on the CPU, with PyTorch's own kernels in so many threads.

    Args:
        run: the configuration.
        threads: what `torch.get_num_threads()` says where it runs; buffers inside kernels depend on it.
        profile: of that CPU, by which the step is timed; None: no time is given.

    Raises:
        UnsupportedError: what no real step is built for, what meta tensors cannot run, or int8 weights: what
            bitsandbytes allocates for them on the CPU is not modelled; paged optimizer states.
        BadInputError: options that contradict each other.
        MissingComponentError: a library is not installed.
    """
    if run.resolved_quant == "int8":
        raise UnsupportedError("a step with int8 weights is not simulated for the CPU, only for CUDA")
    if run.resolved_optimizer in PAGED:
        raise paged_on_cpu(run.resolved_optimizer)
    platform = Cpu(threads)
    with without_onednn():
        recording = record(run, platform, build_for_cpu, notes_all=profile is not None)
        trace = recording.trace(2, platform)
    levels = _levels(trace)
    ledger = _ledger(trace, levels)
    traits = DeviceTraits(None, None)
    flops = step_throughput(recording, traits)
    works = [] if profile is None else step_works(recording, traits, one_by_one=True)
    times = [] if profile is None else [step.StepTime.of(works, profile, sharing_of(recording, link=None))]
    return Prediction(
        engine="simulate",
        run=run,
        versions={"engine": "simulate", **installed_versions(quantized=run.resolved_quant != "none")},
        memory=_memory(run, trace, levels, ledger),
        throughput=times[0].throughput(flops, run) if times else flops,
        parameters=recording.parameters,
        assumptions=(
            "the second step, on the CPU; gradients are set to None after each",
            sequences_line(run.padded),
            "of the model's output only the loss is held in backward (loss = model(**batch).loss)",
            f"optimizer {run.resolved_optimizer}",
            *described(run),
            *shared_assumptions(run),
            *linear_layers_alone(run),
            *never_run(run, recording.operators),
            *checkpointing_lines(recording),
            f"PyTorch's own kernels, without oneDNN, in {threads} threads",
            *step.assumptions(times),
        ),
        unmodelled=(
            _ON_ANY_HOST,
            *_outside_the_catalog(run),
            *([_DECOMPOSITIONS] if has_pre_pass(run) else []),
            *([_EIGHT_BIT] if run.resolved_optimizer == "adamw-8bit" else []),
            *(step.unmodelled(times, run) or _UNTIMED),
        ),
        ledger=ledger,
        communication_bytes=communicated(recording),
    )


def works_on_cpu(run: RunSpec, threads: int) -> list[OpWork]:
    """Return the operations of a step of `run` on the CPU, in the order in which they are issued.

    Raises:
        as `predict_on_cpu`.
    """
    with without_onednn():
        recording = record(run, Cpu(threads), build_for_cpu, notes_all=True)
    return step_works(recording, DeviceTraits(None, None), one_by_one=True)


def _outside_the_catalog(run: RunSpec) -> tuple[str, ...]:
    """Say what no real step of each architecture has been compared for; of those of the catalog one has.

    DeBERTa-v2 was found lower by what its gathers and scatters take, Mamba by buffers of its convolutions.
    """
    if isinstance(run.model, ModelSpec):
        return ()
    return (f"buffers inside CPU kernels that no model of the catalog runs, where {run.model.name} runs some",)


_DECOMPOSITIONS = "the phase in which LoRA-GA decomposes gradients, whose buffers LAPACK decides"
_EIGHT_BIT = (
    "what bitsandbytes' 8-bit AdamW makes for a moment in its step on the CPU, where its kernels are made of torch's: "
    "the optimizer's step has no figure, and a peak that comes in it is higher"
)
_UNTIMED = ("step time and MFU",)
_ON_ANY_HOST = (
    "what stays on the host whatever the device: numbers that Python arithmetic wraps into tensors, random states that "
    "checkpointing keeps"
)


def _levels(trace: Trace) -> list[int]:
    """Return the bytes in use after each event."""
    sizes = trace.sizes
    return list(itertools.accumulate(sizes[event] if event >= 0 else -sizes[~event] for event in trace.events))


def _ledger(trace: Trace, levels: Sequence[int]) -> Ledger:
    """Return what is alive at the first moment of the last step in which most is."""
    position = max(range(trace.position("forward"), len(levels)), key=levels.__getitem__)
    return ledger_at(trace, position, {number: trace.blocks[number].nbytes for number in trace.alive_at(position)})


def _memory(run: RunSpec, trace: Trace, levels: Sequence[int], ledger: Ledger) -> Memory:
    peak = ledger.total()
    return Memory(
        **Memory.parts_from(ledger),
        peak_requested_bytes=peak,
        peak_allocated_bytes=peak,
        peak_reserved_bytes=None,
        context_bytes=None,
        peak_device_bytes=None,
        peak_moment=ledger.moment,
        saved_activations_bytes=saved_bytes(trace),
        trained_gradients_bytes=gradient_bytes(trace, lambda nbytes: nbytes),
        moments=_moments(run, trace, levels),
    )


def _moments(run: RunSpec, trace: Trace, levels: Sequence[int]) -> dict[str, int]:
    """Return the most that is in use in each phase of the last step and of a pass before the first.

    What is there when a phase begins is included. Of the decompositions after the pass there is no figure, since they
    work in buffers whose sizes LAPACK decides; nor of the step of 8-bit AdamW.
    """
    found = _highest(trace, levels, trace.position("forward"), len(levels))
    if has_pre_pass(run):
        found = _highest(trace, levels, trace.position(PRE_PASS, 0), trace.position(INITIALISATION, 0)) | found
    if run.resolved_optimizer == "adamw-8bit":
        del found[phase_name("optimizer", "")]
    return found


def _highest(trace: Trace, levels: Sequence[int], first: int, end: int) -> dict[str, int]:
    """Return the most that is in use in each phase between two positions."""
    marks = [(at, phase) for at, phase in trace.marks if first <= at < end or (at == end == len(levels))]
    highest = {phase_name(phase, ""): levels[at - 1] for at, phase in marks if phase != "end"}
    for event, level in zip(trace.events[first:end], levels[first:end], strict=True):
        block = trace.blocks[event if event >= 0 else ~event]
        if event >= 0:
            name = phase_name(block.phase, block.module)
            highest[name] = max(highest.get(name, 0), level)
    return highest
