"""What each byte at the peak is for: observed blocks, named by the addresses of tensors and by when they live.

A block's category follows from facts that need no model of the step:

    weights, adapters, batch    their storages' addresses, before the step
    optimizer                   the addresses of the optimizer's states, before and after it steps
    gradients                   the addresses of the parameters' gradients when the backward is over
    workspaces                  there before the step and no tensor of the run; come and gone within one operator;
                                buffers in which several processes communicate, as they were seen
    logits                      made by the loss, or as large as the logits and made by the head or around it
    activations                 made in the forward and still there at its end; made again in a recomputation
    temporaries                 the rest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lorafa_prof.ledger import Category, Ledger, MemoryItem
from lorafa_prof.measure.communication import Sighting
from lorafa_prof.measure.names import Name, Names
from lorafa_prof.measure.trace import PHASE_NAMES, RECOMPUTE, Mark, StepTrace
from lorafa_prof.workload.naming import LOSS


@dataclass(frozen=True, slots=True)
class Block:
    """A block that came within the step."""

    requested: int
    address: int
    mark: Mark
    mark_number: int
    operator: str
    inside: bool
    """Whether it came and went within one call of an operator."""
    born: int
    died: int
    """Index of the event; past the last one, if it stayed."""

    def alive_after(self, event: int) -> bool:
        """Return whether it is there when that event is over."""
        return self.born <= event < self.died


def blocks_of(trace: StepTrace) -> tuple[list[Block], dict[int, int]]:
    """Return the blocks of a step, and of those there before which event freed them, by address."""
    blocks: list[Block] = []
    freed: dict[int, int] = {}
    open_blocks: dict[int, tuple[int, int]] = {}
    number = 0
    for index, event in enumerate(trace.events):
        while number + 1 < len(trace.marks) and trace.marks[number + 1].position <= index:
            number += 1
        if event.nbytes > 0:
            open_blocks[event.address] = (index, number)
        elif event.address in open_blocks:
            born, at = open_blocks.pop(event.address)
            blocks.append(_block(trace, born, at, index))
        else:
            freed[event.address] = index
    blocks += [_block(trace, born, at, len(trace.events)) for born, at in open_blocks.values()]
    return sorted(blocks, key=lambda block: block.born), freed


def _block(trace: StepTrace, born: int, mark: int, died: int) -> Block:
    event = trace.events[born]
    inside = event.call != 0 and died < len(trace.events) and trace.events[died].call == event.call
    return Block(event.nbytes, event.address, trace.marks[mark], mark, event.operator, inside, born, died)


@dataclass(frozen=True)
class Attribution:
    """A traced step with the names of what was at its addresses."""

    trace: StepTrace
    before: Names
    """Model, optimizer's states and batch, before the step."""
    gradients: Names
    """When the backward was over."""
    states: Names
    """When the optimizer had stepped."""
    logits_sizes: frozenset[int]
    """Bytes that a tensor of logits has, whole or shifted by one, in any dtype."""
    head: str | None
    """Path of the module that makes the logits."""
    granule: int
    """The device's allocator rounds up to a multiple of this."""
    sightings: Sequence[Sighting] = ()
    """Buffers of communication, when they were there."""

    @cached_property
    def _seen(self) -> dict[int, list[tuple[int, Name]]]:
        """By address, what was seen there, and the last event before that."""
        seen: dict[int, list[tuple[int, Name]]] = {}
        for sighting in self.sightings:
            event = self.trace.marks[sighting.mark].position - 1
            for address, name in sighting.names.items():
                seen.setdefault(address, []).append((event, name))
        return seen

    @cached_property
    def _blocks(self) -> tuple[list[Block], dict[int, int]]:
        return blocks_of(self.trace)

    @cached_property
    def _ends(self) -> dict[str, int]:
        """The last event of each phase."""
        return {phase: self.trace.end_of(phase) - 1 for phase in ("forward", "backward", "optimizer")}

    @cached_property
    def _recomputed_until(self) -> dict[int, int]:
        """For each mark within a recomputation, the last event before anything else is made.

        Checkpointing ends a recomputation by an exception, which holds the variables of all that it leaves until it is
        caught: what dies before the next birth was never kept.
        """
        marks, events = self.trace.marks, self.trace.events
        until: dict[int, int] = {}
        end = len(events)
        for number in reversed(range(len(marks))):
            if marks[number].phase == RECOMPUTE:
                until[number] = end - 1
                continue
            end = marks[number].position
            while end < len(events) and events[end].nbytes < 0:
                end += 1
        return until

    @cached_property
    def _forward_until(self) -> dict[int, int]:
        """For each mark within a forward, that forward's last event: accumulated batches have several in a step."""
        until: dict[int, int] = {}
        end = len(self.trace.events)
        for number, mark in reversed(list(enumerate(self.trace.marks))):
            if mark.phase == "forward":
                until[number] = end - 1
            else:
                end = mark.position
        return until

    def name_of(self, block: Block) -> Name:
        """Return what a block of the step is for."""
        for names, end in ((self.gradients, "backward"), (self.states, "optimizer")):
            name = names.get(block.address)
            if name is not None and block.alive_after(self._ends[end]):
                return name
        for event, name in self._seen.get(block.address, ()):
            if block.alive_after(event):
                return name
        category, mark = self._category(block), block.mark
        tensor = block.operator + ("" if mark.phase == "forward" else f", {mark.phase}")
        return Name(category, mark.module, tensor, (), "", block.requested)

    def _category(self, block: Block) -> Category:
        mark = block.mark
        if block.inside:
            return Category.WORKSPACES
        if mark.module == LOSS or (self._may_be_logits(mark) and block.requested in self.logits_sizes):
            return Category.LOGITS
        if mark.phase == "forward" and block.alive_after(self._forward_until[block.mark_number]):
            return Category.ACTIVATIONS
        if mark.phase == RECOMPUTE and block.alive_after(self._recomputed_until[block.mark_number]):
            return Category.ACTIVATIONS
        return Category.TEMPORARIES

    def _may_be_logits(self, mark: Mark) -> bool:
        """Return whether a block was made where logits are: what an optimizer makes may have their size too."""
        return mark.module in ("", self.head) and mark.phase in ("forward", "backward", RECOMPUTE)

    def saved_activation_bytes(self) -> int:
        """Return what autograd keeps at the end of the forward, unrounded; not the batch, nor the loss.

        The loss is what the loss makes and the caller holds, when the backward is over. Weights that are still gathered
        are no activations.
        """
        begin, end = self._ends["forward"], self._ends["backward"]
        made = (b for b in self._blocks[0] if b.mark.phase == "forward" and b.alive_after(begin))
        kept = [b for b in made if not self._communicates(b)]
        return sum(b.requested for b in kept if not (b.mark.module == LOSS and b.alive_after(end)))

    def _communicates(self, block: Block) -> bool:
        seen = self._seen.get(block.address, ())
        return any(name.category is Category.WORKSPACES and block.alive_after(event) for event, name in seen)

    def gradient_bytes(self) -> int:
        """Return what the gradients take when the backward is over, rounded."""
        end = self._ends["backward"]
        found = (b for b in self._blocks[0] if b.address in self.gradients and b.alive_after(end))
        return sum(self._rounded(block.requested) for block in found)

    def ledger(self) -> Ledger:
        """Return what is alive at the peak. What the allocator counts beyond its blocks is an item of its own."""
        event = self.trace.peak_event()
        blocks, freed = self._blocks
        groups: dict[tuple[object, ...], list[tuple[Name, int]]] = {}

        def count(name: Name, nbytes: int) -> None:
            module = ".".join("*" if part.isdigit() else part for part in name.module.split("."))
            groups.setdefault((module, *_alike(name), nbytes), []).append((name, nbytes))

        for address, there in self.trace.base.items():
            if freed.get(address, event + 1) > event:
                count(self.before.get(address, _UNNAMED), there.allocated)
        for block in blocks:
            if block.alive_after(event):
                count(self.name_of(block), self._rounded(block.requested))
        items = [_item(str(key[0]), found) for key, found in groups.items()]
        rest = self.trace.peak - sum(item.nbytes for item in items)
        if rest:
            items.append(_rest(rest))
        return Ledger(self.moment(event), tuple(items))

    def moment(self, event: int) -> str:
        """Return the phase and the module of an event, in words."""
        mark = self.trace.mark_of(max(event, 0))
        phase = PHASE_NAMES.get(mark.phase, mark.phase)
        if mark.module == LOSS:
            phase = {"forward": "loss", "backward": "loss backward"}.get(mark.phase, phase)
        return f"{phase}: {mark.module}" if mark.module else phase

    def _rounded(self, requested: int) -> int:
        return -(-requested // self.granule) * self.granule


_UNNAMED = Name(Category.WORKSPACES, "", "kept by libraries", (), "", 0)


def _alike(name: Name) -> tuple[object, ...]:
    return name.tensor, name.category, name.shape, name.dtype


def _item(module: str, found: Sequence[tuple[Name, int]]) -> MemoryItem:
    name, nbytes = found[0]
    return MemoryItem(
        module=module, tensor=name.tensor, category=name.category, shape=f"({', '.join(map(str, name.shape))})",
        dtype=name.dtype, formula=str(name.nbytes or nbytes), count=len(found), nbytes=nbytes * len(found),
    )  # fmt: skip


def _rest(nbytes: int) -> MemoryItem:
    """What the allocator hands out beyond a request, where the rest of a free block is too small to be split off."""
    return MemoryItem(
        module="", tensor="unsplit remainders of blocks", category=Category.TEMPORARIES, shape="()", dtype="",
        formula=str(nbytes), count=1, nbytes=nbytes,
    )  # fmt: skip
