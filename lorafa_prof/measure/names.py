"""What lies at an address: the storages of a model, its gradients and its optimizer's states by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorafa_prof.ledger import Category
from lorafa_prof.workload.naming import (
    common_path,
    is_adapter,
    kept_states,
    named_states,
    shard_of,
    short_name,
    tensors_in,
)


@dataclass(frozen=True, slots=True)
class Name:
    """What lies at an address."""

    category: Category
    module: str
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Of its storage."""

    @classmethod
    def of(cls, path: str, tensor: torch.Tensor, category: Category) -> Name:
        """Name a tensor by its path: module.tensor."""
        module, _, leaf = short_name(path).rpartition(".")
        here = shard_of(tensor)
        dtype = str(here.dtype).removeprefix("torch.")
        return cls(category, module, leaf, tuple(here.shape), dtype, here.untyped_storage().nbytes())


Names = dict[int, Name]


def address_of(tensor: torch.Tensor) -> int:
    """Return where a tensor's storage begins."""
    return shard_of(tensor).untyped_storage().data_ptr()


def names_of_model(model: Any, device_type: str) -> Names:
    """Return the names of parameters and buffers that are on the device."""
    names: Names = {}
    for path, tensor in named_tensors(model):
        if tensor.device.type == device_type:
            category = Category.ADAPTERS if is_adapter(path) else Category.WEIGHTS
            names.setdefault(address_of(tensor), Name.of(path, tensor, category))
    return names


def named_tensors(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Return parameters, buffers, and what quantised weights keep beside themselves."""
    found = [*model.named_parameters(), *model.named_buffers()]
    for path, parameter in list(found):
        state = getattr(parameter, "quant_state", None)
        found += [(f"{path}.{name}", tensor) for name, tensor in _tensors_of_state(state)]
        for name in ("CB", "SCB"):
            if isinstance(getattr(parameter, name, None), torch.Tensor):
                found.append((f"{path}.{name}", getattr(parameter, name)))
    return found


def _tensors_of_state(state: Any) -> list[tuple[str, torch.Tensor]]:
    if state is None:
        return []
    found = []
    for name, value in vars(state).items():
        if isinstance(value, torch.Tensor):
            found.append((name, value))
        elif type(value) is type(state):
            found += [(f"{name}.{inner}", tensor) for inner, tensor in _tensors_of_state(value)]
    return found


def names_of_gradients(model: Any) -> Names:
    """Return the names of the gradients that are there; FSDP2 keeps those of a block in one storage."""
    names: Names = {}
    for path, p in [*model.named_parameters(), *model.named_buffers()]:
        if p.grad is not None:
            name = _renamed(Name.of(path, p.grad, Category.GRADIENTS), "gradient of {}")
            before = names.get(address_of(p.grad))
            names[address_of(p.grad)] = name if before is None else _together(before, name)
    return names


def _together(one: Name, other: Name) -> Name:
    """Return the name of a storage that holds both."""
    shape = (one.nbytes // torch.empty((), dtype=getattr(torch, one.dtype)).itemsize,)
    return replace(one, module=common_path(one.module, other.module), tensor="gradients", shape=shape)


def names_of_states(model: Any, optimizer: torch.optim.Optimizer, device_type: str) -> Names:
    """Return the names of the optimizer's states, each in the module of its parameter."""
    paths = {id(p): path for path, p in model.named_parameters()}
    names: Names = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if isinstance(state, Mapping) else ():
            for tensor in tensors_in(value):
                if tensor.device.type == device_type:
                    name = Name.of(paths.get(id(parameter), ""), tensor, Category.OPTIMIZER)
                    names.setdefault(address_of(tensor), _renamed(name, str(key)))
    for path, what, tensor in kept_states(model, optimizer):
        if tensor.device.type == device_type:
            names.setdefault(address_of(tensor), _renamed(Name.of(path, tensor, Category.OPTIMIZER), what))
    for path, what, tensor in named_states(model):
        name = Name.of(path, tensor, Category.OPTIMIZER)
        names.setdefault(address_of(tensor), _renamed(name, f"{what} of {{}}"))
    return names


def _renamed(name: Name, how: str) -> Name:
    return replace(name, tensor=how.format(name.tensor))


def head_of(model: Any) -> str | None:
    """Return the path of the module that makes the logits, where the model says which."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return next((short_name(name) for name, module in model.named_modules() if module is output), None)


def logits_sizes(batches: Iterable[tuple[int, int]], vocabulary: int) -> frozenset[int]:
    """Return how many bytes logits can have in any dtype, whole or shifted by a token, for (sequences, tokens)."""
    return frozenset(
        bs * length * vocabulary * itemsize
        for bs, seq in batches
        for length in (seq, seq - 1, seq + 1)
        for itemsize in (1, 2, 4, 8)
    )
