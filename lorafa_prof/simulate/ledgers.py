"""What a trace says of one moment: which blocks are alive in it, alike ones together, and what the moment is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lorafa_prof.ledger import INITIALISATION, PASS, Category, Ledger, MemoryItem
from lorafa_prof.simulate.recording import RECOMPUTE
from lorafa_prof.simulate.trace import Block, Trace
from lorafa_prof.workload.lora_ga import BACKWARDS
from lorafa_prof.workload.naming import LOSS

#: What people call the phases that have another name in the trace.
_PHASES = {"optimizer": "optimizer step"}


def phase_name(phase: str, module: str) -> str:
    """Return the phase of what `module` does in `phase`, in words; the loss of a step counts as a phase of its own."""
    if phase in PASS:
        return phase
    return LOSS if module == LOSS else _PHASES.get(phase, phase)


def ledger_at(trace: Trace, position: int, sizes: Mapping[int, int]) -> Ledger:
    """Return what is alive after the event at `position`.

    Args:
        trace: has the blocks.
        position: index of an event.
        sizes: block -> bytes that the allocator counts for it, of all that are alive.
    """
    groups: dict[Kind, list[int]] = {}
    for number, size in sizes.items():
        groups.setdefault(_kind(trace.blocks[number]), []).append(size)
    event = trace.events[position]
    born = trace.blocks[event if event >= 0 else ~event]
    return Ledger(moment(born), tuple(_item(*group) for group in groups.items()))


def saved_bytes(trace: Trace) -> int:
    """Return what autograd keeps at the end of the last forward, unrounded; not the batch, nor the loss."""
    kept = (Category.ACTIVATIONS, Category.LOGITS)
    alive = _alive_before(trace, "backward")
    return sum(b.nbytes for b in alive if b.phase == "forward" and b.category in kept and b.name != LOSS)


def gradient_bytes(trace: Trace, rounded: Callable[[int], int]) -> int:
    """Return what the gradients take when the last optimizer step begins, each `rounded` as the allocator does it."""
    alive = _alive_before(trace, "optimizer")
    return sum(rounded(block.nbytes) for block in alive if block.category is Category.GRADIENTS)


def _alive_before(trace: Trace, phase: str) -> list[Block]:
    """Return what is alive when a phase of the last step begins."""
    return [trace.blocks[number] for number in trace.alive_at(trace.position(phase) - 1)]


def moment(block: Block) -> str:
    """Return where in the step a block was born, in words: "recompute: model.layers.0.mlp"."""
    phase = _PHASES.get(block.phase, block.phase)
    if block.module == LOSS:
        phase = {"forward": "loss", "backward": "loss backward"}.get(block.phase, phase)
    return f"{phase}: {block.module}" if block.module else phase


Kind = tuple[str, str, Category, tuple[int, ...], str, int]


def _kind(block: Block) -> Kind:
    """Return what blocks of alike layers have in common; * stands for the layer's number."""
    path = block.owner if block.name else block.module
    module = ".".join("*" if part.isdigit() else part for part in path.split("."))
    told = (*BACKWARDS, RECOMPUTE, "optimizer", INITIALISATION)
    made = f"{block.op}, {block.phase}" if block.phase in told else block.op
    name = block.name or made
    return module, name, block.category, block.shape, block.dtype, block.nbytes


def _item(kind: Kind, sizes: list[int]) -> MemoryItem:
    module, name, category, shape, dtype, nbytes = kind
    return MemoryItem(
        module=module, tensor=name, category=category, shape=f"({', '.join(map(str, shape))})", dtype=dtype,
        formula=str(nbytes), count=len(sizes), nbytes=sum(sizes),
    )  # fmt: skip
