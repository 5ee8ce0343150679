"""bitsandbytes' 8-bit products on meta, where the number of columns with outliers is not known: here there are none.

On CUDA the columns of the input with a value beyond the threshold are looked for and multiplied in 16 bits. Their
number is in the data; without any, the operators return an empty list of columns and an empty matrix of their values
(bitsandbytes 0.50, backends/cuda/ops.py and backends/default/ops.py), which is what these stand-ins do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch


def int8_vectorwise_quant(
    inputs: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the quantised rows [..., K], a scale for each [N], and the columns with outliers (none)."""
    row_stats = inputs.new_empty(inputs.numel() // inputs.shape[-1], dtype=torch.float32)
    out_row = torch.empty_like(inputs, dtype=torch.int8)
    outlier_columns = inputs.new_empty(0, dtype=torch.int64) if threshold > 0.0 else None
    return out_row, row_stats, outlier_columns


def int8_mixed_scaled_mm(
    inputs: torch.Tensor, quantised: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the product [..., M] in the inputs' dtype, and the values of the columns with outliers (none)."""
    return inputs.new_empty((*quantised.shape[:-1], weight.shape[0])), inputs.new_empty(0)


#: Operators whose outputs' shapes depend on the data, and what runs in their place.
STAND_INS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "bitsandbytes.int8_vectorwise_quant.default": int8_vectorwise_quant,
        "bitsandbytes.int8_mixed_scaled_mm.default": int8_mixed_scaled_mm,
    }
)
