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
class AttentionProduct:
    """Shape of fused attention: all its products in one kernel."""

    batch: int
    heads: int
    """Of the queries."""
    key_heads: int
    """Of keys and values: fewer where queries share them."""
    queries: int
    """Positions."""
    keys: int
    width: int
    """Of a head of queries and keys."""
    value_width: int
    causal: bool
    """Whether the kernel leaves out what comes later, block by block; a mask that it is given it only adds."""
    backward: bool = False

    @property
    def flops(self) -> int:
        """In full, as if nothing were masked; a backward makes the scores again: five products, not four."""
        return self._of(self.queries * self.keys, again=1)

    @property
    def needed_flops(self) -> int:
        """In full, but without the scores that a backward makes again."""
        return self._of(self.queries * self.keys, again=0)

    @property
    def causal_flops(self) -> int:
        """Those of `flops` whose scores a causal kernel has to make; all of them where it is not causal."""
        return self._of(self._pairs, again=1)

    @property
    def needed_causal_flops(self) -> int:
        """Those of `needed_flops` whose scores a causal kernel has to make; all of them where it is not causal."""
        return self._of(self._pairs, again=0)

    @property
    def _pairs(self) -> int:
        """Query and key positions that see each other: of position i (from 0) the first i + 1."""
        if not self.causal:
            return self.queries * self.keys
        square = min(self.queries, self.keys)
        return square * (square + 1) // 2 + (self.queries - square) * self.keys

    def _of(self, pairs: int, again: int) -> int:
        """Return the operations for so many scores in each head; a backward makes them `again` so many times."""
        one = self.width + self.value_width
        widths = 2 * one + again * self.width if self.backward else one
        return 2 * self.batch * self.heads * pairs * widths


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
    what only moves memory. Attention counts in full whatever it masks, as for PyTorch's counter: `causal_flops`."""
    read_bytes: int
    """Bytes that it has to read at least once."""
    written_bytes: int
    product: MatrixProduct | None = None
    """The shape of a matrix product; None for all else."""
    kernels: int = 1
    """Kernels that it launches on the device; 0 for a view, which costs the host alone."""
    attention: AttentionProduct | None = None
    """The shape of fused attention; None for all else."""
    waits: bool = False
    """Whether the host waits for its result, and with it for all that was launched before."""

    @property
    def moved_bytes(self) -> int:
        """Bytes between memory and processor at least."""
        return self.read_bytes + self.written_bytes

    @property
    def needed_flops(self) -> int:
        """Those of `flops` that are no repetition within the kernel."""
        return self.flops if self.attention is None else self.attention.needed_flops

    @property
    def causal_flops(self) -> int:
        """Those of `flops` that a causal kernel does not leave out: counted to the diagonal, not to whole blocks."""
        return self.flops if self.attention is None else self.attention.causal_flops

    @property
    def needed_causal_flops(self) -> int:
        """Those of `needed_flops` that a causal kernel does not leave out."""
        return self.flops if self.attention is None else self.attention.needed_causal_flops
