"""What a recorded step is made of, and how it becomes the trace of several steps on a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorafa_prof.ledger import Category
from lorafa_prof.simulate.calls import CallSpec
from lorafa_prof.simulate.kernels.workspaces import OUTPUTS, Workspace
from lorafa_prof.simulate.platforms import Platform
from lorafa_prof.simulate.trace import Block, Trace
from lorafa_prof.specs import RunSpec


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an operator: of one that may allocate inside, or whose work is noted."""

    spec: int
    """Which of the recording's `specs`."""
    born: tuple[int, ...]
    """Blocks of its outputs."""
    op: str
    module: str
    phase: str
    """Of its blocks: that of its segment, or RECOMPUTE."""
    stream: int = 0
    """CUDA stream on which it runs."""


#: The phase of what checkpointing computes once more, within the segment of the backward.
RECOMPUTE = "recompute"

Event = int | Call
"""i: block i is born; ~i: block i dies; or a call, with which its outputs are born."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Events in a row that belong to one phase."""

    phase: str
    events: list[Event] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    """Calls whose work is noted, in order: of operators that compute, or of all of them."""

    def births(self) -> set[int]:
        """The blocks that are born in it."""
        plain = {event for event in self.events if isinstance(event, int) and event >= 0}
        return plain.union(*(event.born for event in self.events if isinstance(event, Call)))

    def deaths(self) -> set[int]:
        """The blocks that die in it."""
        return {~event for event in self.events if isinstance(event, int) and event < 0}

    def with_deaths_of(self, others: Mapping[int, int]) -> Segment:
        """Return the segment with the blocks of `others` in the place of those that die in it."""
        deaths = {~block: ~other for block, other in others.items()}
        return replace(self, events=[deaths.get(e, e) if isinstance(e, int) else e for e in self.events])


def micro_batches(run: RunSpec) -> int:
    """Return how many of a step's micro-batches are recorded: from the second on they are alike.

    Under DDP but for the last, which reduces the gradients.
    """
    return min(run.accumulation, 3 if run.shard == "ddp" else 2)


@dataclass(frozen=True)
class Recording:
    """One run, recorded: the events of its first step, and of any later one."""

    run: RunSpec
    blocks: Sequence[Block]
    specs: Sequence[CallSpec]
    load: Segment
    first: tuple[Segment, ...]
    """The first step: forward, backward, the optimizer that makes its states, zero_grad; a second one, where the model
    keeps something of it."""
    again: tuple[Segment, ...]
    """Any later step; empty where steps are not alike."""
    operators: tuple[str, ...]
    """Every operator that ran, in order."""
    parameters: dict[str, int]
    """"total" and "trainable" elements."""
    managed: int | None = None
    """Bytes in CUDA's managed memory, outside the allocator; None: nothing is kept there."""
    replaced: Mapping[int, int] = field(default_factory=dict)
    """Blocks that a repeated step keeps, and the blocks from before whose place each takes."""
    collectives: tuple[tuple[str, int], ...] = ()
    """(kind, bytes of all that it is about) of what this rank and the others tell each other in a repeated step."""
    table_elements: int | None = None
    """Elements of the input embedding table, 0 where the output head multiplies by it; None: not known."""
    notes_all: bool = False
    """Whether the calls of all operators are noted, not only of those that compute."""

    @property
    def steps(self) -> int:
        """Steps that are recorded one by one, before the repetitions."""
        return sum(segment.phase == "forward" for segment in self.first) // micro_batches(self.run)

    def trace(self, steps: int, platform: Platform) -> Trace:
        """Return the events of the run up to the end of step number `steps`, with what kernels allocate inside.

        A block of a repeated step is a new one in each repetition.
        """
        return trace_of([self] * max(1, 1 + steps - self.steps), platform)


def trace_of(steps: Sequence[Recording], platform: Platform) -> Trace:
    """Return the events of a run whose steps have different shapes: recordings of one model, one a step.

    Weights are loaded and the optimizer's states made as the first of them says.

    Raises:
        ValueError: a later one is of a model whose steps are not alike.
    """
    if not all(recording.again for recording in steps[1:]):
        raise ValueError("steps that are not alike cannot follow others")
    writer = _Writer(platform)
    for segment in (steps[0].load, *steps[0].first):
        writer.write(segment, steps[0])
    for recording in steps[1:]:
        for segment in recording.again:
            writer.write(segment, recording)
        writer.take_places(recording.replaced)
    return writer.trace()


class _Writer:
    """Writes segments one after the other, each block anew when its segment comes again."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._libraries = platform.new_process()
        self._blocks: list[Block] = []
        self._events: list[int] = []
        self._marks: list[tuple[int, str]] = []
        self._newest: dict[int, int] = {}
        self._workspaces: dict[CallSpec, Sequence[Workspace]] = {}

    def write(self, segment: Segment, recording: Recording) -> None:
        self._marks.append((len(self._events), segment.phase))
        blocks, newest, events = self._blocks, self._newest, self._events
        source = recording.blocks
        for event in segment.events:
            if not isinstance(event, int):
                self._write_call(event, segment.phase, recording)
            elif event >= 0:
                newest[event] = len(blocks)
                events.append(len(blocks))
                blocks.append(source[event])
            else:
                events.append(~newest[~event])

    def take_places(self, replaced: Mapping[int, int]) -> None:
        """End a repeated step: what it has kept is what the next one finds in the place of what was there before."""
        for kept, before in replaced.items():
            self._newest[before] = self._newest[kept]

    def _write_call(self, call: Call, phase: str, recording: Recording) -> None:
        """Write an operator's outputs, and the births and deaths of what its kernel and its library take."""
        spec = recording.specs[call.spec]
        buffers = self._inside(spec)
        alive: dict[int, str | None] = {}

        def bear(after_outputs: bool) -> None:
            for buffer in buffers:
                if buffer.after_outputs is after_outputs:
                    self._free(alive, buffer.name)
                    alive[self._born_inside(buffer, call)] = buffer.freed_before

        bear(after_outputs=False)
        self._free(alive, OUTPUTS)
        for block in call.born:
            self._newest[block] = len(self._blocks)
            self._events.append(len(self._blocks))
            self._blocks.append(recording.blocks[block])
        for buffer in self._libraries.at(spec, phase):
            self._born_inside(buffer, call)
        bear(after_outputs=True)
        self._events.extend(~block for block in reversed(alive))  # as C++ destroys local variables

    def _inside(self, spec: CallSpec) -> Sequence[Workspace]:
        if spec not in self._workspaces:
            self._workspaces[spec] = self._platform.workspaces(spec)
        return self._workspaces[spec]

    def _free(self, alive: dict[int, str | None], what_comes: str) -> None:
        for block in [block for block, freed_before in alive.items() if freed_before == what_comes]:
            del alive[block]
            self._events.append(~block)

    def _born_inside(self, buffer: Workspace, call: Call) -> int:
        number = len(self._blocks)
        self._blocks.append(
            Block(
                nbytes=buffer.nbytes, shape=(buffer.nbytes,), dtype="uint8", op=f"{call.op}: {buffer.name}",
                module=call.module, phase=call.phase, category=Category.WORKSPACES, stream=call.stream,
            )
        )  # fmt: skip
        self._events.append(number)
        return number

    def trace(self) -> Trace:
        return Trace(self._blocks, self._events, [*self._marks, (len(self._events), "end")])


def repeatable(recording: Recording) -> Recording:
    """Return the recording with what a step replaces, or without its repetition where a step keeps a storage.

    AdaLoRA makes its importances anew in each step: what it keeps takes the place of what there was, tensor by tensor.
    """
    recording = _continued(recording)
    born, gone = _births(recording.again), _deaths(recording.again)
    ended = gone - born
    before = _by_identity(recording, ended)
    replaced = {block: (before.get(_identity(recording.blocks[block])) or [-1]).pop() for block in sorted(born - gone)}
    if sorted(replaced.values()) != sorted(ended) or not ended <= _left(recording):
        return replace(recording, again=())
    return replace(recording, replaced=replaced)


def _continued(recording: Recording) -> Recording:
    """Let a repetition that was recorded steps later end what the first step has left in its place."""
    there = _left(recording)
    left = _by_identity(recording, there)
    strange = sorted(_deaths(recording.again) - _births(recording.again) - there)
    known = {block: found.pop() for block in strange if (found := left.get(_identity(recording.blocks[block])))}
    return replace(recording, again=tuple(segment.with_deaths_of(known) for segment in recording.again))


def _by_identity(recording: Recording, blocks: Iterable[int]) -> dict[object, list[int]]:
    """Return blocks by what they are; those that are alike, as scalars of a weight and of its bias, the first last."""
    found: dict[object, list[int]] = {}
    for block in sorted(blocks, reverse=True):
        found.setdefault(_identity(recording.blocks[block]), []).append(block)
    return found


def _left(recording: Recording) -> set[int]:
    """The blocks that are there after the first step."""
    before = (recording.load, *recording.first)
    return _births(before) - _deaths(before)


def _births(segments: Iterable[Segment]) -> set[int]:
    return set[int]().union(*(segment.births() for segment in segments))


def _deaths(segments: Iterable[Segment]) -> set[int]:
    return set[int]().union(*(segment.deaths() for segment in segments))


def _identity(block: Block) -> object:
    """Return what a tensor has in common with the one that takes its place: its name; without one nothing."""
    return (block.owner, block.name, block.nbytes) if block.name else object()
