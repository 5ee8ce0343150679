"""What a symbolic step computes with: tensors, the storages beneath them, and what the record keeps of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lorafa_prof.analytic.graph import Node
from lorafa_prof.analytic.sizes import Shape, Size, elements, size_of

if TYPE_CHECKING:
    from lorafa_prof.analytic.tape import Tape

ACTIVATIONS, LOGITS, GRADIENTS, TEMPORARIES = "activations", "logits", "gradients", "temporaries"
WORKSPACES = "workspaces"


class Item:
    """What the record keeps of one storage: where it was born, what it is, how large."""

    __slots__ = ("category", "dtype", "module", "name", "saved", "shape")

    def __init__(self, module: str, name: str, shape: Shape, dtype: str, category: str) -> None:
        self.module, self.name, self.shape, self.dtype = module, name, shape, dtype
        self.category = category
        self.saved = False


class Storage:
    """One allocation. Its death is recorded when the last reference goes, as in PyTorch."""

    __slots__ = ("buffers", "dies", "index", "tied")

    def __init__(self, dies: Callable[[int], None], index: int) -> None:
        self.dies, self.index = dies, index  # the first is told of the death
        self.buffers = 0  # gradient buffers that hold it now: shared gradients are not added to in place
        self.tied: Storage | None = None  # one that lives as long: where the sizes decide which of two there is

    def __del__(self) -> None:
        self.dies(~self.index)


def unborn(event: int) -> None:
    """Note nothing of the death of a storage that has never been."""


class Tensor:
    """A view on a storage, with its place in the autograd graph."""

    __slots__ = ("dtype", "is_view", "node", "requires_grad", "shape", "slot", "storage", "tape")

    def __init__(
        self, tape: Tape, storage: Storage | None, shape: Shape, dtype: str, *, requires_grad: bool = False
    ) -> None:
        self.tape, self.storage, self.shape, self.dtype = tape, storage, shape, dtype
        self.requires_grad = requires_grad
        self.node: Node | None = None
        self.slot = 0
        self.is_view = False  # a view keeps its base, so a gradient that is one is never added to in place

    def viewed(self, shape: Shape) -> Tensor:
        """Return a view outside the graph, as a backward formula makes of a gradient."""
        out = Tensor(self.tape, self.storage, shape, self.dtype)
        out.is_view = True
        return out

    def detached(self) -> Tensor:
        """Return the same storage outside the graph."""
        return Tensor(self.tape, self.storage, self.shape, self.dtype)


class Parameter(Tensor):
    """A leaf with static memory: it is counted in the inventory of weights, not in the record of the step."""

    __slots__ = ("grad", "kind", "name", "packed", "uses")

    def __init__(self, tape: Tape, name: str, shape: Shape, dtype: str, *, trained: bool, kind: str) -> None:
        super().__init__(tape, None, shape, dtype, requires_grad=trained)
        self.name, self.kind = name, kind
        self.grad: Tensor | None = None
        self.uses = 0
        self.packed = 1  # values in one element: 2 in a 4-bit weight

    @property
    def size(self) -> Size:
        """Bytes of the parameter."""
        return size_of(self.shape, self.dtype)

    @property
    def numel(self) -> int:
        """Number of values, as the unquantised model counts them."""
        return elements(self.shape)[0] * self.packed


Grads = Sequence[Tensor | None]
Backward = Callable[[Grads], Sequence[Tensor | None]]
