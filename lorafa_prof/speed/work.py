"""The work of a step, operation by operation, as plain data: what an engine says and a timeline reads.

Nothing here knows a device. What an operation costs on one is in `rates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["matmul", "attention", "memory"]
"""What bounds an operation: matrix products and attention have arithmetic worth counting; all else moves memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixProduct:
    """Shape of `batch` products of (m, k) by (k, n)."""

    batch: int
    m: int
    n: int
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpWork:
    """What one operator does on the device."""

    op: str
    """As in "aten.mm"."""
    kind: Kind
    phase: str
    """Phase of the step: "forward", "loss", "backward", "recompute", "optimizer", "zero_grad"."""
    module: str
    """Path of the module that was executing; "" for what is outside of all."""
    dtype: str
    """Of its arithmetic, as the project writes it: "bf16"."""
    flops: int
    """Executed floating-point operations of products and attention, a multiplication and an addition each one; 0 for
    what only moves memory."""
    read_bytes: int
    """Bytes that it has to read at least once."""
    written_bytes: int
    product: MatrixProduct | None = None
    """The shape of a matrix product; None for all else."""
    kernels: int = 1
    """Kernels that it launches on the device; 0 for a view, which costs the host alone."""

    @property
    def moved_bytes(self) -> int:
        """Bytes between memory and processor at least."""
        return self.read_bytes + self.written_bytes
