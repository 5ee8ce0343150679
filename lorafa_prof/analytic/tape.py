"""A symbolic eager executor: what PyTorch would allocate, save and free, in closed form.

PyTorch's eager mode frees a storage when the last reference to it goes: a Python variable, a saved tensor of the
autograd graph, or a gradient on its way through the backward pass. Here the model's forward is written in the same way
with symbolic tensors, whose sizes are monomials in batch and sequence length (`sizes`). Their births and deaths, by the
same reference counting, are the record. Nothing is computed, and no tensor library is imported.

The backward pass follows `torch::autograd::Engine`: nodes run in the reverse order of their creation, each node's
saved tensors are released when it has run, gradients that meet are added in place where the buffer is not shared
(`InputBuffer::add`), and a leaf receives its gradient as soon as its last use has contributed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from lorafa_prof.analytic.arithmetic import Arithmetic, FusedAttention, Product
from lorafa_prof.analytic.graph import CheckpointFrame, EarlyStop, Edge, Node, Placeholder
from lorafa_prof.analytic.record import Record
from lorafa_prof.analytic.sizes import Shape, Size, elements
from lorafa_prof.analytic.tensors import (
    GRADIENTS,
    TEMPORARIES,
    Backward,
    Item,
    Parameter,
    Storage,
    Tensor,
    unborn,
)

#: The kind of a leaf that is no parameter of the model but what goes into its layers.
INPUT = "input"


class Tape(Record):
    """Runs the forward and the backward of one step, and so makes its record."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks: list[int] = []  # runs of layers that are alike: the real number of layers of each
        #: ("forward" | "backward", stack, traced layer) -> position in events where the layer begins, or where the
        #: gradient of its input is complete
        self.boundaries: dict[tuple[str, int, int], int] = {}
        self.grad_enabled = True
        self.accumulates = False  # gradients of earlier micro-batches are there, and what comes is added to them
        self.autocast: str | None = None
        self.cast_cache: dict[int, Tensor] = {}
        #: told of each trained parameter when its gradient is complete
        self.on_gradient: Callable[[Parameter], None] | None = None
        self._seq = 0
        self._checkpoints = False  # whether anything was run without keeping what it saves
        self._frame: CheckpointFrame | None = None
        self._recomputing: CheckpointFrame | None = None
        self._run_from = 0  # the first storage of what runs now: the forward, or a recomputation

    # -- births ---------------------------------------------------------------------------------------------------

    def new(self, name: str, shape: Shape, dtype: str, category: str = TEMPORARIES) -> Tensor:
        """Return a tensor on a new storage."""
        index = len(self.items)
        self.items.append(Item(self.module, name, shape, dtype, category))
        self._note(index)
        return Tensor(self, Storage(self._note, index), shape, dtype)

    @property
    def takes_results(self) -> bool:
        """Whether products and attention kernels do not run now, since their results have been kept."""
        return self._recomputing is not None and self._recomputing.selective

    def result(self, name: str, shape: Shape, dtype: str) -> Tensor:
        """Return what a product or an attention kernel makes: what selective checkpointing keeps in the forward.

        Where such a region is recomputed it is what was kept.
        """
        if self._recomputing is not None and self._recomputing.selective:
            return Tensor(self, self._recomputing.take(), shape, dtype)
        out = self.new(name, shape, dtype)
        if self._frame is not None and self._frame.selective:
            self._frame.keep(out.storage)
        return out

    def view(self, x: Tensor, shape: Shape) -> Tensor:
        """Return a tensor on the same storage that passes its gradient straight through."""
        out = Tensor(self, x.storage, shape, x.dtype)
        if x.requires_grad and self.grad_enabled:
            source = x.shape
            self.record("view", [x], out, [], lambda g: [self._reshaped(g[0], source)])
        return out

    def _reshaped(self, grad: Tensor | None, shape: Shape) -> Tensor | None:
        return None if grad is None else grad.viewed(shape)

    # -- graph ----------------------------------------------------------------------------------------------------

    def needs_grad(self, *inputs: Tensor | None) -> bool:
        """Say whether an operation on these inputs is recorded for backward."""
        if self.grad_enabled:
            for x in inputs:
                if x is not None and x.requires_grad:
                    return True
        return False

    def record(
        self,
        name: str,
        inputs: Sequence[Tensor | None],
        outputs: Tensor | Sequence[Tensor],
        saved: Sequence[Tensor | None],
        backward: Backward,
        *,
        held: Tensor | None = None,
        saves_last: bool = False,
    ) -> None:
        """Put an operation into the graph.

        Args:
            name: the operation, as autograd names it.
            inputs: its differentiable inputs; gradients come back in this order.
            outputs: what it returned.
            saved: what its backward needs. Parameters cost nothing more, other storages are kept alive.
            backward: from the outputs' gradients to the inputs' (None where `inputs` needs none).
            held: what the node keeps past autograd's book of saved tensors: neither is it dropped where a region is
                checkpointed, nor released when the node has run.
            saves_last: what is saved is packed when the operation has run, as of a Function in Python; else before.
        """
        edges: list[Edge | None] = []
        for x in inputs:
            if x is None or not x.requires_grad:
                edges.append(None)
            elif (made_by := x.node) is not None:
                edges.append(Edge(made_by, x.slot, x.shape, x.dtype))
            else:
                edges.append(self._leaf(x))
        node = Node(self._seq, self.module, name, edges, backward)
        self._seq += 1
        node.held = None if held is None else held.storage
        outs = [outputs] if isinstance(outputs, Tensor) else outputs
        try:
            kept = [self._save(x) for x in saved if x is not None]
            node.saved = [x for x in kept if x is not None]
        except EarlyStop as stop:
            if saves_last:
                raise
            self._retract([out.storage for out in outs], stop.storage)
            raise
        node.outputs = len(outs)
        for slot, out in enumerate(outs):
            out.node, out.slot, out.requires_grad = node, slot, True

    def _retract(self, outputs: Sequence[Storage | None], last_saved: Storage | None) -> None:
        """Undo the births of an operation's outputs: autograd packs inputs before the kernel runs, and stops there.

        An operation that saved one of its own outputs has run. Only what came last can have been for nothing.
        """
        if last_saved is not None and any(out is last_saved for out in outputs):
            return
        for out in outputs:
            if out is not None and self.events[-1] == out.index:
                self.events.pop()
                out.dies = unborn
            elif self._recomputing is not None:
                self._recomputing.give_back(out)

    def _leaf(self, x: Tensor) -> Edge:
        assert isinstance(x, Parameter), "a tensor that requires a gradient and is no leaf has a node"
        if self._recomputing is None:
            x.uses += 1
        return Edge(x, 0, x.shape, x.dtype)

    def _save(self, x: Tensor) -> Storage | Placeholder | None:
        """Keep `x` for backward. A parameter costs nothing, but its use too brings a checkpointed region back."""
        storage = x.storage
        if self._recomputing is not None:  # hand the recomputed tensor to the graph of the first forward
            frame = self._recomputing
            placeholder = frame.placeholders[frame.recomputed]()
            if placeholder is not None:
                placeholder.storage = storage
                placeholder.filled = True
            frame.recomputed += 1
            self._mark_saved(storage)
            if frame.recomputed == len(frame.placeholders):
                raise EarlyStop(storage)
            return storage
        if self._frame is not None:
            return Placeholder(self._frame)
        self._mark_saved(storage)
        return storage

    def _mark_saved(self, storage: Storage | None) -> None:
        if storage is not None:
            self.items[storage.index].saved = True

    def never_run(self, x: Tensor) -> None:
        """Say that no gradient will ever arrive at `x`: its graph keeps what it keeps until it is dropped, unrun.

        What the forward has kept is kept all the same, where it is taken for a recomputation.
        """
        waiting = [x.node] if x.node is not None else []
        while waiting:
            node = waiting.pop()
            for kept in node.saved:
                if isinstance(kept, Storage) and kept.index >= self._run_from:
                    self.items[kept.index].saved = False
            for edge in filter(None, node.edges):
                if isinstance(edge.target, Node):
                    waiting.append(edge.target)
                elif self._recomputing is None:
                    edge.target.uses -= 1

    def checkpoint(self, function: Callable[..., Tensor], *inputs: Tensor, selective: bool = False) -> Tensor:
        """Run `function(*inputs)` without keeping its saved tensors (torch.utils.checkpoint, use_reentrant=False).

        Args:
            function: what is run, now and once more in the backward.
            inputs: what it is given.
            selective: keep the results of products and attention kernels (create_selective_checkpoint_contexts).
        """
        self._checkpoints = True
        frame = CheckpointFrame(self.module, self.autocast, lambda: function(*inputs), selective=selective)
        outer, self._frame = self._frame, frame
        for x in inputs:
            self._mark_saved(x.storage)
        try:
            return function(*inputs)
        finally:
            self._frame = outer

    def _recompute(self, frame: CheckpointFrame) -> None:
        module = self.module
        self.enter(frame.module, "recompute")
        self._recomputing, self.autocast, self._run_from = frame, frame.autocast, len(self.items)
        try:
            frame.function()
        except EarlyStop:
            pass
        finally:
            self._recomputing = self.autocast = None
            self.cast_cache.clear()
            self.enter(module, "backward")

    # -- backward -------------------------------------------------------------------------------------------------

    def backward(self, root: Tensor) -> None:
        """Run the backward pass from a scalar `root`."""
        assert root.node is not None, "nothing to train"
        self.enter(self.module, "backward")
        heap: list[tuple[int, Node]] = []
        seed = self.new("gradient of the loss", (), root.dtype)  # held by the caller of backward() to its end
        self._accumulate(Edge(root.node, root.slot, root.shape, root.dtype), seed, heap)
        while heap:
            self._run(heapq.heappop(heap)[1], heap)

    def _run(self, node: Node, heap: list[tuple[int, Node]]) -> None:
        self.enter(node.module)
        if self._checkpoints:
            self._recompute_for(node)
        grads, node.grads = node.grads, None
        assert grads is not None, "a node runs when gradients have arrived"
        noted, born = len(self.flops), len(self.items)
        outs = list(node.backward(grads))
        if self.moves is not None and len(self.flops) == noted:
            self._moved_backward(node, grads, born)
        # checkpointing hands out what it recomputed once only: it goes with the formula, what is saved stays longer
        if self._checkpoints:
            node.saved = [kept for kept in node.saved if not isinstance(kept, Placeholder)]
        self._conform_all(outs, node.edges)
        for held in grads:
            if held is not None and held.storage is not None:
                held.storage.buffers -= 1
        del grads, held
        node.saved = []
        outs.reverse()
        for edge in node.edges:
            grad = outs.pop()
            if edge is not None and grad is not None:
                self._accumulate(edge, grad, heap)
            elif edge is not None and isinstance(edge.target, Parameter):
                edge.target.uses -= 1
            del grad

    def _recompute_for(self, node: Node) -> None:
        for saved in node.saved:
            if isinstance(saved, Placeholder) and not saved.filled:
                self._recompute(saved.frame)

    def _conform_all(self, outs: list[Tensor | None], edges: Sequence[Edge | None]) -> None:
        for i, edge in enumerate(edges):
            grad = outs[i]
            if edge is None:
                outs[i] = None
            elif grad is not None and (grad.shape != edge.shape or grad.dtype != edge.dtype):
                outs[i] = self._conform(grad, edge)

    def _conform(self, grad: Tensor, edge: Edge) -> Tensor:
        """Sum a broadcast gradient back to its shape and cast it to its dtype, each a new storage."""
        if grad.shape != edge.shape and elements(grad.shape) != elements(edge.shape):
            given, grad = grad, self.new("sum to size", edge.shape, grad.dtype)
            self.moved("sum", [given], [grad])
        if grad.dtype != edge.dtype:
            given, grad = grad, self.new("cast of gradient", grad.shape, edge.dtype)
            self.moved("_to_copy", [given], [grad])
        return grad

    def _accumulate(self, edge: Edge, grad: Tensor, heap: list[tuple[int, Node]]) -> None:
        target = edge.target
        if isinstance(target, Parameter):
            self._accumulate_leaf(target, grad)
            return
        if target.grads is None:
            target.grads = [None] * target.outputs
            heapq.heappush(heap, (-target.seq, target))
        target.grads[edge.slot] = self._held(target.grads[edge.slot], grad)

    def _held(self, old: Tensor | None, grad: Tensor) -> Tensor:
        """Return what a buffer holds after `grad` arrived: the sum, in place where nobody else holds the old one.

        That is `can_accumulate_inplace` of torch/csrc/autograd/input_buffer.cpp: the tensor and its storage have one
        owner, which the base of a view denies.
        """
        assert grad.storage is not None, "a gradient has a storage"
        if old is None:
            grad.storage.buffers += 1
            return grad
        assert old.storage is not None, "a gradient has a storage"
        if old.storage.buffers == 1 and old.storage is not grad.storage and not old.is_view:
            self.moved("add_", [old, grad], [old])
            return old
        old.storage.buffers -= 1
        total = self.new("accumulated gradient", old.shape, old.dtype)
        self.moved("add", [old, grad], [total])
        return self._held(None, total)

    def _accumulate_leaf(self, leaf: Parameter, grad: Tensor) -> None:
        leaf.grad = self._held(leaf.grad, grad)
        self.used(leaf)

    def used(self, leaf: Parameter) -> None:
        """Say that one use of a leaf has had its turn in the backward; with the last one its gradient is complete."""
        leaf.uses -= 1
        if leaf.uses == 0 and leaf.grad is not None and leaf.grad.storage is not None:
            item = self.items[leaf.grad.storage.index]
            item.name = f"{leaf.name} gradient"
            if leaf.kind == INPUT:
                return
            if self.accumulates:
                leaf.grad = None
            else:
                item.category = GRADIENTS
                if self.on_gradient is not None:
                    self.on_gradient(leaf)

    # -- arithmetic -----------------------------------------------------------------------------------------------

    def count_flops(
        self, kind: str, number: Size, *, backward: bool = False, of: Product | FusedAttention | None = None
    ) -> None:
        """Add floating-point operations to the pass that is running.

        Args:
            kind: "linear", "attention", ...
            number: how many.
            backward: whether they are the backward's own, not the forward's or a recomputation's.
            of: the operator that does them; None: it has no shape here, or has been named with other operations.

        Selective checkpointing keeps the results of all that has any: recomputing adds none then.
        """
        if self.takes_results and not backward:
            return
        where = "backward" if backward else "recompute" if self._recomputing is not None else "forward"
        self.flops.append(Arithmetic(len(self.events), where, kind, number, self.phase, self.module, of))
