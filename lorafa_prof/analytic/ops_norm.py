"""Norms: what RMSNorm, written out op by op, and the fused LayerNorm allocate and keep for backward."""

from __future__ import annotations

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.tensors import Grads, Parameter, Tensor


def rms_norm(x: Tensor, weight: Parameter) -> Tensor:
    """Llama's RMSNorm, op by op: x to fp32, x * rsqrt(mean(x**2) + eps), back to x's dtype, times the weight."""
    wide = ops.cast(x, "fp32", "norm input")
    inverse = ops.rsqrt(ops.shift(ops.row_mean(ops.power(wide)), "variance + eps"))
    normed = ops.mul(wide, inverse, "normed")
    del wide, inverse
    narrowed = ops.cast(normed, x.dtype, "normed")
    del normed
    return ops.mul(weight, narrowed, "norm output")


def gemma_rms_norm(x: Tensor, weight: Parameter) -> Tensor:
    """Gemma's RMSNorm: the product with (1 + weight) happens in fp32, and the cast comes last."""
    wide = ops.cast(x, "fp32", "norm input")
    inverse = ops.rsqrt(ops.shift(ops.row_mean(ops.power(wide)), "variance + eps"))
    normed = ops.mul(wide, inverse, "normed")
    del wide, inverse
    factor = ops.shift(ops.cast(weight, "fp32", "norm weight"), "1 + weight")
    product = ops.mul(normed, factor, "norm product")
    del normed, factor
    return ops.cast(product, x.dtype, "norm output")


def layer_norm(x: Tensor, weight: Parameter, bias: Parameter) -> Tensor:
    """Fused native_layer_norm: saves x and each row's mean and rstd in fp32. Autocast runs it in fp32."""
    tape = x.tape
    if tape.autocast:
        x = ops.cast(x, "fp32", "layer norm input")
    out_dtype = x.dtype
    params = [ops.cast(p, out_dtype, "layer norm weight") for p in (weight, bias)] if tape.autocast else [weight, bias]
    out = ops.like(x, "layer norm output")
    mean = tape.new("layer norm mean", (*x.shape[:-1], 1), "fp32")
    rstd = tape.new("layer norm rstd", (*x.shape[:-1], 1), "fp32")
    if tape.needs_grad(x, *params):
        need_x, need_w = x.requires_grad, weight.requires_grad
        shape, w_shape = x.shape, weight.shape

        def backward(g: Grads) -> list[Tensor | None]:
            grad_x = tape.new("gradient of layer norm input", shape, out_dtype) if need_x else None
            grads = [tape.new("gradient of layer norm weight", w_shape, out_dtype) if need_w else None for _ in (0, 1)]
            return [grad_x, *grads]

        tape.record("native_layer_norm", [x, *params], out, [x, *params, mean, rstd], backward)
    return out
