"""What a broken promise costs: what the forward keeps as it is, less what it keeps with the promise restored for once.

Both are observed, storage by storage, so that sharing is seen as it is: an input that seven modules save counts once
where they save the same storage, and seven times where each of them casts it for itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lorafa_prof.errors import LorafaProfError
from lorafa_prof.measure.names import address_of, named_tensors
from lorafa_prof.workload.naming import tensors_in

Forward = Callable[[], torch.Tensor]
"""Runs one forward of the training step, and returns the loss."""
Tensors = Iterable[torch.Tensor]


class _Births(TorchDispatchMode):
    """Notes every storage that an operator makes, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        #: By the address of torch's own record of the storage, which is not given away while a weak reference is left.
        self.found: dict[int, tuple[StorageWeakRef, int, tuple[int, ...], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.found:
                found = (StorageWeakRef(storage), address_of(tensor), tuple(tensor.shape), storage.nbytes())
                self.found[storage._cdata] = found
        return out


def alive_after_forward(model: torch.nn.Module, forward: Forward) -> list[tuple[tuple[int, ...], int]]:
    """Return shape and bytes of each storage that a forward makes and leaves alive, with only the loss held.

    Under checkpointing that is what the checkpoints keep, not what a recomputation saves.
    """
    with _same_random_numbers(model), _Births() as births:
        loss = forward()
    own = {address_of(tensor) for _, tensor in named_tensors(model)}
    alive = [
        (shape, nbytes)
        for storage, address, shape, nbytes in births.found.values()
        if address not in own and not storage.expired()
    ]
    del loss
    return alive


def activation_bytes(model: torch.nn.Module, forward: Forward) -> int:
    """Return the bytes of those storages."""
    return sum(nbytes for _, nbytes in alive_after_forward(model, forward))


@contextlib.contextmanager
def _same_random_numbers(model: torch.nn.Module) -> Iterator[None]:
    """Leave the generators as they were: a look must not change what a user's training draws next."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def extra_activations(
    model: torch.nn.Module, forward: Forward, restored: Callable[[], contextlib.AbstractContextManager[None]]
) -> int | None:
    """Return the bytes that a forward keeps beyond what it would keep with a promise restored.

    Args:
        model: whose forward it is.
        forward: runs it.
        restored: makes a context within which the promise holds.

    Under checkpointing only one checkpointed module's activations are alive at a time, while it is computed again; that
    of the module for which they are largest is returned. For it alone checkpointing is lifted, so that its forward
    keeps what its recomputation keeps. None where the flag is not the module's own (before transformers 4.53), and
    where a forward fails, by dtypes that do not go together, for want of memory or because LoRA-FA's layers refuse it:
    that must not end a measurement.
    """

    def extra() -> int:
        now = activation_bytes(model, forward)
        with restored():
            return now - activation_bytes(model, forward)

    try:
        if not checkpointing_flags(model):
            return extra()
        return max((_without_checkpointing(module, extra) for module in _different(_checkpointed(model))), default=None)
    except (RuntimeError, LorafaProfError):
        return None


def _without_checkpointing(module: Any, look: Callable[[], int]) -> int:
    module.gradient_checkpointing = False
    try:
        return look()
    finally:
        module.gradient_checkpointing = True


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
    """Return the modules that can compute their activations, or their layers', again, and do not."""
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", None) is False]


@contextlib.contextmanager
def checkpointed(model: torch.nn.Module) -> Iterator[None]:
    """Within the context, they do."""
    idle = can_checkpoint(model)
    before = [getattr(module, _FUNCTION, None) for module in idle]
    for module in idle:
        module.gradient_checkpointing = True
        setattr(module, _FUNCTION, partial(torch.utils.checkpoint.checkpoint, use_reentrant=False))
    try:
        yield
    finally:
        for module, function in zip(idle, before, strict=True):
            module.gradient_checkpointing = False
            setattr(module, _FUNCTION, function)


#: Where transformers' modules keep the function that checkpoints.
_FUNCTION = "_gradient_checkpointing_func"


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
