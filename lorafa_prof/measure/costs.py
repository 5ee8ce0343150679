"""What a broken promise costs: what the forward saves as it is, less what it saves with the promise restored for once.

Both are observed, by autograd's own hooks, so that sharing is seen as it is: an input that seven modules save counts
once where they save the same storage, and seven times where each of them casts it for itself.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from lorafa_prof.measure.names import address_of, named_tensors
from lorafa_prof.workload.naming import tensors_in

Forward = Callable[[], torch.Tensor]
"""Runs one forward of the training step, and returns the loss."""
Tensors = Iterable[torch.Tensor]


class _Held:
    """What autograd stores in place of a tensor: it lives as long as the tensor is saved."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()


def saved_storages(model: torch.nn.Module, forward: Forward) -> list[tuple[tuple[int, ...], int]]:
    """Return shape and bytes of each storage that one forward saves for backward, those of the model left out.

    Under checkpointing that is what the checkpoints keep, not what a recomputation saves.
    """
    held: list[weakref.ref[_Held]] = []

    def pack(tensor: torch.Tensor) -> _Held:
        holder = _Held(tensor)
        held.append(weakref.ref(holder))
        return holder

    with _same_random_numbers(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        loss = forward()
    own = {address_of(tensor) for _, tensor in named_tensors(model)}
    found: dict[int, tuple[tuple[int, ...], int]] = {}
    for holder in (reference() for reference in held):
        if holder is not None and address_of(holder.tensor) not in own:
            size = holder.tensor.untyped_storage().nbytes()
            found.setdefault(address_of(holder.tensor), (tuple(holder.tensor.shape), size))
    del loss
    return list(found.values())


def saved_bytes(model: torch.nn.Module, forward: Forward) -> int:
    """Return the bytes of those storages."""
    return sum(nbytes for _, nbytes in saved_storages(model, forward))


@contextlib.contextmanager
def _same_random_numbers(model: torch.nn.Module) -> Iterator[None]:
    """Leave the generators as they were: a look must not change what a user's training draws next."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def extra_activations(
    model: torch.nn.Module, forward: Forward, restored: Callable[[], contextlib.AbstractContextManager[None]]
) -> int | None:
    """Return the bytes that a forward saves beyond what it would save with a promise restored.

    Args:
        model: whose forward it is.
        forward: runs it.
        restored: makes a context within which the promise holds.

    Under checkpointing only one checkpointed module's activations are alive at a time, while it is computed again; that
    of the module for which they are largest is returned. For it alone checkpointing is lifted, so that its forward
    saves what its recomputation saves. None where the flag is not the module's own (before transformers 4.53).
    """

    def extra() -> int:
        now = saved_bytes(model, forward)
        with restored():
            return now - saved_bytes(model, forward)

    if not checkpointing_flags(model):
        return extra()
    costs = []
    for module in _different(_checkpointed(model)):
        module.gradient_checkpointing = False
        try:
            costs.append(extra())
        finally:
            module.gradient_checkpointing = True
    return max(costs, default=None)


def checkpointing_flags(model: torch.nn.Module) -> list[Any]:
    """Return the modules whose flag says that their activations, or their layers', are computed again."""
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]


def _checkpointed(model: torch.nn.Module) -> list[Any]:
    """Return the modules that checkpoint themselves."""
    try:
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError:
        return []
    return [module for module in checkpointing_flags(model) if isinstance(module, GradientCheckpointingLayer)]


def _different(modules: list[Any]) -> list[Any]:
    """Return one module of each kind: of the same class, with the same parameters trained."""
    kinds = {
        (type(module), tuple((p.shape, p.dtype, p.requires_grad) for p in module.parameters())): module
        for module in modules
    }
    return list(kinds.values())


@contextlib.contextmanager
def frozen(tensors: Tensors) -> Iterator[None]:
    """Within the context, these want no gradient."""
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    for tensor in trained:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in trained:
            tensor.requires_grad_(True)


@contextlib.contextmanager
def cast(tensors: Tensors, dtype: torch.dtype) -> Iterator[None]:
    """Within the context, these have another dtype."""
    before = [(tensor, tensor.data) for tensor in tensors]
    for tensor, data in before:
        tensor.data = data.to(dtype)
    try:
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def can_checkpoint(model: torch.nn.Module) -> list[Any]:
    """Return the modules that have been told how to compute activations again, and do not."""
    modules: list[Any] = list(model.modules())
    return [
        module for module in modules
        if getattr(module, "gradient_checkpointing", None) is False and hasattr(module, "_gradient_checkpointing_func")
    ]  # fmt: skip


@contextlib.contextmanager
def checkpointed(model: torch.nn.Module) -> Iterator[None]:
    """Within the context, they do."""
    idle = can_checkpoint(model)
    for module in idle:
        module.gradient_checkpointing = True
    try:
        yield
    finally:
        for module in idle:
            module.gradient_checkpointing = False


def gradient_bytes(tensors: Tensors) -> int:
    """Return what the gradients of these take: a gradient has its parameter's shape and dtype."""
    return sum(nbytes(t) for t in tensors if t.requires_grad or t.grad is not None)


def kept_gradient_bytes(tensors: Tensors) -> int:
    """Return what their gradients take between two steps, where nobody clears them."""
    return sum(nbytes(tensor.grad) for tensor in tensors if tensor.grad is not None)


def state_bytes(tensors: Tensors, optimizer: torch.optim.Optimizer) -> int:
    """Return what the optimizer's states of these take; a state that is one number is left out."""
    states: Any = optimizer.state
    return sum(
        nbytes(state) for t in tensors if t in states for state in tensors_in(dict(states[t])) if state.dim() > 0
    )


def at_worst(activations: int, gradients: int, kept: int, states: int) -> int:
    """Return the most that a tensor which should not be trained adds at one moment of a step, bytes.

    Its states and what is kept of its gradients are there throughout. At the end of the forward the saved activations
    are there, at the end of the backward the gradients instead. In between each module has one or the other, so that
    neither sum is exceeded where the two are in proportion from module to module.
    """
    return states + max(activations + kept, gradients)


def nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
