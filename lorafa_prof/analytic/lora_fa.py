"""LoRA-FA as `lorafa_prof.lorafa` runs it: the adapter as one node of autograd, and its optimizer's step.

Both follow the code there, operation by operation: what it keeps, what it makes and drops on the way, and what it
multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import Product
from lorafa_prof.analytic.builder import Held
from lorafa_prof.analytic.sizes import Shape
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Grads, Parameter, Tensor

#: What the optimizer computes in.
WIDE = "fp32"
#: Rows of B that it steps at a time on a GPU, at least those of one module (`lorafa_prof.lorafa.optimizer.ROWS`).
ROWS = 2**16


def add_adapter(result: Tensor, x: Tensor, pair: tuple[Parameter, Parameter], p: float) -> Tensor:
    """result + s D(x) A^T B^T with A (r, m) frozen, B (k, r): keeps D(x) A^T (..., r), and draws D's mask again.

    Products run in the dtype of x, or of autocast. Casts are dropped after each product, and made again.
    """
    a, b = pair
    return _Node(result, x, a, b, p).run()


class _Node:
    """One adapter's part of a forward, and of the backward."""

    def __init__(self, result: Tensor, x: Tensor, a: Parameter, b: Parameter, p: float) -> None:
        self._tape, self._a, self._b, self._p = x.tape, a, b, p
        self._x_shape, self._x_dtype = x.shape, x.dtype
        self._dtype = x.tape.autocast or x.dtype
        self._result, self._x = result, x
        rows = x.shape[:-1]
        (r, m), k = a.shape, b.shape[0]
        self._down = Product(self._dtype, (), rows, (m,), (r,))
        self._up = Product(self._dtype, (), rows, (r,), (k,))
        self._flops_down = ops.matmul_flops(rows, int(m), int(r))
        self._flops_up = ops.matmul_flops(rows, int(r), int(k))

    def run(self) -> Tensor:
        """Run the forward; nothing of it is left in this object afterwards."""
        tape, result, x = self._tape, self._result, self._x
        del self._result, self._x
        mask = self._mask() if self._p else None
        projected = self._projected(x, mask)
        out = self._added(result, projected)
        if tape.needs_grad(result, x, self._b):
            needs_x = x.requires_grad
            saved = [projected, *((self._a, self._b) if needs_x else ())]
            tape.record(
                "AddAdapter", [result, x, None, self._b], out, saved, lambda g: self._backward(g, needs_x),
                saves_last=True,
            )  # fmt: skip
        return out

    def _cast(self, x: Tensor, dtype: str, name: str) -> Tensor:
        return ops.cast(x.detached(), dtype, name)

    def _mask(self) -> Tensor:
        mask = self._tape.new("adapter dropout mask", self._x_shape, "bool")
        self._tape.moved("bernoulli_", [], [mask])
        return mask

    def _projected(self, x: Tensor, mask: Tensor | None) -> Tensor:
        tape = self._tape
        rows = self._cast(x, self._dtype, "adapter input")
        if mask is not None:
            given, rows = rows, ops.like(rows, "adapter dropout")
            tape.moved("mul", [given, mask], [rows])
            del given
        a = self._cast(self._a, self._dtype, "A")
        out = tape.result("A x", (*self._x_shape[:-1], self._a.shape[0]), self._dtype)
        tape.count_flops("linear", self._flops_down, of=self._down)
        del rows, a
        return out

    def _added(self, result: Tensor, projected: Tensor) -> Tensor:
        tape = self._tape
        b = self._cast(self._b, self._dtype, "B")
        shape = result.shape
        if result.dtype == self._dtype:
            out = tape.result("adapted result", shape, self._dtype)
            tape.count_flops("linear", self._flops_up, of=self._up._replace(added=shape))
        else:
            delta = tape.result("B A x", shape, self._dtype)
            tape.count_flops("linear", self._flops_up, of=self._up)
            del b
            out = tape.new("adapted result", shape, ops.promoted(result.dtype, self._dtype))
            tape.moved("add", [result.detached(), delta], [out])
            del delta
            out = self._cast(out, result.dtype, "adapted result")
        return out

    def _backward(self, g: Grads, needs_x: bool) -> list[Tensor | None]:
        tape = self._tape
        given = ops.grad_of(g)
        rows = self._cast(given, self._dtype, "gradient of adapted result")
        grad_b = self._multiplied("gradient of B", self._b.shape, self._flops_up, self._up.backwards[1].transposed)
        grad_b = self._cast(grad_b, self._b.dtype, "gradient of B")
        tape.moved("mul_", [grad_b], [grad_b])
        if not needs_x:
            return [given, None, None, grad_b]
        mask = self._mask() if self._p else None
        b = self._cast(self._b, self._dtype, "B")
        back_shape = (*self._x_shape[:-1], self._a.shape[0])
        back = self._multiplied("gradient of A x", back_shape, self._flops_up, self._up.backwards[0])
        del b
        tape.moved("mul_", [back], [back])
        a = self._cast(self._a, self._dtype, "A")
        product = self._multiplied(
            "gradient of adapter input", self._x_shape, self._flops_down, self._down.backwards[0]
        )
        product.is_view = len(self._x_shape) > 2
        del a
        if mask is not None:
            tape.moved("mul_", [product, mask], [product])
        grad_x = product if product.dtype == self._x_dtype else self._cast(product, self._x_dtype, "adapter input")
        del rows, back
        return [given, grad_x, None, grad_b]

    def _multiplied(self, name: str, shape: Shape, flops: tuple[int, str], of: Product) -> Tensor:
        out = self._tape.new(name, shape, self._dtype)
        self._tape.count_flops("linear", flops, backward=True, of=of)
        return out


# -- the optimizer ---------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Parameters that are stepped in the same calls."""

    held: tuple[Held, ...]
    rank: int
    """Of the pairs that they belong to; 0: they belong to none."""

    @property
    def shape(self) -> Shape:
        """Of one of them."""
        return self.held[0].parameter.shape

    @property
    def dtype(self) -> str:
        """Of all of them."""
        return self.held[0].parameter.dtype

    @property
    def number(self) -> int:
        """How many real ones there are."""
        return sum(h.count for h in self.held)

    def chunks(self) -> Iterator[int]:
        """Yield how many are stepped in each call."""
        rest, size = self.number, self.number
        if self.rank:
            size = max(1, ROWS // int(self.shape[0]))
        while rest > 0:
            yield min(size, rest)
            rest -= size


def groups(trained: Sequence[Held]) -> list[Group]:
    """Return the trained parameters by what is stepped together: pairs of one shape and dtype, and all others."""
    found: dict[tuple[int, Shape, str], list[Held]] = {}
    for h in trained:
        rank = int(h.parameter.shape[1]) if is_b(h) else 0
        found.setdefault((rank, h.parameter.shape if rank else (), h.parameter.dtype), []).append(h)
    return [Group(tuple(held), rank) for (rank, *_), held in found.items()]


def is_b(held: Held) -> bool:
    """Say whether a parameter is the B of a pair."""
    return ".lora_B." in f".{held.parameter.name}"


def step(trained: Sequence[Held]) -> Tape:
    """Record a step: of each group the largest call, since nothing of one is left when the next begins."""
    tape = Tape()
    for group in groups(trained):
        number = max(group.chunks(), default=0)
        if not group.rank:
            cast = [
                tape.new("gradient in fp32", h.parameter.shape, WIDE)
                for h in group.held
                for _ in range(h.count)
                if group.dtype != WIDE
            ]
            del cast
        elif number:
            _projected(tape, group, number)
    return tape


def _projected(tape: Tape, group: Group, number: int) -> None:
    """g_B (A A^T)^-1 / s^2 of so many modules in one product."""
    several = (number,) if number > 1 else ()
    square = (group.rank, group.rank)
    wide = None
    if several:
        wide = tape.new("gradients", (*several, *group.shape), group.dtype)
    if group.dtype != WIDE:
        wide = tape.new("gradients in fp32", (*several, *group.shape), WIDE)
    matrices = tape.new("corrections", (*several, *square), WIDE) if several else None
    projected = tape.new("projected gradients", (*several, *group.shape), WIDE)
    del wide, matrices, projected
