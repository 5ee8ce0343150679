"""The autograd graph that a tape keeps: operations, where their gradients go, and what stands for dropped tensors.

`lorafa_prof.analytic.tape` builds it in the forward and runs it backward.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lorafa_prof.analytic.sizes import Shape
    from lorafa_prof.analytic.tensors import Backward, Parameter, Storage, Tensor


class Edge(NamedTuple):
    """Where a gradient goes, and the shape and dtype it must have there (`validate_outputs` casts and sums)."""

    target: Node | Parameter
    slot: int
    shape: Shape
    dtype: str


class Node:
    """One operation of the autograd graph."""

    __slots__ = ("backward", "edges", "grads", "held", "module", "name", "outputs", "saved", "seq")

    def __init__(self, seq: int, module: str, name: str, edges: list[Edge | None], backward: Backward) -> None:
        self.seq, self.module, self.name, self.edges, self.backward = seq, module, name, edges, backward
        self.saved: list[Storage | Placeholder] = []
        self.held: Storage | None = None  # by an attribute of the node, which goes with the graph and not before
        self.grads: list[Tensor | None] | None = None
        self.outputs = 1


class CheckpointFrame:
    """Saved tensors of one checkpointed region: dropped in the forward, recomputed at their first use.

    Of a region that is recomputed in part, the results of products and attention kernels are kept, and handed out in
    their order when it runs again.
    """

    def __init__(
        self, module: str, autocast: str | None, function: Callable[[], object], *, selective: bool = False
    ) -> None:
        self.module, self.autocast = module, autocast
        self.function = function  # holds the region's inputs, until the last placeholder goes
        self.placeholders: list[weakref.ref[Placeholder]] = []
        self.recomputed = 0
        self.selective = selective
        self._kept: list[Storage | None] = []
        self._taken = 0
        self._last = -1

    def keep(self, result: Storage | None) -> None:
        """Keep a result of the forward."""
        self._kept.append(result)

    def take(self) -> Storage | None:
        """Hand out the next result that was kept, which is not kept any longer."""
        result = self._kept[self._taken]
        self._kept[self._taken] = None
        self._taken += 1
        self._last = -1 if result is None else result.index
        return result

    def give_back(self, result: Storage | None) -> None:
        """Keep a result once more if it is what was handed out last: the operation that it came from has not run."""
        if result is not None and result.index == self._last:
            self._taken -= 1
            self._kept[self._taken] = result


class Placeholder:
    """Stands for a saved tensor of a checkpointed region until that is recomputed."""

    __slots__ = ("__weakref__", "filled", "frame", "storage")

    def __init__(self, frame: CheckpointFrame) -> None:
        self.frame = frame
        self.storage: Storage | None = None
        self.filled = False
        frame.placeholders.append(weakref.ref(self))


class EarlyStop(Exception):
    """The last saved tensor of a region is back: torch.utils.checkpoint stops recomputing there."""

    def __init__(self, storage: Storage | None) -> None:
        super().__init__()
        self.storage = storage
