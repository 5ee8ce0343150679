"""The operations of routed experts: choosing, gathering and scattering tokens, and grouped matrix products.

All sizes follow from the number of experts a token is sent to, none from which experts these are. b sequences of s
tokens with k experts each make (b, s, k) pairs.
"""

from __future__ import annotations

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import Product
from lorafa_prof.analytic.sizes import Shape
from lorafa_prof.analytic.tensors import Grads, Tensor


def top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their indices, which it saves; backward scatters into zeros."""
    tape, shape, dtype = scores.tape, scores.shape, scores.dtype
    values = tape.new("chosen scores", (*shape[:-1], k), dtype)
    indices = tape.new("chosen indices", (*shape[:-1], k), "int64")
    if tape.needs_grad(scores):
        tape.record("topk", [scores], values, [indices], lambda g: [tape.new("gradient of topk", shape, dtype)])
    return values, indices


def divided_by_sum(values: Tensor) -> Tensor:
    """values / sum of each row, in place: what the division saves of the values is a copy made before."""
    tape, shape, dtype = values.tape, values.shape, values.dtype
    total = tape.new("sum of chosen scores", (*shape[:-1], 1), dtype)
    out = Tensor(tape, values.storage, shape, dtype)
    if not tape.needs_grad(values):
        return out

    def spread(g: Grads) -> list[Tensor | None]:
        grad = g[0]
        assert grad is not None
        return [Tensor(tape, grad.storage, shape, dtype)]

    def divided(g: Grads) -> list[Tensor | None]:
        steps = [tape.new("gradient of divisor, in parts", shape, dtype) for _ in range(3)]
        of_divisor = tape.new("gradient of divisor", shape, dtype)
        steps.clear()
        return [tape.new("gradient of dividend", shape, dtype), of_divisor]

    tape.record("sum", [values], total, [], spread)
    before = ops.like(values, "chosen scores before division")
    tape.record("div_", [values, total], out, [before, total], divided)
    return out


def best_groups(scores: Tensor, groups: int, chosen: int, experts: int) -> tuple[Tensor, list[Tensor]]:
    """Scores with those outside the best groups set to 0, and what the router's forward holds beside them.

    No gradient comes back through the choice of groups, but its operations are recorded.
    """
    tape, rows = scores.tape, scores.shape[:-1]
    best = _largest(scores, groups)
    indices = top(best, chosen)[1]
    mask = tape.new("mask of groups", (*rows, groups), "fp32")
    wide = tape.new("mask of experts", (*rows, experts), "fp32")
    inside = tape.new("experts inside", (*rows, experts), "bool")
    outside = tape.new("experts outside", (*rows, experts), "bool")
    del inside
    out = ops.like(scores, "scores of the best groups")
    if tape.needs_grad(scores):
        shape, dtype = scores.shape, scores.dtype
        tape.record("masked_fill", [scores], out, [outside], lambda g: [tape.new("masked gradient", shape, dtype)])
    return out, [best, indices, mask, wide]


def _largest(scores: Tensor, groups: int) -> Tensor:
    """The largest score of each group: saves where it was."""
    tape, shape, dtype = scores.tape, scores.shape, scores.dtype
    best = tape.new("best score of each group", (*shape[:-1], groups), dtype)
    which = tape.new("index of the best score", (*shape[:-1], groups), "int64")
    if tape.needs_grad(scores):
        tape.record("max", [scores], best, [which], lambda g: [tape.new("gradient of max", shape, dtype)])
    return best


def rows(x: Tensor, indices: Tensor, shape: Shape, name: str) -> Tensor:
    """x[indices]: saves the indices; backward adds the rows up into zeros."""
    tape = x.tape
    out = tape.new(name, shape, x.dtype)
    if tape.needs_grad(x):
        source, dtype = x.shape, x.dtype
        tape.record("index", [x], out, [indices], lambda g: [tape.new("gradient of rows", source, dtype)])
    return out


def summed(x: Tensor, shape: Shape) -> Tensor:
    """Sum over the experts of each token, in fp32 under autocast; the gradient is repeated for each by a copy."""
    tape, source, dtype = x.tape, x.shape, x.dtype
    out = tape.new("sum over experts", shape, "fp32" if tape.autocast else dtype)
    if tape.needs_grad(x):

        def backward(g: Grads) -> list[Tensor | None]:
            grad = g[0]
            assert grad is not None
            if source[2] == 1 and grad.dtype == dtype:
                return [Tensor(tape, grad.storage, source, dtype)]
            return [tape.new("gradient for each expert", source, dtype)]

        tape.record("sum", [x], out, [], backward)
    return out


def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor, name: str) -> Tensor:
    """Each pair's row times its expert's matrix: x (..., m), weight (experts, k, m), saved as in a linear layer."""
    tape, dtype = x.tape, x.dtype
    experts, k, m = (int(width) for width in weight.shape)
    rows_shape = x.shape[:-1]
    out = tape.result(name, (*rows_shape, k), dtype)
    flops = ops.matmul_flops(rows_shape, m, k)
    product = Product(dtype, (), rows_shape, (m,), (k,), groups=experts)
    tape.count_flops("experts", flops, of=product)
    need_x, need_w = x.requires_grad, weight.requires_grad
    if tape.needs_grad(x, weight):

        def backward(g: Grads) -> list[Tensor | None]:
            of_weight = tape.new("gradient of experts", (experts, k, m), dtype) if need_w else None
            of_x = tape.new("gradient of experts' input", (*rows_shape, m), dtype) if need_x else None
            input_product, weight_product = product.backwards
            for need, of in ((need_w, weight_product.transposed), (need_x, input_product)):
                if need:
                    tape.count_flops("experts", flops, backward=True, of=of)
            return [of_x, of_weight]

        saved = [x if need_w else None, weight if need_x else None, offsets]
        tape.record("grouped_mm", [x, weight], out, saved, backward)
    return out
