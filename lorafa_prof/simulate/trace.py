"""The memory events of a run as plain data: which storages there are, and the order in which they come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafa_prof.ledger import Category


@dataclass(frozen=True, slots=True)
class Block:
    """One storage, or one buffer inside a kernel or library."""

    nbytes: int
    """Bytes that are asked of the allocator, unrounded."""
    shape: tuple[int, ...]
    dtype: str
    op: str
    """The operator that made it, or the name of what was there before."""
    module: str
    """Path of the module that was executing."""
    phase: str
    """Phase of the step in which it was born; "load" for what was there before the first step, "recompute" for what
    checkpointing computed once more."""
    category: Category
    name: str = ""
    """What it is, where more is known than its operator: "exp_avg", "gradient of weight"."""
    owner: str = ""
    """Path of the module to which one with a name belongs, whichever module made it."""
    stream: int = 0
    """CUDA stream on which it is allocated."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Births and deaths of storages over a whole run, from the loading of the weights on."""

    blocks: Sequence[Block]
    events: Sequence[int]
    """i: block i is born; ~i: block i dies."""
    marks: Sequence[tuple[int, str]] = field(default=())
    """(position in `events`, phase that begins there), in order."""

    @property
    def sizes(self) -> list[int]:
        """Bytes of each block, unrounded."""
        return [block.nbytes for block in self.blocks]

    @property
    def streams(self) -> list[int]:
        """CUDA stream of each block."""
        return [block.stream for block in self.blocks]

    def position(self, phase: str, occurrence: int = -1) -> int:
        """Return the position where a phase begins; of several the last, or the `occurrence`-th."""
        return [position for position, name in self.marks if name == phase][occurrence]

    def alive_at(self, position: int) -> list[int]:
        """Return the blocks alive after the event at `position`, in the order of their birth."""
        alive: dict[int, None] = {}
        for event in self.events[: position + 1]:
            if event >= 0:
                alive[event] = None
            else:
                del alive[~event]
        return list(alive)
