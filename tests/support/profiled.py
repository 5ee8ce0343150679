"""What the CPU's allocator does during real computation, as PyTorch's profiler hears it from the allocator itself.

    allocations(program)      every report of the allocator while a program runs, in order
    profile_step(run)         the same over one whole training step in its steady state, without any mode
    operator_calls(program)   the reports within each operator that a dispatch mode would see

The events of the first two are independent of all that a dispatch mode observes, and hold the buffers inside kernels.
The allocator reports each size as requested, unrounded. It reports nothing of what was there before, nor of what
threads other than the caller's allocate for themselves; a running total that does not follow is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.conditions import without_garbage_collection, without_onednn
from lorafa_prof.workload.naming import tensors_in
from lorafa_prof.workload.step import PHASES, Workload, training_step

_PHASE = "phase: "
_BEFORE = "the step before"
_CALL = "call: "


@dataclass(frozen=True)
class Allocation:
    """One report of the allocator."""

    delta: int
    """Bytes requested, negative where they are given back."""
    live: int
    """Bytes in use after it, beyond those in use before the first report."""
    pointer: int
    stack: tuple[str, ...]
    """Names of the profiler's ranges around it, outermost first: operators, nodes of the graph, `record_function`."""

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators around it, outermost first: ("aten::linear", "aten::addmm"); empty outside of any."""
        return tuple(name for name in self.stack if name.startswith("aten::"))

    @property
    def operator(self) -> str:
        """The innermost of them, "" outside of any."""
        return self.operators[-1] if self.operators else ""

    @property
    def phase(self) -> str:
        """One of the phases of a step, in a profiled step; "" outside of them."""
        return next((name.removeprefix(_PHASE) for name in self.stack if name.startswith(_PHASE)), "")


def allocations(program: Callable[[], Any]) -> list[Allocation]:
    """Everything that the CPU's allocator reports while `program` runs; what it returns is let go unseen.

    Raises:
        RuntimeError: the allocator's running total does not follow from its reports.
    """
    with without_garbage_collection():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            result = program()
        del result
    results: Any = prof.profiler.kineto_results
    found: list[tuple[int, Any, tuple[str, ...]]] = []
    for root in results.experimental_event_tree():
        found += _reports(root, ())
    found.sort(key=lambda report: report[0])
    return _checked(found)


@contextlib.contextmanager
def kernels_of_known_size(threads: int = 2) -> Iterator[None]:
    """Runs the CPU's kernels with so many threads and without oneDNN, whose scratch memory has no closed form."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with without_onednn():
            yield
    finally:
        torch.set_num_threads(before)


def _reports(event: Any, stack: tuple[str, ...]) -> Iterator[tuple[int, Any, tuple[str, ...]]]:
    kind = event.tag
    if kind == torch._C._profiler._EventType.Allocation:
        yield event.start_time_ns, event.extra_fields, stack
    inside = (*stack, event.name) if kind == torch._C._profiler._EventType.TorchOp else stack
    for child in event.children:
        yield from _reports(child, inside)


def _checked(reports: list[tuple[int, Any, tuple[str, ...]]]) -> list[Allocation]:
    start = reports[0][1].total_allocated - reports[0][1].alloc_size if reports else 0
    told = live = 0
    born: set[int] = set()
    events = []
    for _, report, stack in reports:
        told += report.alloc_size
        if report.total_allocated - start != told:
            raise RuntimeError(f"the allocator counts {report.total_allocated - start} bytes where {told} are in use")
        if report.alloc_size > 0:
            born.add(report.ptr)
        elif report.ptr in born:
            born.remove(report.ptr)
        else:  # born under an earlier profiler, which is why the end is reported at all
            continue
        live += report.alloc_size
        events.append(Allocation(report.alloc_size, live, report.ptr, stack))
    return events


def made_by_operators(events: list[Allocation]) -> list[Allocation]:
    """The events of what operators allocate, with the running total that follows from them.

    What PyTorch allocates on the host outside of any operator, a dispatch mode sees nothing of, and it is on the host
    when the model is on CUDA: numbers that Python arithmetic wraps into tensors (8 bytes each, and saved where the
    graph wants them), and the states of the random number generator that checkpointing keeps (5056 bytes a segment).
    """
    outside: set[int] = set()
    live, kept = 0, []
    for event in events:
        if event.delta > 0 and not any("::" in name and not name.startswith("autograd::") for name in event.stack):
            outside.add(event.pointer)
        elif event.delta < 0 and event.pointer in outside:
            outside.remove(event.pointer)
        else:
            live += event.delta
            kept.append(dataclasses.replace(event, live=live))
    return kept


@dataclass(frozen=True)
class ProfiledStep:
    """One training step in its steady state, as the allocator saw it; bytes beyond those in use at its start."""

    events: list[Allocation]
    after_forward: int
    """With only the loss held."""
    after_backward: int
    after_optimizer: int
    end: int
    """With gradients and loss let go: 0, unless the step leaves something behind."""

    @property
    def by_operators(self) -> ProfiledStep:
        """The step without what no operator allocates (`made_by_operators`)."""
        return by_phase(made_by_operators(self.events))

    @property
    def curve(self) -> list[int]:
        """Bytes in use after each event."""
        return [event.live for event in self.events]

    @property
    def peak(self) -> Allocation:
        """The first event at which most bytes are in use."""
        return max(self.events, key=lambda event: event.live)


def profile_step(run: RunSpec, steps: int = 3) -> ProfiledStep:
    """Run `steps` real training steps on the CPU and return the profile of the last, without any dispatch mode.

    The step before it is profiled too: the end of what it leaves for the last to replace would not be heard else.
    """
    work = Workload.build(run, "cpu")
    for _ in range(steps - 2):
        training_step(work)

    def step() -> None:
        with record_function(_BEFORE):
            training_step(work)
        with contextlib.ExitStack() as phase:

            def enter(name: str) -> None:
                phase.close()
                phase.enter_context(record_function(_PHASE + name))

            training_step(work, enter)

    events = allocations(step)
    before = [event for event in events if _BEFORE in event.stack]
    left = before[-1].live if before else 0
    return by_phase([dataclasses.replace(event, live=event.live - left) for event in events[len(before) :]])


def by_phase(events: list[Allocation]) -> ProfiledStep:
    """The step that the events make up."""
    reached = dict.fromkeys(PHASES, 0)
    for event in events:
        if event.phase not in reached:
            raise RuntimeError(f"{event} lies outside the phases of a step")
        for phase in PHASES[PHASES.index(event.phase) :]:  # a later one may have no event of its own
            reached[phase] = event.live
    return ProfiledStep(events, *reached.values())


@dataclass
class OperatorCall:
    """One operator as a dispatch mode sees it, and what the allocator did from its call to its return."""

    func: Any
    args: tuple[Any, ...]
    """With each tensor as a meta tensor of the same sizes, strides and dtype."""
    kwargs: dict[str, Any]
    outputs: Any
    events: list[Allocation] = field(default_factory=list)
    new: set[int] = field(default_factory=set)
    """Pointers of the storages of its outputs."""

    @property
    def hidden(self) -> list[Allocation]:
        """The events of buffers that no output has."""
        return [event for event in self.events if event.pointer not in self.new]

    @property
    def order(self) -> list[tuple[int, bool]]:
        """(bytes, is it an output's) of each event in turn."""
        return [(event.delta, event.pointer in self.new) for event in self.events]


def operator_calls(program: Callable[[], Any]) -> list[OperatorCall]:
    """The operators that run under a dispatch mode, each with the allocator's reports while it runs."""
    mode = _Calls()

    def under_mode() -> Any:
        with mode:
            return program()

    for event in allocations(under_mode):
        numbers = [name.removeprefix(_CALL) for name in event.stack if name.startswith(_CALL)]
        if numbers:
            mode.calls[int(numbers[-1])].events.append(event)
    return mode.calls


class _Calls(TorchDispatchMode):
    """Puts a numbered range of the profiler around every operator, and notes where its outputs lie."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.calls: list[OperatorCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = OperatorCall(func, as_meta(args), as_meta(kwargs), None)
        with record_function(f"{_CALL}{len(self.calls)}"):
            self.calls.append(call)
            out = func(*args, **kwargs)
        call.new = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(out)}
        call.outputs = as_meta(out)
        return out


def as_meta(value: Any) -> Any:
    """The value with every tensor in it replaced by one on meta with the same sizes, strides and dtype."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, dict):
        return {key: as_meta(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(as_meta, value))
    return value
