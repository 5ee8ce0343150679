"""Floating-point operations of an operator, from the shapes of its arguments: PyTorch's table, and what it leaves out.

A multiplication and an addition are one each. Products and attention count, attention in full, as if nothing were
masked; an elementwise operation counts nothing, nor does the dequantisation of a weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

aten = torch.ops.aten
Shape = Sequence[int]
Formula = Callable[..., int]


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Two products, scores and their sum over values; query [B, H, S, K], key [B, G, T, K], value [B, G, T, V]."""
    return int(sdpa_flop_count(query, key, value))


def attention_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Five products: fused kernels make the scores again."""
    return int(sdpa_backward_flop_count(grad, query, key, value))


def _grouped_product(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Rows of a, each against one of b's matrices; or, where both have two dimensions, sums over groups of rows."""
    return 2 * math.prod(a) * b[-1]


def _product_4bit(a: Shape, packed: Shape, shape: Shape, *_: Any, **__: Any) -> int:
    """a [..., k] by the transpose of a packed [n, k]."""
    del packed
    return 2 * math.prod(a) * shape[0]


def _product_8bit(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """a [..., k] by the transpose of b [n, k]."""
    return 2 * math.prod(a) * b[0]


def _mixed_product_8bit(a: Shape, quantised: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """a [..., k], quantised as well, by the transpose of a weight [n, k]; columns with outliers are left out."""
    del quantised
    return 2 * math.prod(a) * weight[0]


#: bitsandbytes' operators, there once it has been imported.
_QUANTIZED: dict[str, Formula] = {
    "gemm_4bit": _product_4bit, "gemv_4bit": _product_4bit, "int8_linear_matmul": _product_8bit,
    "int8_scaled_mm": _product_8bit, "int8_mixed_scaled_mm": _mixed_product_8bit,
}  # fmt: skip


def beyond_torch() -> dict[Any, Formula]:
    """Return formulas for operators that torch's table leaves out, those of bitsandbytes if it has been imported."""
    formulas: dict[Any, Formula] = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        aten._grouped_mm: _grouped_product,
    }
    for name, formula in _QUANTIZED.items():
        if hasattr(torch.ops.bitsandbytes, name):
            formulas[getattr(torch.ops.bitsandbytes, name)] = formula
    return formulas


@functools.cache
def formula_of(func: Any) -> Formula | None:
    """Return the formula of an operator, which takes what the operator takes and `out_val`; None: it has none."""
    packet = getattr(func, "_overloadpacket", func)
    ours = beyond_torch().get(packet)
    return flop_registry.get(packet) if ours is None else shape_wrapper(ours)
