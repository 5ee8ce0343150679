"""What a tape writes down: births and deaths of storages, where each was, what operators compute and what they move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lorafa_prof.analytic.arithmetic import Arithmetic, Move
from lorafa_prof.analytic.graph import Node
from lorafa_prof.analytic.sizes import Size, size_of
from lorafa_prof.analytic.tensors import Grads, Item, Storage, Tensor

#: Operations whose backward makes zeros, and writes its gradient into a part of them.
INTO_ZEROS = frozenset({"slice", "embedding", "nll_loss"})


class Record:
    """The events of one step in their order, and the places that they belong to."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.events: list[int] = []  # index i: storage i is born; ~i: it dies
        self._note = self.events.append
        self.marks: list[tuple[int, str, str]] = []  # (position in events, phase, module)
        self.phase, self.module = "forward", ""
        self.flops: list[Arithmetic] = []
        #: what operations read and write that only move memory, where that is asked for
        self.moves: list[Move] | None = None

    # -- places ---------------------------------------------------------------------------------------------------

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Everything born inside belongs to the submodule `name`."""
        outer = self.module
        self.enter(f"{outer}.{name}" if outer else name)
        try:
            yield
        finally:
            self.enter(outer)

    def enter(self, module: str, phase: str | None = None) -> None:
        """Say which module (and phase) the events from here on belong to."""
        phase = phase or self.phase
        if module != self.module or phase != self.phase:
            self.module, self.phase = module, phase
            self.marks.append((len(self.events), phase, module))

    # -- memory that operations move ------------------------------------------------------------------------------

    def moved(self, op: str, read: Sequence[Tensor], written: Sequence[Tensor], *, waits: bool = False) -> None:
        """Note what an operator reads and writes, if that is asked for: to be called when it has run.

        Args:
            op: as PyTorch names it.
            read: each tensor once.
            written: its results.
            waits: whether the host waits for them.
        """
        if self.moves is None:
            return
        sizes = tuple(size_of(x.shape, x.dtype) for x in read)
        self._move(op, written[0].dtype, sizes, tuple(size_of(x.shape, x.dtype) for x in written), waits=waits)

    def _move(
        self, op: str, dtype: str, read: tuple[Size, ...], written: tuple[Size, ...], *, waits: bool = False
    ) -> None:
        assert self.moves is not None, "somebody has asked"
        where = (len(self.events), len(self.flops), self.phase, self.module)
        self.moves.append(Move(*where, op, dtype, read, written, waits))

    def _moved_backward(self, node: Node, grads: Grads, born: int) -> None:
        """Note what a formula of the backward has made: the first kernel reads the gradients and what was saved, each
        further one what the one before has made. Where it makes zeros first, it writes its gradient into them.
        """
        made = self.items[born:]
        if not made:
            return
        given = tuple(size_of(g.shape, g.dtype) for g in grads if g is not None)
        kept = (x if isinstance(x, Storage) else x.storage for x in node.saved)
        items = [self.items[x.index] for x in kept if x is not None]
        read = (*given, *(size_of(item.shape, item.dtype) for item in items))
        if node.name in INTO_ZEROS:
            read = ()
        for item in made:
            written = size_of(item.shape, item.dtype)
            self._move(f"{node.name} backward", item.dtype, read, (written,))
            read = (written,)
        if node.name in INTO_ZEROS and given:
            self._move(f"{node.name} backward: copy", made[0].dtype, *_into_zeros(node.name, given, items, made[0]))


def _into_zeros(
    name: str, given: tuple[Size, ...], saved: Sequence[Item], zeros: Item
) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    """Return what is read, and what is written into zeros, once these are made.

    Rows of an embedding's gradient are added to what is there, by their ids; of the loss's there is one element a row.
    """
    if name == "embedding":
        return (*given, *given, *(size_of(item.shape, item.dtype) for item in saved)), given
    if name == "nll_loss":
        [targets] = [item for item in saved if item.dtype == "int64"]
        return (size_of(targets.shape, targets.dtype),), (size_of(targets.shape, zeros.dtype),)
    return given, given
