"""bitsandbytes' operators, whose kernels for CUDA are Python that allocates (bitsandbytes 0.50, backends/cuda/ops.py).

0.50 multiplies 4-bit weights through `gemm_4bit`, which dequantises the whole weight inside the operator unless its own
kernel is thought faster; a release without that operator dequantises in one that is visible.
"""

from __future__ import annotations

import math

import torch

from lorafa_prof.simulate.kernels.workspaces.registry import KernelCall, Workspace, contiguous_copy, register

INT32, FP16, FP32 = 4, 2, 4
#: Up to here the fused kernel is always taken for 16-bit inputs (_GEMM_4BIT_CUSTOM_FLOOR_M).
FUSED_ALWAYS_ROWS = 4


@register("bitsandbytes.gemm_4bit.default")
def gemm_4bit(call: KernelCall) -> list[Workspace]:
    """The dequantised weight [N, K], and the scales where these are quantised too (`_dequant_linear_fallback`).

    Between 5 and 1536 rows a table of measured thresholds decides (`_gemm_4bit_use_custom_cuda`); here the weight
    counts as dequantised, the larger of the two.
    """
    inputs, shape, blocksize = call.argument(0, "A"), call.argument(2, "shapeB"), call.argument(4, "blocksize")
    scales = call.argument(7, "absmax_8bit")
    width = inputs.shape[-1]
    rows = inputs.numel() // width
    if rows <= FUSED_ALWAYS_ROWS and inputs.dtype is not torch.float32 and width % blocksize == 0:
        return contiguous_copy("A", inputs, after_outputs=False)
    buffers = []
    if scales is not None:
        # the scales in float32, then the same with their offset
        buffers += [Workspace(name, scales.numel() * FP32, after_outputs=False) for name in ("absmax_dq", "absmax")]
    weight = math.prod(shape) * inputs.element_size()
    return [*buffers, Workspace("B_dq", weight, after_outputs=False)]


@register("bitsandbytes.int8_scaled_mm.default")
def int8_scaled_mm(call: KernelCall) -> list[Workspace]:
    """The integer product [M, N] and, unless float16 is asked for, the result in float16 (`int8_mm_dequant`)."""
    return _integer_product(call.outputs[0])


@register("bitsandbytes.int8_mixed_scaled_mm.default")
def int8_mixed_scaled_mm(call: KernelCall) -> list[Workspace]:
    """The same; the product of outlying columns, whose number is in the data, is left out (`UNMODELLED`)."""
    return _integer_product(call.outputs[0])


@register("bitsandbytes.int8_mm_dequant.default")
def int8_mm_dequant(call: KernelCall) -> list[Workspace]:
    """The result in float16, unless that is what was asked for."""
    return _integer_product(call.outputs[0])[1:]


@register("bitsandbytes.int8_vectorwise_quant.default")
def int8_vectorwise_quant(call: KernelCall) -> list[Workspace]:
    """The magnitudes and the mask of the outliers, where a threshold asks for these."""
    inputs = call.argument(0, "A")
    if not call.argument(1, "threshold", 0.0):
        return []
    return [
        Workspace("magnitudes", inputs.numel() * inputs.element_size(), True, freed_before="columns with outliers"),
        Workspace("outliers", inputs.numel(), after_outputs=True),
        Workspace("columns with outliers", inputs.shape[-1], after_outputs=True),
    ]


def _integer_product(output: torch.Tensor) -> list[Workspace]:
    converted = output.dtype is not torch.float16
    return [
        Workspace("out_i32", output.numel() * INT32, after_outputs=False),
        Workspace("out in float16", output.numel() * FP16 if converted else 0, after_outputs=False),
    ]
