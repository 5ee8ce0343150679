"""The table from operators to what their kernels do, and the parts that an entry is put together from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorafa_prof.registry import Registry
from lorafa_prof.simulate.kernels.workspaces import KernelCall
from lorafa_prof.speed.work import AttentionProduct, Kind, MatrixProduct

DTYPE_NAMES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "int64", torch.int32: "int32",
    torch.uint8: "uint8", torch.int8: "int8", torch.bool: "bool",
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as the project writes it: "bf16", "int64"."""
    return DTYPE_NAMES.get(dtype) or str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one kernel of an operator does, or several that do one thing."""

    read: int
    """Bytes."""
    written: int
    """Bytes."""
    kind: Kind = "memory"
    what: str = ""
    """Of an operator with several parts: which."""
    flops: int = 0
    dtype: torch.dtype | None = None
    """Of the arithmetic; None: that of what the operator returns."""
    product: MatrixProduct | None = None
    attention: AttentionProduct | None = None
    kernels: int = 1
    waits: bool = False


Formula = Callable[[KernelCall], Sequence[Part]]

_FORMULAS: Registry[Formula] = Registry("the work of")
#: Makes the decorated function the formula of operators, named without their overload.
register = _FORMULAS.register


def formula_of(name: str) -> Formula | None:
    """Return the formula of an operator's packet ("aten.mm"); None: it has none, and what it moves is its arguments."""
    return _FORMULAS.get(name)


def size(tensor: Any) -> int:
    """Return the bytes of a tensor's distinct elements: what is repeated by a stride of 0 counts once. None: 0."""
    if tensor is None:
        return 0
    distinct = math.prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return int(distinct * tensor.element_size())


def whole(tensor: Any) -> int:
    """Return the bytes of all elements, as when they are copied one by one. None: 0."""
    return 0 if tensor is None else int(tensor.numel() * tensor.element_size())


def sizes(tensors: Iterable[Any]) -> int:
    """Return the bytes of the distinct elements of tensors, None among them."""
    return sum(size(tensor) for tensor in tensors)
