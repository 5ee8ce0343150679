"""What operators compute, and what the others move, as a tape records it."""

from __future__ import annotations

from typing import NamedTuple

from lorafa_prof.analytic.sizes import Shape, Size


class Product(NamedTuple):
    """Products of (m, k) by (k, n), a batch of them; each dimension is the product of a shape."""

    dtype: str
    batch: Shape
    m: Shape
    k: Shape
    n: Shape
    added: Shape = ()
    """Shape of a bias that is added within the operator; () for none."""
    groups: int = 0
    """Rows of m, or of k where m has none of the batch, are those of so many groups, each with a product of its own; 0:
    it is one product."""
    chunk: Shape = ()
    """How much of m, or of k where m has none of the batch, is multiplied at once; () for all."""

    @property
    def backwards(self) -> tuple[Product, Product]:
        """The products that give the gradients of the first factor and of the second."""
        return self._replace(k=self.n, n=self.k, added=()), self._replace(m=self.k, k=self.m, added=())

    @property
    def transposed(self) -> Product:
        """The product that gives the result transposed."""
        return self._replace(m=self.n, n=self.m)


class FusedAttention(NamedTuple):
    """Attention by one kernel."""

    dtype: str
    kernel: str
    heads: tuple[int, int]
    """Of queries, and of keys and values."""
    widths: tuple[int, int]
    """Of a head of queries and keys, and of one of values."""
    causal: bool
    backward: bool = False


class Arithmetic(NamedTuple):
    """Floating-point operations of one kind by one operator."""

    position: int
    """In the tape's events."""
    where: str
    """The pass: "forward", "recompute", "backward"."""
    kind: str
    number: Size
    phase: str
    """In which it runs; a fused loss computes gradients in the forward."""
    module: str
    of: Product | FusedAttention | None


class Move(NamedTuple):
    """What an operator without arithmetic worth counting reads and writes."""

    position: int
    """In the tape's events."""
    arithmetic: int
    """How many operators with arithmetic came before."""
    phase: str
    """"forward", "recompute" or "backward"."""
    module: str
    op: str
    dtype: str
    read: tuple[Size, ...]
    written: tuple[Size, ...]
    waits: bool = False
    """Whether the host waits for what is written."""
