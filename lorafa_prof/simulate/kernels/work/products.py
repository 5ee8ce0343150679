"""Matrix products: which, and what they read and write. Both matrices and the result, each once.

Kernels of cuBLAS may read a matrix more than once, tile by tile; how much of that the cache keeps is the device's.
"""

from __future__ import annotations

import math

import torch

from lorafa_prof.simulate.kernels.work.registry import Part, register, size, sizes, whole
from lorafa_prof.simulate.kernels.workspaces import KernelCall
from lorafa_prof.simulate.kernels.workspaces.quantized import FUSED_ALWAYS_ROWS
from lorafa_prof.simulate.kernels.workspaces.registry import ceil_div
from lorafa_prof.speed.work import MatrixProduct

INT32, FP16, FP32 = 4, 2, 4


def _product(a: torch.Tensor, b: torch.Tensor) -> MatrixProduct:
    """a [.., m, k] by b [.., k, n]."""
    return MatrixProduct(batch=math.prod(a.shape[:-2]), m=a.shape[-2], k=a.shape[-1], n=b.shape[-1])


def _plain(call: KernelCall, a: torch.Tensor, b: torch.Tensor, added: torch.Tensor | None = None) -> list[Part]:
    product = _product(a, b)
    out = call.outputs[0]
    return [
        Part(
            kind="matmul", read=sizes((a, b, added)), written=whole(out), dtype=a.dtype, product=product,
            flops=2 * product.batch * product.m * product.n * product.k,
        )
    ]  # fmt: skip


@register("aten.mm", "aten.bmm")
def mm(call: KernelCall) -> list[Part]:
    """One kernel."""
    return _plain(call, call.argument(0, "self"), call.argument(1, "mat2"))


@register("aten.addmm", "aten.addmm_", "aten.baddbmm", "aten.baddbmm_", "aten._addmm_activation")
def addmm(call: KernelCall) -> list[Part]:
    """The bias is added within, in an epilogue or where the result is to be."""
    return _plain(call, call.args[1], call.args[2], call.args[0])


@register("aten._grouped_mm")
def grouped_mm(call: KernelCall) -> list[Part]:
    """Groups of rows, each by a matrix of its own; of groups that are not even the average, rounded up, is the shape.

    a [rows, k] by b [groups, k, n]; a [m, columns] by b [columns, n], summed over groups of columns; batches by
    batches. A kernel that sets up the groups' pointers comes first (ATen/native/cuda/GroupMM.cu).
    """
    a, b = call.argument(0, "self"), call.argument(1, "mat2")
    groups = call.argument(2, "offs")
    flops = 2 * a.numel() * b.shape[-1]
    if a.dim() == b.dim() == 3:
        product = _product(a, b)
    elif a.dim() == 2 and b.dim() == 3:
        count = b.shape[0]
        product = MatrixProduct(batch=count, m=ceil_div(a.shape[0], count), k=a.shape[1], n=b.shape[2])
    elif a.dim() == 3:
        count = a.shape[0]
        product = MatrixProduct(batch=count, m=a.shape[1], k=a.shape[2], n=ceil_div(b.shape[1], count))
        flops = 2 * a.shape[1] * a.shape[2] * b.shape[1]
    else:
        count = groups.shape[0]
        product = MatrixProduct(batch=count, m=a.shape[0], k=ceil_div(a.shape[1], count), n=b.shape[1])
    out = call.outputs[0]
    return [
        Part(
            kind="matmul", read=sizes((a, b, groups)), written=whole(out), dtype=a.dtype, product=product,
            flops=flops, kernels=2,
        )
    ]  # fmt: skip


# -- bitsandbytes 0.50, backends/cuda/ops.py -------------------------------------------------------------------------


@register("bitsandbytes.gemm_4bit")
def gemm_4bit(call: KernelCall) -> list[Part]:
    """The weight [n, k] is dequantised, then multiplied; a fused kernel does both for up to 4 rows.

    Where the scales are quantised too, they come first: looked up, then their offset is added.
    """
    inputs, packed, shape = call.argument(0, "A"), call.argument(1, "B"), call.argument(2, "shapeB")
    absmax, blocksize, bias = call.argument(3, "absmax"), call.argument(4, "blocksize"), call.argument(6, "bias")
    scales = call.argument(7, "absmax_8bit")
    k = inputs.shape[-1]
    rows = inputs.numel() // k
    product = MatrixProduct(batch=1, m=rows, k=k, n=shape[0])
    flops, out = 2 * rows * k * shape[0], whole(call.outputs[0])
    fused = rows <= FUSED_ALWAYS_ROWS and inputs.dtype is not torch.float32 and k % blocksize == 0
    if fused:
        read = sizes((inputs, packed, absmax, scales, bias))
        return [Part(kind="matmul", read=read, written=out, dtype=inputs.dtype, product=product, flops=flops)]
    dense = math.prod(shape) * inputs.element_size()
    parts = []
    if scales is not None:
        unpacked = scales.numel() * FP32
        parts.append(Part(what="scales", read=size(scales) + size(absmax) + unpacked, written=2 * unpacked, kernels=2))
        read = size(packed) + unpacked
    else:
        read = sizes((packed, absmax))
    parts.append(Part(what="dequantise", read=read, written=dense, dtype=inputs.dtype))
    parts.append(
        Part(
            kind="matmul", read=size(inputs) + dense + size(bias), written=out, dtype=inputs.dtype, product=product,
            flops=flops,
        )
    )  # fmt: skip
    return parts


@register("bitsandbytes.int8_vectorwise_quant")
def int8_vectorwise_quant(call: KernelCall) -> list[Part]:
    """Each row, after its outliers: where a threshold asks, a mask is made, and the host asks whether there are any."""
    inputs = call.argument(0, "A")
    rows, scales = call.outputs[:2]
    quantise = Part(what="quantise", read=size(inputs), written=whole(rows) + whole(scales), dtype=inputs.dtype)
    if not call.argument(1, "threshold", 0.0):
        return [quantise]
    given, mask = size(inputs), inputs.numel()
    return [
        Part(what="magnitudes", read=given, written=given, dtype=inputs.dtype),
        Part(what="outliers", read=given, written=mask, dtype=inputs.dtype),
        Part(what="whether there are any", read=mask, written=1, dtype=inputs.dtype, waits=True),
        quantise,
    ]


@register("bitsandbytes.int8_scaled_mm")
def int8_scaled_mm(call: KernelCall) -> list[Part]:
    """The integer product, and its scaling into float16; into another dtype by a copy."""
    return _int8_product(call, call.argument(0, "A"), call.argument(1, "B"))


@register("bitsandbytes.int8_mixed_scaled_mm")
def int8_mixed_scaled_mm(call: KernelCall) -> list[Part]:
    """The same; the columns with outliers, whose number is in the data, are left out."""
    return _int8_product(call, call.argument(1, "CA"), call.argument(2, "CB"))


def _int8_product(call: KernelCall, a: torch.Tensor, b: torch.Tensor) -> list[Part]:
    k, n = a.shape[-1], b.shape[0]
    rows = a.numel() // k
    product = MatrixProduct(batch=1, m=rows, k=k, n=n)
    out = call.outputs[0]
    integers, halves = rows * n * INT32, rows * n * FP16
    parts = [
        Part(
            kind="matmul", read=size(a) + size(b), written=integers, dtype=torch.int8, product=product,
            flops=2 * rows * k * n,
        ),
        Part(what="scale", read=integers + (rows + n) * FP32, written=halves, dtype=torch.float16),
    ]  # fmt: skip
    if out.dtype is not torch.float16:
        parts.append(Part(what="cast", read=halves, written=whole(out)))
    return parts
