"""What each PyTorch operation allocates, keeps for backward and computes: one small formula an operation.

Every function takes symbolic tensors, puts its result on the tape, names what autograd saves for it (as in PyTorch's
derivatives.yaml) and gives the allocations of its backward, in order. Where the CUDA kernel differs from the CPU's, the
CUDA kernel is what is modelled. b = sequences, s = tokens a sequence, in shapes as in `sizes`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorafa_prof.analytic.arithmetic import Product
from lorafa_prof.analytic.sizes import Shape, elements
from lorafa_prof.analytic.tensors import Grads, Parameter, Tensor

#: What 4-bit weights are multiplied in (bnb_4bit_compute_dtype).
COMPUTE_DTYPE = "bf16"

_RANK = {"bool": 0, "uint8": 0, "int64": 1, "bf16": 2, "fp16": 2, "fp32": 3}


def promoted(*dtypes: str) -> str:
    """Return the dtype of an elementwise result: the widest; bf16 with fp16 gives fp32."""
    best = max(dtypes, key=_RANK.__getitem__)
    return "fp32" if {"bf16", "fp16"} <= set(dtypes) else best


def grad_of(grads: Grads) -> Tensor:
    """Return the gradient of an operation's only output."""
    grad = grads[0]
    assert grad is not None, "an operation with one output runs when its gradient is there"
    return grad


def like(x: Tensor, name: str, dtype: str | None = None) -> Tensor:
    """Return a new storage shaped like `x`."""
    return x.tape.new(name, x.shape, dtype or x.dtype)


# -- casts and views --------------------------------------------------------------------------------------------------


def cast(x: Tensor, dtype: str, name: str = "cast") -> Tensor:
    """x.to(dtype): x itself where it has that dtype already, else a copy. Nothing is saved."""
    if x.dtype == dtype:
        return x
    out = like(x, f"{name} to {dtype}", dtype)
    if x.tape.needs_grad(x):
        source = x.dtype
        x.tape.record("to", [x], out, [], lambda g: [like(grad_of(g), "cast of gradient", source)])
    x.tape.moved("_to_copy", [x], [out])
    return out


def autocast_to(x: Tensor, dtype: str, name: str) -> Tensor:
    """The cast that autocast puts before an operation: cached for a trained fp32 weight until the forward ends."""
    tape = x.tape
    if x.dtype == dtype or x.dtype not in ("fp32", "bf16", "fp16"):
        return x
    cacheable = isinstance(x, Parameter) and x.requires_grad and x.dtype == "fp32"
    if cacheable and id(x) in tape.cast_cache:
        return tape.cast_cache[id(x)]
    out = cast(x, dtype, name)
    if cacheable:
        tape.cast_cache[id(x)] = out
    return out


def view(x: Tensor, *shape: int | str) -> Tensor:
    """A reshape, transpose or split that copies nothing."""
    return x.tape.view(x, shape)


def contiguous(x: Tensor, name: str = "contiguous copy") -> Tensor:
    """A copy in another memory layout. Nothing is saved; the gradient passes as a view."""
    out = like(x, name)
    if x.tape.needs_grad(x):
        x.tape.record("clone", [x], out, [], lambda g: [g[0]])
    x.tape.moved("clone", [x], [out])
    return out


def narrow(x: Tensor, *shape: int | str) -> Tensor:
    """A slice. Its backward writes the gradient into a full-sized tensor of zeros (slice_backward)."""
    out = Tensor(x.tape, x.storage, shape, x.dtype)
    if x.tape.needs_grad(x):
        full = x.shape
        x.tape.record("slice", [x], out, [], lambda g: [x_zeros(grad_of(g), full)])
    return out


def x_zeros(grad: Tensor, shape: Shape) -> Tensor:
    """The zeros that slice_backward fills with the gradient of a slice."""
    return grad.tape.new("zeros of slice backward", shape, grad.dtype)


def split(x: Tensor, parts: Sequence[Shape]) -> list[Tensor]:
    """Views on consecutive parts (torch.split, chunk); backward concatenates the gradients into one tensor."""
    outs = [Tensor(x.tape, x.storage, shape, x.dtype) for shape in parts]
    if x.tape.needs_grad(x):
        full, dtype = x.shape, x.dtype
        tape = x.tape
        tape.record("split", [x], outs, [], lambda g: [tape.new("concatenated gradient", full, dtype)])
    return outs


def cat(parts: Sequence[Tensor], *shape: int | str) -> Tensor:
    """torch.cat: a new tensor; the gradients of the parts are views of its gradient."""
    tape = parts[0].tape
    out = tape.new("cat", shape, promoted(*(p.dtype for p in parts)))
    if tape.needs_grad(*parts):
        shapes = [p.shape for p in parts]

        def backward(g: Grads) -> list[Tensor | None]:
            grad = grad_of(g)
            return [grad.viewed(shape) for shape in shapes]

        tape.record("cat", parts, out, [], backward)
    tape.moved("cat", parts, [out])
    return out


# -- elementwise ------------------------------------------------------------------------------------------------------


def _broadcast(a: Tensor, b: Tensor) -> Shape:
    return a.shape if len(a.shape) >= len(b.shape) and _larger(a.shape, b.shape) else b.shape


def _larger(a: Shape, b: Shape) -> bool:
    (ca, sa), (cb, sb) = elements(a), elements(b)
    return len(sa) > len(sb) or (len(sa) == len(sb) and ca >= cb)


def add(a: Tensor, b: Tensor, name: str = "sum") -> Tensor:
    """a + b: saves nothing; both receive the same gradient tensor (cast or summed back where they differ)."""
    out = a.tape.new(name, _broadcast(a, b), promoted(a.dtype, b.dtype))
    if a.tape.needs_grad(a, b):
        a.tape.record("add", [a, b], out, [], lambda g: [g[0], g[0]])
    a.tape.moved("add", [a, b], [out])
    return out


def mul(a: Tensor, b: Tensor, name: str = "product") -> Tensor:
    """a * b: each factor is saved where the other one needs a gradient."""
    tape = a.tape
    out = tape.new(name, _broadcast(a, b), promoted(a.dtype, b.dtype))
    if tape.needs_grad(a, b):
        need_a, need_b = a.requires_grad, b.requires_grad
        dtype = promoted(a.dtype, b.dtype)

        def backward(g: Grads) -> list[Tensor | None]:
            grad = grad_of(g)
            return [like(grad, "gradient of factor", dtype) if need else None for need in (need_a, need_b)]

        tape.record("mul", [a, b], out, [b if need_a else None, a if need_b else None], backward)
    tape.moved("mul", [a, b], [out])
    return out


def divide(a: Tensor, b: Tensor, name: str = "quotient") -> Tensor:
    """a / b with b no variable: b is saved. Backward: grad / b."""
    out = a.tape.new(name, _broadcast(a, b), promoted(a.dtype, b.dtype))
    if a.tape.needs_grad(a):
        a.tape.record("div", [a], out, [b], lambda g: [like(grad_of(g), "gradient of quotient")])
    a.tape.moved("div", [a, b], [out])
    return out


def scale(x: Tensor, name: str = "scaled") -> Tensor:
    """x times (or divided by, or plus) a Python number: nothing is saved on the device."""
    out = like(x, name)
    if x.tape.needs_grad(x):
        x.tape.record("mul by scalar", [x], out, [], lambda g: [like(grad_of(g), "scaled gradient")])
    x.tape.moved("mul", [x], [out])
    return out


def shift(x: Tensor, name: str = "shifted") -> Tensor:
    """x plus a constant: nothing is saved, the gradient passes unchanged."""
    out = like(x, name)
    if x.tape.needs_grad(x):
        x.tape.record("add constant", [x], out, [], lambda g: [g[0]])
    x.tape.moved("add", [x], [out])
    return out


def neg(x: Tensor) -> Tensor:
    """-x: nothing is saved."""
    out = like(x, "negated")
    if x.tape.needs_grad(x):
        x.tape.record("neg", [x], out, [], lambda g: [like(grad_of(g), "negated gradient")])
    x.tape.moved("neg", [x], [out])
    return out


def power(x: Tensor, exponent: int = 2) -> Tensor:
    """x ** n: saves x. Backward: grad * (n * x**(n-1)), whose two inner results live until the last is there."""
    out = like(x, f"power {exponent}")
    if x.tape.needs_grad(x):

        def backward(g: Grads) -> list[Tensor | None]:
            inner = like(grad_of(g), "x**(n-1)")
            scaled = like(inner, "n*x**(n-1)")
            result = like(scaled, "gradient of power")
            del inner, scaled
            return [result]

        x.tape.record("pow", [x], out, [x], backward)
    x.tape.moved("pow", [x], [out])
    return out


def row_mean(x: Tensor) -> Tensor:
    """x.mean(-1, keepdim=True): saves nothing. Backward divides the broadcast gradient: full width again."""
    shape = (*x.shape[:-1], 1)
    out = x.tape.new("row mean", shape, x.dtype)
    if x.tape.needs_grad(x):
        full, tape = x.shape, x.tape
        tape.record("mean", [x], out, [], lambda g: [tape.new("gradient of mean", full, grad_of(g).dtype)])
    x.tape.moved("mean", [x], [out])
    return out


def rsqrt(x: Tensor) -> Tensor:
    """x ** -0.5: saves its result. Backward: -0.5 * grad * result**3."""
    out = like(x, "rsqrt")
    if x.tape.needs_grad(x):

        def backward(g: Grads) -> list[Tensor | None]:
            half = like(grad_of(g), "-0.5*grad")
            cube = like(half, "result**3")
            result = like(half, "gradient of rsqrt")
            del half, cube
            return [result]

        x.tape.record("rsqrt", [x], out, [out], backward)
    x.tape.moved("rsqrt", [x], [out])
    return out


def unary(x: Tensor, name: str, *, saves: str) -> Tensor:
    """A fused activation (silu, gelu, relu, tanh): saves its input or its output; one allocation in backward."""
    out = like(x, name)
    if x.tape.needs_grad(x):
        kept = x if saves == "input" else out
        x.tape.record(name, [x], out, [kept], lambda g: [like(grad_of(g), f"gradient of {name}")])
    x.tape.moved(name, [x], [out])
    return out


def dropout(x: Tensor, p: float, name: str = "dropout") -> Tensor:
    """CUDA's native_dropout: saves a mask of one byte an element; the identity for p = 0."""
    if p == 0.0:
        return x
    tape = x.tape
    out = like(x, name)
    mask = like(x, f"{name} mask", "bool")
    if tape.needs_grad(x):
        tape.record("native_dropout", [x], out, [mask], lambda g: [like(grad_of(g), f"gradient of {name}")])
    tape.moved("native_dropout", [x], [out, mask])
    return out


def softmax(x: Tensor, dtype: str | None = None) -> Tensor:
    """softmax over the last dimension: saves its result. In another dtype than x's the input is cast first."""
    source = cast(x, dtype, "softmax input") if dtype else x
    return unary(source, "softmax", saves="output")


# -- matrix products --------------------------------------------------------------------------------------------------


def matmul_flops(rows: Shape, inner: int, columns: int) -> tuple[int, str]:
    """2 * rows * inner * columns floating-point operations, rows being the product of a shape."""
    coefficient, symbols = elements(rows)
    return 2 * coefficient * inner * columns, symbols


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, name: str = "linear output", *, by_inputs: bool = False
) -> Tensor:
    """x @ weight.T + bias with x (..., m), weight (k, m): saves x where the weight is trained.

    The weight is saved where x needs a gradient, at no cost unless it is a cast copy. Forward 2Nmk FLOPs, 2Nmk for the
    input's gradient and 2Nmk for the weight's. Under autocast all three are cast first. `by_inputs`: the weight lies
    (m, k), as in GPT-2, and its gradient is made so.
    """
    tape = x.tape
    given = x  # the module that was called holds its argument, whatever autocast made of it
    if tape.autocast:
        x = autocast_to(x, tape.autocast, "autocast input")
        weight = autocast_to(weight, tape.autocast, "autocast weight")
        bias = None if bias is None else autocast_to(bias, tape.autocast, "autocast bias")
    k, m = int(weight.shape[0]), int(weight.shape[1])
    rows = x.shape[:-1]
    out = tape.result(name, (*rows, k), x.dtype)
    flops = matmul_flops(rows, m, k)
    product = Product(x.dtype, (), rows, (m,), (k,), () if bias is None else (k,))
    if tape.needs_grad(x, weight, bias):
        need_x, need_w = x.requires_grad, weight.requires_grad
        biased, need_b = bias is not None, bias is not None and bias.requires_grad
        x_shape, dtype = x.shape, x.dtype

        def backward(g: Grads) -> list[Tensor | None]:
            # addmm gives the input's gradient first, mm (no bias) the weight's
            grad_w = tape.new("gradient of weight", (k, m), dtype) if need_w and not biased else None
            grad_x = tape.new("gradient of linear input", x_shape, dtype) if need_x else None
            if need_w and biased:
                grad_w = tape.new("gradient of weight", (k, m), dtype)
            of_x, of_w = product.backwards
            for made, of in ((grad_x, of_x), (grad_w, of_w if by_inputs else of_w.transposed)):
                if made is not None:
                    made.is_view = made is grad_w or len(x_shape) > 2  # transposed, or unfolded from a matrix
                    tape.count_flops("linear", flops, backward=True, of=of)
            return [grad_x, grad_w, g[0] if need_b else None]  # the engine sums the bias's over the rows

        saved = [weight if need_x else None, x if need_w else None]
        tape.record("linear", [x, weight, bias], out, saved, backward)
    del given
    tape.count_flops("linear", flops, of=product)  # not reached where recomputing stops at this operation's inputs
    return out


def batched_matmul(a: Tensor, b: Tensor, inner: int, columns: int, name: str) -> Tensor:
    """a @ b over batch and heads, a (b, h, s, inner), b (b, h, inner, columns) with `columns` or inner = s.

    Saves both. The caller says how the FLOPs come out, since either width may be the sequence length.
    """
    tape = a.tape
    heads = a.shape[1]
    out_columns: int | str = "s" if columns == 0 else columns
    width = inner or columns
    out = tape.result(name, (*a.shape[:3], out_columns), a.dtype)
    flops = elements(("b", heads, "s", "s", width))
    flops = (2 * flops[0], flops[1])
    columns_shape: Shape = (out_columns,)
    product = Product(a.dtype, ("b", heads), ("s",), (inner or "s",), columns_shape)
    if tape.needs_grad(a, b):
        need = (a.requires_grad, b.requires_grad)
        shapes, dtype = (a.shape, b.shape), a.dtype

        def backward(g: Grads) -> list[Tensor | None]:
            for needed, of in zip(need, product.backwards, strict=True):
                if needed:
                    tape.count_flops("attention", flops, backward=True, of=of)
            made = [
                tape.new("gradient of matmul input", shape, dtype) if needed else None
                for needed, shape in zip(reversed(need), reversed(shapes), strict=True)
            ]
            return made[::-1]  # bmm makes the second factor's first

        tape.record("bmm", [a, b], out, [b if need[0] else None, a if need[1] else None], backward)
    tape.count_flops("attention", flops, of=product)
    return out


# -- embedding, loss ---------------------------------------------------------------------------------------------------


def embedding(ids: Tensor, weight: Tensor, name: str = "embedding output") -> Tensor:
    """Rows of `weight` by index: saves the indices. Backward makes a dense gradient of the whole table."""
    tape = ids.tape
    out = tape.new(name, (*ids.shape, weight.shape[1]), weight.dtype)
    if tape.needs_grad(weight):
        shape, dtype = weight.shape, weight.dtype
        tape.record("embedding", [weight], out, [ids], lambda g: [tape.new("gradient of table", shape, dtype)])
    tape.moved("embedding", [out, ids], [out])
    return out


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """F.cross_entropy over (rows, v) with class indices: log_softmax keeps its result, nll_loss shares it.

    Backward makes nll_loss's dense gradient first and log_softmax's from it: two tensors as wide as the logits beside
    the saved one.
    """
    tape = logits.tape
    log_probs = unary(logits, "log softmax", saves="output")
    if tape.autocast:  # nll_loss is on its list; the log-softmax inside cross_entropy names its dtype
        log_probs = cast(log_probs, "fp32", "log softmax")
    loss = tape.new("loss", (), log_probs.dtype)
    weight = tape.new("loss weight", (), log_probs.dtype)
    if tape.needs_grad(log_probs):
        shape, dtype = log_probs.shape, log_probs.dtype
        saved = [log_probs, targets, weight]
        tape.record("nll_loss", [log_probs], loss, saved, lambda g: [tape.new("gradient of nll_loss", shape, dtype)])
    return loss
