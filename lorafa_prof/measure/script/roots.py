"""Which of the modules that a script calls is the model: the largest that its optimizer trains."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch


class Candidates:
    """Modules that were called from outside of any other, with autograd at work."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[torch.nn.Module]] = {}

    def add(self, module: torch.nn.Module) -> None:
        """Take in a module that has been called."""
        self._seen.setdefault(id(module), weakref.ref(module))

    def root(self, optimizer: torch.optim.Optimizer) -> torch.nn.Module | None:
        """Return the one with the most elements among those with a parameter that the optimizer steps."""
        held = {id(p) for p in parameters_of(optimizer)}
        found = [module for ref in self._seen.values() if (module := ref()) is not None]
        trained = [module for module in found if any(id(p) in held for p in module.parameters())]
        return max(trained, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """Return what an optimizer steps."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def trains(optimizer: torch.optim.Optimizer, root: torch.nn.Module) -> bool:
    """Return whether an optimizer steps a parameter of the model."""
    own = {id(p) for p in root.parameters()}
    return any(id(p) in own for p in parameters_of(optimizer))


def inner_of(root: Any) -> Any:
    """Return the model out of what distributes or compiles it: its parameters are those of the whole."""
    while True:
        if isinstance(root, torch.nn.parallel.DistributedDataParallel):
            root = root.module
        elif is_compiled(root):
            root = root._orig_mod
        else:
            return root


def is_compiled(module: Any) -> bool:
    """Return whether a module is what torch.compile makes of one."""
    return isinstance(getattr(module, "_orig_mod", None), torch.nn.Module)


def device_of(root: torch.nn.Module) -> torch.device | None:
    """Return the device that holds the most bytes of a model's parameters; None without any."""
    sizes: dict[torch.device, int] = {}
    for p in root.parameters():
        sizes[p.device] = sizes.get(p.device, 0) + p.numel() * p.element_size()
    return max(sizes, key=lambda device: sizes[device], default=None)
