"""T5's attention: position biases, and the two kernels that take them.

The bias is added to the scores. Its lookup is laid out by positions with the heads last, so that each layer makes a
copy of its own where the kernel wants it by heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import FusedAttention
from lorafa_prof.analytic.sizes import Shape, elements
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Grads, Parameter, Tensor


@dataclass(frozen=True)
class Bias:
    """What is added to the scores (1, h, s, s) of all layers of a stack."""

    values: Tensor
    """The lookup of the learned table, or the zeros of cross-attention."""
    learned: bool
    misaligned: Tensor | None = None
    """Zeros that the fused kernel pads, layer by layer; then `values` are the zeros that it takes as they are."""
    causal: bool = False
    mask: Tensor | None = None
    """The eager code's additive mask."""


@dataclass(frozen=True)
class Shapes:
    """What the kernels need to know."""

    heads: int
    head_dim: int
    dropout: float
    single: bool
    """One sequence in the batch."""
    eager: bool

    @property
    def scores(self) -> Shape:
        """Shape of the bias."""
        return (1, self.heads, "s", "s")


def lookup(tape: Tape, table: Parameter, *, bidirectional: bool) -> Tensor:
    """Return the table's entries for all pairs of positions, (s, s, h) viewed by heads."""
    rows, columns = tape.new("positions", ("s",), "int64"), tape.new("positions", ("s",), "int64")
    distances = tape.new("relative positions", ("s", "s"), "int64")
    buckets = _buckets(tape, bidirectional=bidirectional)
    with tape.scope("relative_attention_bias"):
        found = ops.embedding(buckets, table, "position bias")
    del rows, columns, distances
    return ops.view(found, 1, table.shape[1], "s", "s")


def _buckets(tape: Tape, *, bidirectional: bool) -> Tensor:
    """T5Attention._relative_position_bucket, temporary by temporary: near positions have buckets of their own."""

    def made(name: str, dtype: str = "int64") -> Tensor:
        return tape.new(name, ("s", "s"), dtype)

    base = None
    if bidirectional:
        after = made("key after query", "bool")
        side = made("key after query as a number")
        del after
        half = made("half of the buckets")
        del side
        base = made("buckets by side")
        del half
        distance = made("distance")
    else:
        zeros = made("zeros")
        negative = made("negative distance")
        del zeros
        distance = made("distance")
        del negative
    near = made("near", "bool")
    fraction = made("distance as a fraction", "fp32")
    for name in ("fraction of the exact buckets", "logarithm", "scaled logarithm", "logarithmic bucket"):
        fraction = made(name, "fp32")
    number = made("logarithmic bucket as a number")
    del fraction
    far = made("far bucket")
    del number
    limit = made("last bucket")
    far = made("far bucket, limited")
    del limit
    chosen = made("bucket")
    buckets = base if base is not None else made("buckets")
    del base, near, far, distance, chosen
    return buckets


def no_bias(tape: Tape, shapes: Shapes, dtype: str, *, trained: bool) -> Bias:
    """Return cross-attention's zeros: one tensor, which the kernel keeps only where it need neither cast nor pad it.

    With checkpointing the real code asks a gradient for them, which nobody reads.
    """
    if shapes.eager or dtype != (tape.autocast or dtype):
        zeros, misaligned = tape.new("zero position bias", shapes.scores, dtype), None
    else:
        zeros, misaligned = (
            tape.new("zero position bias", (1, shapes.heads, "s", width), dtype) for width in ("A", "U")
        )
    if trained:
        leaf = Parameter(tape, "zero position bias", shapes.scores, dtype, trained=True, kind="input")
        leaf.storage = zeros.storage
        zeros = leaf
    return Bias(zeros, learned=False, misaligned=misaligned)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias, shapes: Shapes) -> tuple[Tensor, Tensor | None]:
    """Return the output (b, s, h*d) and what the code keeps of the attention weights until the layer is done."""
    return _eager(q, k, v, bias, shapes) if shapes.eager else _efficient(q, k, v, bias, shapes)


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Bias, shapes: Shapes) -> tuple[Tensor, Tensor]:
    tape, d = q.tape, shapes.head_dim
    q, k = (_autocast(x) for x in (q, k))
    left, right = _by_heads(q, shapes), _by_heads(k, shapes)
    scores = ops.batched_matmul(left, right, d, 0, "attention scores")
    del left, right, q, k
    scores = ops.scale(scores, "scaled scores")
    scores = ops.add(scores, bias.values, "biased scores")
    if bias.mask is not None:
        scores = ops.add(scores, bias.mask, "masked scores")
    weights = ops.softmax(scores, "fp32" if tape.autocast else None)
    del scores
    weights = ops.dropout(weights, shapes.dropout, "attention dropout")
    left, v = _autocast(weights), _autocast(v)
    out = ops.batched_matmul(left, _by_heads(v, shapes), 0, d, "attention output by heads")
    del left, v
    if shapes.heads > 1:
        out = ops.contiguous(out, "attention output")
    return ops.view(out, "b", "s", shapes.heads * d), weights


def _autocast(x: Tensor) -> Tensor:
    return ops.autocast_to(x, x.tape.autocast, "autocast heads") if x.tape.autocast else x


def _by_heads(x: Tensor, shapes: Shapes) -> Tensor:
    """What matmul makes of heads laid out (b, s, h, d): a contiguous copy, unless they can be viewed."""
    return x if shapes.single or shapes.heads == 1 else ops.contiguous(x, "heads for matmul")


def _efficient(q: Tensor, k: Tensor, v: Tensor, bias: Bias, shapes: Shapes) -> tuple[Tensor, None]:
    """Memory-efficient attention with an additive mask: saves q, k, v, the mask, the output and the log-sum-exp."""
    tape, h, d = q.tape, shapes.heads, shapes.head_dim
    q, k, v = (_autocast(x) for x in (q, k, v))
    mask, held = _own_mask(bias, shapes, q.dtype) if bias.misaligned is None else _shared_mask(bias, shapes)
    out = tape.result("attention output", ("b", "s", h, d), q.dtype)
    lse = tape.result("attention log-sum-exp", ("b", h, "E"), "fp32")
    rng = [tape.result(f"attention rng {what}", (), "int64") for what in ("seed", "offset")]
    coefficient, symbols = elements(("b", h, "s", "s", d))
    of = FusedAttention(q.dtype, "efficient", (h, h), (d, d), causal=False)
    tape.count_flops("attention", (4 * coefficient, symbols), of=of)
    inputs = [q, k, v, _expanded(mask[0], shapes)]
    if tape.needs_grad(*inputs):
        grads = [(x.shape, x.requires_grad) for x in inputs]
        dtype = q.dtype

        def backward(g: Grads) -> list[Tensor | None]:
            tape.count_flops("attention", (8 * coefficient, symbols), backward=True, of=of._replace(backward=True))
            tape.count_flops("attention scores again", (2 * coefficient, symbols), backward=True)
            made = [tape.new(f"gradient of {n}", shape, dtype) for n, (shape, _) in zip("qkv", grads, strict=False)]
            row_sums = tape.new("attention backward row sums", ("b", h, "s"), "fp32")
            if grads[3][1]:
                made.append(_mask_gradient(tape, shapes, dtype))
            del row_sums
            return [*(x if need else None for x, (_, need) in zip(made, grads, strict=False)), None][:4]

        saved = [q, k, v, out, lse, *rng, *mask]
        tape.record("scaled_dot_product_attention", inputs, out, saved, backward)
    del held
    return ops.view(out, "b", "s", h * d), None


def _expanded(mask: Tensor, shapes: Shapes) -> Tensor:
    """View the mask as one a sequence; its gradients are summed."""
    tape = mask.tape
    if shapes.single or not tape.needs_grad(mask):
        return mask
    out = Tensor(tape, mask.storage, ("b", *shapes.scores[1:]), mask.dtype)
    shape, dtype = mask.shape, mask.dtype
    tape.record("expand", [mask], out, [], lambda g: [tape.new("gradient of position bias", shape, dtype)])
    return out


def _mask_gradient(tape: Tape, shapes: Shapes, dtype: str) -> Tensor:
    """The gradient of the mask that the kernel makes, with its rows padded."""
    name, h = "gradient of position bias, per sequence", shapes.heads
    if not shapes.single:
        padded = tape.new(name, ("b", h, "s", "F"), dtype)
        return Tensor(tape, padded.storage, ("b", h, "s", "s"), dtype)
    aligned, misaligned = tape.new(name, (1, h, "s", "A"), dtype), tape.new(name, (1, h, "s", "V"), dtype)
    assert aligned.storage is not None
    aligned.storage.tied = misaligned.storage
    return Tensor(tape, aligned.storage, shapes.scores, dtype)


def _shared_mask(bias: Bias, shapes: Shapes) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Zeros shared by the layers, or each layer's own padded copy of them."""
    zeros, tape = bias.values, bias.values.tape
    padded = tape.new("padded position bias", (1, shapes.heads, "s", "V"), zeros.dtype)
    mask = Tensor(tape, zeros.storage, shapes.scores, zeros.dtype)
    if tape.needs_grad(zeros):  # the leaf is there as long as the graph, whether or not the kernel keeps it
        held = bias.misaligned
        tape.record("pad", [zeros], mask, [], lambda g: [_unpadded(g, shapes, held)])
    return [mask, padded], ()


def _own_mask(bias: Bias, shapes: Shapes, dtype: str) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The bias with -inf where causality forbids, by heads, in the kernel's dtype, its rows padded to 16.

    Return it and what lives as long as the attention runs. Where the rows are aligned, the last of these copies is
    what the kernel gets; else it gets one more, padded.
    """
    values, shape = bias.values, shapes.scores
    tape = values.tape
    made = values
    if bias.causal:
        lower = tape.new("causal mask", ("s", "s"), "bool")
        made = ops.like(values, "masked position bias")
        if tape.needs_grad(values):
            source = values.dtype
            tape.record("where", [values], made, [lower], lambda g: [tape.new("masked gradient", shape, source)])
    held: list[Tensor] = []
    if made.dtype != dtype and bias.learned and shapes.heads > 1:
        made = ops.contiguous(made, "position bias by heads")
        held.append(made)
    kept = tape.new("position bias for the kernel", (1, shapes.heads, "s", "F"), dtype)
    mask = Tensor(tape, kept.storage, shape, dtype)
    held.append(tape.new("position bias before padding", (1, shapes.heads, "s", "U"), dtype))
    if tape.needs_grad(made):
        tape.record("pad", [made], mask, [], lambda g: [_unpadded(g, shapes)])
    return [mask], tuple(held)


def _unpadded(grads: Grads, shapes: Shapes, held: Tensor | None = None) -> Tensor | None:
    """Give the gradient back without the padding: where there is any, by a padded copy and one without."""
    grad = grads[0]
    assert grad is not None
    assert grad.storage is not None
    padded = grad.tape.new("padded gradient of position bias", (1, shapes.heads, "s", "V"), grad.dtype)
    if shapes.single:  # else the sum over the sequences is as large as the copy without padding, and stands for it
        grad.storage.tied = None
        cut = grad.tape.new("gradient of position bias", (1, shapes.heads, "s", "U"), grad.dtype)
        grad.storage.tied = cut.storage
    del padded, held
    return grad
