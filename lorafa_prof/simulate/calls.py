"""Calls of kernels as plain data: enough of their arguments to size what they allocate inside, for any shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorafa_prof.simulate.kernels.workspaces import DeviceTraits, KernelCall


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its content."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        """Return such a tensor, on meta."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class CallSpec:
    """An operator with its arguments and outputs; tensors are `TensorSpec`, lists are tuples."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[Any, ...]

    @classmethod
    def of(cls, func: Any, args: Any, kwargs: Any, out: Any) -> CallSpec:
        """Return the description of a call that was made."""
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        return cls(func, frozen(args), tuple((name, frozen(value)) for name, value in kwargs.items()), frozen(outputs))

    @classmethod
    def outline(cls, func: Any, args: Any, kwargs: Any, out: Any, holds: Callable[[torch.Tensor], bool]) -> CallSpec:
        """Return what of a call decides how much it computes and moves: the tensors on the device, and whole numbers.

        Other numbers are left out, so that calls differ by shapes alone.
        """

        def kept(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return frozen(value) if holds(value) else None
            if isinstance(value, (list, tuple)):
                return tuple(map(kept, value))
            return value if isinstance(value, (int, torch.dtype)) else None

        outputs = out if isinstance(out, (tuple, list)) else (out,)
        named = tuple((name, kept(value)) for name, value in kwargs.items())
        return cls(func, kept(args), named, kept(outputs))

    @classmethod
    def bare(cls, func: Any) -> CallSpec:
        """Return a call of which no more is of interest than the operator: a view."""
        return cls(func, (), (), ())

    def kernel_call(self, name: str, device: DeviceTraits) -> KernelCall:
        """Return the call with meta tensors in the place of their descriptions."""
        args = tuple(map(thawed, self.args))
        outputs = tuple(t for t in map(thawed, self.outputs) if isinstance(t, torch.Tensor))
        return KernelCall(name, args, {key: thawed(value) for key, value in self.kwargs}, outputs, device)


def frozen(value: Any) -> Any:
    """Return an argument as hashable data."""
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), tuple(value.stride()), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    return value


def thawed(value: Any) -> Any:
    """Return an argument as an operator takes it."""
    if isinstance(value, TensorSpec):
        return value.tensor()
    if isinstance(value, tuple):
        return [thawed(item) for item in value]
    return value


def combined(values: tuple[Any, ...], number: Callable[[tuple[int, ...]], int]) -> Any:
    """Return what several descriptions of one shape have become: `number` says what several integers are.

    Raises:
        ValueError: they differ in more than integers.
    """
    first = values[0]
    if all(value == first for value in values[1:]):
        return first
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return number(values)
    if kinds == {tuple} and len({len(value) for value in values}) == 1:
        return tuple(combined(items, number) for items in zip(*values, strict=True))
    if kinds == {TensorSpec} and len({value.dtype for value in values}) == 1:
        shapes = combined(tuple(value.shape for value in values), number)
        return TensorSpec(shapes, combined(tuple(value.strides for value in values), number), first.dtype)
    if kinds == {CallSpec} and len({value.func for value in values}) == 1:
        parts = zip(*((value.args, value.kwargs, value.outputs) for value in values), strict=True)
        return CallSpec(first.func, *(combined(part, number) for part in parts))
    raise ValueError(f"different arguments: {values}")
