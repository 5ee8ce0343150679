"""Fused attention: one kernel forward, several backward (ATen/native/transformers/cuda, flash-attention 2).

What is read and written is each tensor once. Blocks of keys are read again for each block of queries, from the cache
where they fit; that is the kernel's affair, which its rate has to show.
"""

from __future__ import annotations

from typing import Any

import torch

from lorafa_prof.simulate.kernels.work.registry import Part, register, size, sizes, whole
from lorafa_prof.simulate.kernels.workspaces import KernelCall, kernel_workspaces
from lorafa_prof.speed.work import AttentionProduct

FP32 = 4


def _shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: Any, backward: bool = False
) -> AttentionProduct:
    batch, heads, queries, width = query.shape
    return AttentionProduct(
        batch=batch, heads=heads, key_heads=key.shape[1], queries=queries, keys=key.shape[2], width=width,
        value_width=value.shape[3], causal=bool(causal), backward=backward,
    )  # fmt: skip


def _forward(call: KernelCall, causal: Any, bias: torch.Tensor | None = None, kernels: int = 1) -> list[Part]:
    query, key, value = call.args[:3]
    shape = _shape(query, key, value, causal=causal)
    written = sum(whole(out) for out in call.outputs[:2])
    return [
        Part(
            kind="attention", read=sizes((query, key, value, bias)), written=written, dtype=query.dtype,
            flops=shape.flops, attention=shape, kernels=kernels,
        )
    ]  # fmt: skip


@register("aten._scaled_dot_product_flash_attention")
def flash(call: KernelCall) -> list[Part]:
    """One kernel; where keys are split, another one that puts their parts together."""
    buffers = sum(buffer.nbytes for buffer in kernel_workspaces(call))
    (part,) = _forward(call, call.argument(4, "is_causal", False))
    if not buffers:
        return [part]
    return [part, Part(what="combine splits", read=buffers, written=part.written)]


@register("aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention")
def efficient(call: KernelCall) -> list[Part]:
    """One kernel; a bias is read by all."""
    return _forward(call, call.argument(6, "is_causal", False), call.argument(3, "attn_bias"))


@register("aten._scaled_dot_product_flash_attention_for_cpu")
def flash_for_cpu(call: KernelCall) -> list[Part]:
    """One loop."""
    return _forward(call, call.argument(4, "is_causal", False), call.kwargs.get("attn_mask"))


def _backward(call: KernelCall, causal: Any, extra: int = 0, kernels: int = 1, bias: Any = None) -> Part:
    """Return the products; `extra` bytes are written and read by the kernels beside arguments and results."""
    grad, query, key, value = call.args[:4]
    shape = _shape(query, key, value, causal=causal, backward=True)
    others = [x for x in call.args[4:7] if isinstance(x, torch.Tensor) and x is not bias]  # the output, log-sum-exp
    written = sum(whole(out) for out in call.outputs[:3])
    return Part(
        kind="attention", read=sizes((grad, query, key, value, *others, bias)) + extra, written=written + extra,
        dtype=query.dtype, flops=shape.flops, attention=shape, kernels=kernels,
    )  # fmt: skip


@register("aten._scaled_dot_product_flash_attention_backward")
def flash_backward(call: KernelCall) -> list[Part]:
    """Row sums of grad * out, which also clears the query's gradient in fp32; the products; that gradient's cast.

    Gradients and outputs that do not lie as the kernel reads them are copied first. Of heads that share keys and values
    each has a gradient of them, summed afterwards.
    """
    buffers = {buffer.name: buffer.nbytes for buffer in kernel_workspaces(call)}
    inside = buffers.get("softmax_d", 0) + buffers.get("dq_accum", 0)
    parts = [
        Part(what=f"copy of {name}", read=buffers[name], written=buffers[name])
        for name in ("grad_out", "out")
        if name in buffers
    ]
    products = _backward(call, call.argument(11, "is_causal"), inside, kernels=3)
    expanded = [buffers[name] for name in ("dk_expanded", "dv_expanded") if name in buffers]
    sums = [
        Part(what="sum over shared heads", read=nbytes, written=whole(out))
        for nbytes, out in zip(expanded, call.outputs[1:3], strict=False)
    ]
    return [*parts, products, *sums]


@register("aten._scaled_dot_product_efficient_attention_backward")
def efficient_backward(call: KernelCall) -> list[Part]:
    """The products, with what they sum up in memory; before that the row sums, where the kernel does not make them."""
    buffers = {buffer.name: buffer.nbytes for buffer in kernel_workspaces(call)}
    inside = buffers.get("delta", 0) + buffers.get("gradient accumulators", 0)
    parts = []
    if "grad_out" in buffers:
        parts.append(Part(what="copy of grad_out", read=buffers["grad_out"], written=buffers["grad_out"]))
    if "grad_out * out" in buffers:
        made = [n for name, n in buffers.items() if name.endswith(("in float32", "* out", "over the head"))]
        given = size(call.args[0]) + size(call.args[5])
        parts.append(Part(what="row sums", read=given + sum(made), written=sum(made), kernels=len(made)))
    products = _backward(call, call.argument(11, "is_causal", False), inside, bias=call.args[4])
    return [*parts, products]


@register("aten._scaled_dot_product_cudnn_attention_backward")
def cudnn_backward(call: KernelCall) -> list[Part]:
    """As cuDNN does it: row sums, products, and the cast of what was summed up in fp32; its source is not public."""
    accumulated = call.args[1].numel() * FP32
    return [_backward(call, call.argument(14, "is_causal"), accumulated, kernels=3)]


@register("aten._scaled_dot_product_flash_attention_for_cpu_backward")
def flash_for_cpu_backward(call: KernelCall) -> list[Part]:
    """One loop."""
    return [_backward(call, call.argument(7, "is_causal"), bias=call.kwargs.get("attn_mask"))]
