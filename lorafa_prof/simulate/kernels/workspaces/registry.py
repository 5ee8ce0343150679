"""What a kernel call is, what a workspace is, and the table from operators to the workspaces of their kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorafa_prof.registry import Registry

#: What `Workspace.freed_before` says for "the operator's outputs".
OUTPUTS = "outputs"


@dataclass(frozen=True)
class DeviceTraits:
    """What kernels ask the device before they size their buffers."""

    compute_capability: tuple[int, int] | None
    """Major and minor, (9, 0) for Hopper; None where it is not known, which counts as (8, 0)."""

    multiprocessors: int | None
    """The number of streaming multiprocessors; None where it is not known: buffers that depend on it are left out."""

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, (8, 0) where none is known."""
        return self.compute_capability or (8, 0)

    @property
    def max_threads_per_multiprocessor(self) -> int:
        """How many threads a multiprocessor holds (CUDA C++ programming guide, technical specifications)."""
        major, minor = self.capability
        if (major, minor) == (7, 5):
            return 1024
        return 1536 if major == 12 or (major == 8 and minor > 0) else 2048


@dataclass(frozen=True)
class KernelCall:
    """One operator as the dispatch mode saw it."""

    name: str
    """Namespace, operator and overload: "aten.mm.default"."""

    args: tuple[Any, ...]
    """The positional arguments."""

    kwargs: dict[str, Any]
    """The keyword arguments."""

    outputs: tuple[torch.Tensor, ...]
    """The tensors that the operator returned, in order."""

    device: DeviceTraits
    """Where the kernel would run."""

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position` or, given by keyword, called `name`; `default` where it was not given."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(frozen=True)
class Workspace:
    """One buffer inside an operator."""

    name: str
    """What it holds, in the words of the kernel's source; unique within one call."""

    nbytes: int
    """The bytes requested of the allocator."""

    after_outputs: bool
    """Whether it is allocated after the operator's outputs or before them."""

    freed_before: str | None = None
    """The name of a later workspace of the same call, or `OUTPUTS`, before whose allocation this one has been freed;
    None: it is freed when the operator returns."""


Formula = Callable[[KernelCall], list[Workspace]]

_FORMULAS: Registry[Formula] = Registry("the workspace formula of")
#: Makes the decorated function the formula of operators, named with their overload.
register = _FORMULAS.register


def registered_operators() -> frozenset[str]:
    """The operators that have a formula."""
    return frozenset(_FORMULAS)


def kernel_workspaces(call: KernelCall) -> list[Workspace]:
    """Return the buffers of the kernel behind `call`, in order of allocation; none that the formulas size to zero."""
    formula = _FORMULAS.get(call.name)
    return [] if formula is None else [workspace for workspace in formula(call) if workspace.nbytes]


def nbytes(tensor: torch.Tensor) -> int:
    """The bytes of `tensor`'s elements, laid out densely."""
    return tensor.numel() * tensor.element_size()


def contiguous_copy(name: str, tensor: torch.Tensor, *, after_outputs: bool) -> list[Workspace]:
    """What `tensor.contiguous()` allocates: a copy, unless the tensor is contiguous already."""
    return [] if tensor.is_contiguous() else [Workspace(name, nbytes(tensor), after_outputs)]


def round_up(value: int, multiple: int) -> int:
    """`value`, up to the next multiple."""
    return ceil_div(value, multiple) * multiple


def ceil_div(value: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-value // divisor)


def deterministic() -> bool:
    """Whether kernels must take their deterministic form (not merely warn where they do not)."""
    strict = torch.are_deterministic_algorithms_enabled()
    return strict and not torch.is_deterministic_algorithms_warn_only_enabled()
