"""The operations that AdaLoRA alone runs: a trained divisor, sums in place, and the norms of its regulariser."""

from __future__ import annotations

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import Product
from lorafa_prof.analytic.tensors import Grads, Parameter, Tensor


def quotient(a: Tensor, b: Tensor, name: str = "quotient") -> Tensor:
    """a / b, both variables, b a single number: both are saved. Backward: -grad * ((a / b) / b), then grad / b."""
    out = a.tape.new(name, a.shape, ops.promoted(a.dtype, b.dtype))

    def backward(g: Grads) -> list[Tensor | None]:
        grad = ops.grad_of(g)
        once = ops.like(grad, "a / b")
        twice = ops.like(grad, "a / b / b")
        negative = ops.neg(grad)
        of_b = ops.like(grad, "gradient of divisor")
        del once, twice, negative
        return [ops.like(grad, "gradient of quotient"), of_b]

    a.tape.record("div", [a, b], out, [a, b], backward)
    return out


def add_in_place(a: Tensor, b: Tensor) -> Tensor:
    """a += b: the storage of a, which autograd takes for the sum from here on. Nothing is saved."""
    out = Tensor(a.tape, a.storage, a.shape, a.dtype)
    if a.tape.needs_grad(a, b):
        a.tape.record("add_", [a, b], out, [], lambda g: [g[0], g[0]])
    return out


def add_to_view(a: Tensor, b: Tensor) -> Tensor:
    """a += b where a is a view of all of another tensor: autograd lays the gradient out anew, and copies it twice.

    AsStridedBackward puts it into zeros of the base's size. CopySlices makes a whole of them for the base, of no use if
    that needs no gradient, and a clone for b.
    """
    tape, shape, dtype = a.tape, a.shape, a.dtype
    base_needs = a.requires_grad
    changed = Tensor(tape, a.storage, shape, dtype)
    out = Tensor(tape, a.storage, shape, dtype)
    if not tape.needs_grad(a, b):
        return out

    def copy_slices(g: Grads) -> list[Tensor | None]:
        del g
        whole: Tensor | None = tape.new("gradient of base", shape, dtype)
        part = tape.new("gradient of view", shape, dtype)
        if not base_needs:
            whole = None
        return [whole, part]

    tape.record("CopySlices", [a, b], changed, [], copy_slices)
    tape.record("as_strided", [changed], out, [], lambda g: [tape.new("zeros of base", shape, dtype)])
    return out


def norm(x: Tensor, name: str = "norm") -> Tensor:
    """torch.linalg.vector_norm of a matrix: saves it and the result. Under autocast in fp32.

    Backward: grad * (x / norm), with zeros where the norm is 0.
    """
    tape = x.tape
    if tape.autocast:
        x = ops.autocast_to(x, "fp32", "autocast input")
    out = tape.new(name, (), x.dtype)
    shape, dtype = x.shape, x.dtype

    def backward(g: Grads) -> list[Tensor | None]:
        unit = tape.new("x / norm", shape, dtype)
        zero = tape.new("norm is 0", (), "bool")
        result = tape.new("gradient of norm", shape, dtype)
        del unit, zero
        return [result]

    tape.record("norm", [x], out, [x, out], backward)
    return out


def gram(x: Parameter, *, rows: bool) -> Tensor:
    """x @ x.T (rows) or x.T @ x of a trained matrix; both factors need a gradient, the second's comes first."""
    tape = x.tape
    factor: Tensor = x
    other = ops.view(x, *reversed(x.shape))
    if tape.autocast:
        factor = ops.autocast_to(x, tape.autocast, "autocast weight")
        other = ops.autocast_to(other, tape.autocast, "autocast transposed weight")
    height, width = (int(n) for n in x.shape)
    size, inner = (height, width) if rows else (width, height)
    out = tape.new("A A^T", (size, size), factor.dtype)
    first, second = (factor, other) if rows else (other, factor)
    shapes, dtype = (first.shape, second.shape), factor.dtype
    flops = 2 * size * size * inner, ""
    product = Product(factor.dtype, (), (size,), (inner,), (size,))
    of_first, of_second = product.backwards
    # what lies transposed has its gradient made so
    ofs = (of_second.transposed, of_first) if rows else (of_second, of_first.transposed)

    def backward(g: Grads) -> list[Tensor | None]:
        grad_second = tape.new("gradient of matmul input", shapes[1], dtype)
        grad_first = tape.new("gradient of matmul input", shapes[0], dtype)
        for of in ofs:
            tape.count_flops("linear", flops, backward=True, of=of)
        return [grad_first, grad_second]

    tape.record("mm", [first, second], out, [second, first], backward)
    tape.count_flops("linear", flops, of=product)
    return out
