"""Attention: heads, rotary embedding, and the kernels that CUDA picks for `scaled_dot_product_attention`.

Shapes: b sequences, s tokens, h heads and g key/value heads of width d. Memory layout decides copies: a projection's
output viewed as heads is laid out (b, s, h, d), and `matmul` over heads wants (b, h, s, d).
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import FusedAttention
from lorafa_prof.analytic.sizes import elements
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Grads, Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What decides the kernel and its memory."""

    kernel: str
    """"flash", "efficient", "math" or "eager"."""
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    dropout: float = 0.0
    softcap: float | None = None
    single: bool = False
    """One sequence in the batch: heads need no copy to be multiplied."""
    by_heads: bool = False
    """q and k are laid out (b, h, s, d) already, as a concatenation leaves them; flash attention answers alike."""
    softmax_dtype: str | None = None
    """Dtype that the eager code asks its softmax for; None keeps the scores' dtype, or autocast's fp32."""
    casts_weights: bool = True
    """Eager code without a `softmax_dtype` brings its weights back to the queries' dtype (RoBERTa's does not)."""
    value_dim: int | None = None
    """Width of a value head where it is another than that of a query head (multi-head latent attention)."""

    @property
    def value_width(self) -> int:
        """Width of a value head."""
        return self.value_dim or self.head_dim


def split_heads(x: Tensor, heads: int, head_dim: int, *, copies_gradient: bool = False) -> Tensor:
    """View (b, s, h*d) as (b, h, s, d).

    Args:
        x: a projection's output.
        heads: how many heads it holds.
        head_dim: width of one.
        copies_gradient: the gradient arrives laid out by heads, so that viewing it back makes a copy.
    """
    tape = x.tape
    out = Tensor(tape, x.storage, ("b", heads, "s", head_dim), x.dtype)
    if tape.needs_grad(x):
        flat, copies = x.shape, copies_gradient and heads > 1

        def backward(g: Grads) -> list[Tensor | None]:
            grad = g[0]
            assert grad is not None
            if copies:
                return [tape.new("gradient of heads, contiguous", flat, grad.dtype)]
            return [grad.viewed(flat)]

        tape.record("transpose", [x], out, [], backward)
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor, rotated: int | None = None) -> Tensor:
    """x * cos + rotate_half(x) * sin over the first `rotated` of the head's widths (all of them for None)."""
    b, h, s, d = x.shape
    width = int(d) if rotated is None else rotated
    part = x if rotated is None else ops.narrow(x, b, h, s, width)
    rest = None if rotated is None else ops.narrow(x, b, h, s, int(d) - width)
    half = width // 2
    straight = ops.mul(part, cos, "rotary x*cos")
    first, second = ops.narrow(part, b, h, s, half), ops.narrow(part, b, h, s, width - half)
    turned = ops.cat([ops.neg(second), first], b, h, s, width)
    del first, second
    turned_sin = ops.mul(turned, sin, "rotary rotate_half(x)*sin")
    del turned
    out = ops.add(straight, turned_sin, "rotary output")
    del straight, turned_sin
    return out if rest is None else ops.cat([out, rest], b, h, s, d)


def rotary_tables(tape: Tape, head_dim: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Return cos and sin of shape (1, s, d), made once a forward and saved by every layer that multiplies by them."""
    freqs = tape.new("rotary frequencies", ("s", head_dim // 2), "fp32")
    angles = tape.new("rotary angles", ("s", head_dim), "fp32")
    del freqs
    cos = tape.new("rotary cos", ("s", head_dim), "fp32")
    cos = ops.scale(cos, "rotary cos")
    sin = tape.new("rotary sin", ("s", head_dim), "fp32")
    sin = ops.scale(sin, "rotary sin")
    del angles
    return ops.cast(cos, dtype, "rotary cos"), ops.cast(sin, dtype, "rotary sin")


def attend_with_weights(
    q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the attention output, and the weights that eager attention returns beside it and callers hold on to."""
    if options.kernel == "eager":
        return _eager(q, k, v, options, mask)
    if options.kernel == "math":
        return _math(q, k, v, options), None
    return _fused(q, k, v, options, mask), None


def _fused(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, mask: Tensor | None) -> Tensor:
    """Flash or memory-efficient attention: saves q, k, v, the output and each row's log-sum-exp.

    A mask becomes an additive bias that each layer makes and saves for itself; grouped heads are repeated for it.
    Autocast's copies are made of what the kernel is given: of repeated heads, also where the repetition was a view.
    """
    tape, flash = q.tape, options.kernel == "flash"
    h, d, v_dim = options.heads, options.head_dim, options.value_width
    if mask is not None:
        k, v = _repeat_kv(k, options), _repeat_kv(v, options)
    if tape.autocast:
        q, k, v = (ops.autocast_to(x, tape.autocast, "autocast heads") for x in (q, k, v))
    bias = None
    if mask is not None:
        bias = tape.new("attention bias", ("b", "s", "F"), q.dtype)
    out = tape.result("attention output", ("b", "s", h, v_dim), q.dtype)
    lse = tape.result("attention log-sum-exp", ("b", h, "s" if flash else "E"), "fp32")
    state: tuple[int, ...] = (2,) if flash else ()
    rng = [tape.result("attention rng state", state, "int64"), tape.result("attention rng offset", (), "int64")]
    scores, symbols = elements(("b", h, "s", "s"))
    kind = "causal attention" if options.causal and mask is None else "attention"
    key_heads = options.kv_heads if mask is None else h
    of = FusedAttention(q.dtype, options.kernel, (h, key_heads), (d, v_dim), causal=kind == "causal attention")
    tape.count_flops(kind, (2 * scores * (d + v_dim), symbols), of=of)
    if tape.needs_grad(q, k, v):
        inputs = [(name, x.shape, x.requires_grad) for name, x in zip("qkv", (q, k, v), strict=True)]
        dtype = q.dtype

        def backward(g: Grads) -> list[Tensor | None]:
            # the gradients take four products; the fused kernels make the scores again for them
            tape.count_flops(kind, (4 * scores * (d + v_dim), symbols), backward=True, of=of._replace(backward=True))
            tape.count_flops(f"{kind} scores again", (2 * scores * d, symbols), backward=True)
            made = [tape.new(f"gradient of {name}", shape, dtype) for name, shape, _ in inputs]
            scratch = _backward_scratch(tape, options, dtype)
            del scratch
            return [x if need else None for x, (_, _, need) in zip(made, inputs, strict=True)]

        tape.record("scaled_dot_product_attention", [q, k, v], out, [q, k, v, bias, out, lse, *rng], backward)
    if options.by_heads and flash:
        out = ops.contiguous(out, "attention output, contiguous")
    return ops.view(out, "b", "s", h * v_dim)


def _backward_scratch(tape: Tape, options: AttentionOptions, dtype: str) -> list[Tensor]:
    """Return what the backward kernel holds while it runs (mha_bwd in ATen's flash_api.cpp)."""
    h, d = options.heads, options.head_dim
    if options.kernel != "flash":
        return [tape.new("attention backward row sums", ("b", h, "s"), "fp32")]
    scratch = [
        tape.new("attention backward row sums", ("b", h, "S"), "fp32"),
        tape.new("attention backward dq accumulator", ("b", "S", h, _padded(d)), "fp32"),
    ]
    if options.kv_heads != h:  # one gradient a query head, summed over each group afterwards
        scratch += [tape.new(f"gradient of expanded {name}", ("b", "s", h, d), dtype) for name in "kv"]
    return scratch


def _padded(head_dim: int) -> int:
    """Flash attention's accumulators pad the head to 32 up to 128, to 64 beyond."""
    step = 32 if head_dim <= 128 else 64
    return -(-head_dim // step) * step


def _eager(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """transformers' eager attention: scores (b, h, s, s), softmax, product with the values."""
    k, v = _repeat_kv(k, options), _repeat_kv(v, options)
    weights = _product(q, k, options, scores=True)
    weights = ops.scale(weights, "scaled scores")
    if options.softcap is not None:
        weights = ops.scale(weights, "scores / softcap")
        weights = ops.unary(weights, "tanh", saves="output")
        weights = ops.scale(weights, "capped scores")
    if mask is not None:
        weights = ops.add(weights, mask, "masked scores")
    if options.softmax_dtype is not None:
        weights = ops.cast(ops.softmax(weights, options.softmax_dtype), q.dtype, "attention weights")
    else:
        weights = ops.softmax(weights, "fp32" if q.tape.autocast else None)
        if options.casts_weights:
            weights = ops.cast(weights, q.dtype, "attention weights")
    weights = ops.dropout(weights, options.dropout, "attention dropout")
    return _joined(_product(weights, v, options, scores=False), options), weights


def _math(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """PyTorch's unfused path, which takes what no fused kernel does: grouped heads in fp32, without a mask.

    Queries and keys are each scaled by the root of the scale; heads are repeated inside, one head too; the causal mask
    is made by each layer for itself (_scaled_dot_product_attention_math in ATen's attention.cpp). What has a name
    there lives until it returns.
    """
    tape = q.tape
    scaled = ops.scale(q, "scaled queries")
    mask = _causal_mask(tape, q.dtype) if options.causal else None
    keys, values = _repeated(k, options), _repeated(v, options)
    turned = ops.scale(keys, "scaled keys")
    left = _by_heads(scaled, options, ready=options.by_heads)
    weights = ops.batched_matmul(left, turned, options.head_dim, 0, "attention scores")
    del left, turned
    if mask is not None:
        weights = ops.add(weights, mask, "masked scores")
    weights = ops.dropout(ops.softmax(weights), options.dropout, "attention dropout")
    out = ops.batched_matmul(weights, values, 0, options.value_width, "attention output by heads")
    del scaled, mask, keys, values, weights
    return _joined(out, options)


def _causal_mask(tape: Tape, dtype: str) -> Tensor:
    """Return 0 where a token may look and -inf where it may not: (s, s), from a triangle of booleans."""
    ones = tape.new("causal mask, all set", ("s", "s"), "bool")
    triangle = tape.new("causal mask", ("s", "s"), "bool")
    del ones
    mask = tape.new("attention bias", ("s", "s"), dtype)
    del triangle
    tape.moved("where", [], [mask])
    return mask


def _product(a: Tensor, b: Tensor, options: AttentionOptions, *, scores: bool) -> Tensor:
    """q @ k.T (`scores`) or weights @ v, as torch.matmul runs it over heads.

    Autocast's copies come first, then those laid out (b, h, s, d) of heads that are not; all last until the product is
    there. Repeated key/value heads are laid out so already, unless they are one head's view.
    """
    if a.tape.autocast:
        a, b = (ops.autocast_to(x, a.tape.autocast, "autocast attention input") for x in (a, b))
    repeated = 1 < options.kv_heads < options.heads
    left = _by_heads(a, options, ready=options.by_heads or not scores)
    right = _by_heads(b, options, ready=repeated or (options.by_heads and scores))
    if scores:
        return ops.batched_matmul(left, right, options.head_dim, 0, "attention scores")
    return ops.batched_matmul(left, right, 0, options.value_width, "attention output by heads")


def _joined(x: Tensor, options: AttentionOptions) -> Tensor:
    """Lay out (b, h, s, d) as (b, s, h*d): a copy, and one back for the matmul whose gradient it is."""
    out = x.tape.new("attention output", ("b", "s", options.heads * options.value_width), x.dtype)
    if x.tape.needs_grad(x):
        shape, viewable = x.shape, options.single or options.heads == 1

        def backward(g: Grads) -> list[Tensor | None]:
            grad = g[0]
            assert grad is not None
            if viewable:
                return [grad.viewed(shape)]
            return [grad.tape.new("gradient by heads", shape, grad.dtype)]

        x.tape.record("clone", [x], out, [], backward)
    x.tape.moved("clone", [x], [out])
    return out


def _repeat_kv(x: Tensor, options: AttentionOptions) -> Tensor:
    """Repeat each key/value head for the query heads that share it: a copy, summed over the group in backward.

    A single head is repeated by a view.
    """
    if options.heads == options.kv_heads:
        return x
    return _repeated(x, options, copied=options.kv_heads > 1)


def _repeated(x: Tensor, options: AttentionOptions, *, copied: bool = True) -> Tensor:
    """Repeat key/value heads, by a copy or a view; backward sums over each group."""
    tape = x.tape
    shape = ("b", options.heads, "s", options.head_dim)
    out = tape.new("repeated key/value heads", shape, x.dtype) if copied else Tensor(tape, x.storage, shape, x.dtype)
    if tape.needs_grad(x):
        source = x.shape
        tape.record("expand", [x], out, [], lambda g: [tape.new("gradient summed over heads", source, x_dtype(g))])
    if copied:
        tape.moved("clone", [x], [out])
    return out


def x_dtype(grads: Grads) -> str:
    """Return the dtype of the only gradient."""
    assert grads[0] is not None
    return grads[0].dtype


def _by_heads(x: Tensor, options: AttentionOptions, *, ready: bool) -> Tensor:
    """What matmul makes of heads laid out (b, s, h, d): a contiguous copy, unless they can be viewed."""
    if ready or options.single or x.shape[1] == 1:
        return x
    return ops.contiguous(x, "heads for matmul")
