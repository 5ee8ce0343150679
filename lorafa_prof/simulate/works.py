"""What a recorded step computes and moves, operator by operator, and the sums of its floating-point operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from lorafa_prof.results import Throughput
from lorafa_prof.simulate.calls import CallSpec
from lorafa_prof.simulate.kernels.work import packet_name, works_of
from lorafa_prof.simulate.kernels.work.foreach import is_foreach
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.recording import RECOMPUTE, Call, Recording, Segment, micro_batches
from lorafa_prof.speed.work import OpWork
from lorafa_prof.workload.naming import LOSS

#: Phases whose operations are the model's; those of the optimizer are not counted (`measure` does not see them).
_PASSES = ("forward", LOSS, "backward", RECOMPUTE)


def step_works(recording: Recording, device: DeviceTraits, *, one_by_one: bool = False) -> list[OpWork]:
    """Return the work of a repeated step, in order: of all operators, if the recording has noted all.

    Of several micro-batches the third and later ones are what the second is.

    Args:
        recording: of `record(..., notes_all=True)` for all operators; otherwise of those that compute.
        device: whose kernels run.
        one_by_one: operators on lists of tensors run over one tensor after the other, as on the CPU.
    """
    known: dict[int, tuple[OpWork, ...]] = {}

    def of(call: Call) -> tuple[OpWork, ...]:
        if call.spec not in known:
            spec = recording.specs[call.spec]
            works = works_of(spec, device)
            known[call.spec] = tuple(_one_by_one(spec, work) for work in works) if one_by_one else works
        return known[call.spec]

    return [
        replace(work, phase=_phase(call), module=call.module)
        for segment in _repeated(recording)
        for call in segment.calls
        for work in of(call)
    ]


def _one_by_one(spec: CallSpec, work: OpWork) -> OpWork:
    if not is_foreach(packet_name(spec.func)) or not spec.args or not isinstance(spec.args[0], tuple):
        return work
    return replace(work, kernels=len(spec.args[0]))


def _phase(call: Call) -> str:
    return LOSS if call.module == LOSS and call.phase == "forward" else call.phase


def checkpointing_lines(recording: Recording) -> tuple[str, ...]:
    """Return that full checkpointing has no effect, where the model runs no layer once more; nothing where it does.

    transformers 4.57.1 says of GPT-BigCode that it supports checkpointing, and its loop over the layers leaves it out.
    """
    run = recording.run
    if run.checkpointing != "full" or any(call.phase == RECOMPUTE for s in _repeated(recording) for call in s.calls):
        return ()
    line = (
        f"--checkpointing full has no effect: the installed transformers runs no layer of {run.model.name} once more, "
        "and keeps what it would have made again"
    )
    return (line,)


def _repeated(recording: Recording) -> Iterator[Segment]:
    """Yield the segments of a step in its steady state, each micro-batch of it."""
    segments = recording.again or _last_step(recording)
    recorded, asked = micro_batches(recording.run), recording.run.accumulation
    backwards = [number for number, segment in enumerate(segments) if segment.phase == "backward"]
    end = backwards[min(recorded, 2) - 1] + 1
    yield from segments[:end]
    yield from segments[end - 2 : end] * (asked - recorded)
    yield from segments[end:]


def _last_step(recording: Recording) -> tuple[Segment, ...]:
    """Return the last step of a model whose steps are not alike; of its two optimizer steps the second."""
    begins = [number for number, segment in enumerate(recording.first) if segment.phase == "forward"]
    step = recording.first[begins[-micro_batches(recording.run)] :]
    last = max((number for number, segment in enumerate(step) if segment.phase == "optimizer"), default=-1)
    return tuple(s for number, s in enumerate(step) if s.phase != "optimizer" or number == last)


def step_throughput(recording: Recording, device: DeviceTraits) -> Throughput:
    """Return the arithmetic of a repeated step; times are not known here."""
    flops, run = Flops.of(step_works(recording, device)), recording.run
    by_6n = None
    if recording.table_elements is not None:
        by_6n = 6 * (recording.parameters["total"] - recording.table_elements) * run.bs * run.seq * run.accumulation
    return Throughput(
        model_flops=flops.model, executed_flops=flops.executed, model_flops_6n=by_6n,
        model_flops_causal=flops.model_causal, executed_flops_causal=flops.executed_causal,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of forward and backward."""

    model: int
    """That the method needs: nothing that is computed again."""
    executed: int
    model_causal: int
    """Of attention by a causal kernel only the scores up to the diagonal."""
    executed_causal: int

    @classmethod
    def of(cls, works: Iterable[OpWork]) -> Flops:
        """Add up the operations of a step."""
        passes = [work for work in works if work.flops and work.phase in _PASSES]
        once = [work for work in passes if work.phase != RECOMPUTE]
        return cls(
            model=sum(work.needed_flops for work in once),
            executed=sum(work.flops for work in passes),
            model_causal=sum(work.needed_causal_flops for work in once),
            executed_causal=sum(work.causal_flops for work in passes),
        )
