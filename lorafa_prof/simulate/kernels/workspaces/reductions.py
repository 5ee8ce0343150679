"""Reductions: the staging buffer of the thread blocks, and the copy of an input that has to change its type first.

Sources: ATen/native/ReduceOps.cpp, ReduceOpsUtils.h and cuda/{ReduceSumProdKernel, ReduceMomentKernel,
ReduceNormKernel, ReduceLogicKernel, ReduceMaxValuesKernel, ReduceArgMaxKernel, ForeachReduceOp}.cu.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lorafa_prof.simulate.kernels.workspaces.reduce_plan import Element, staging
from lorafa_prof.simulate.kernels.workspaces.registry import KernelCall, Workspace, ceil_div, register

HALF = (torch.float16, torch.bfloat16)
#: A value and its int64 index, aligned to 8 bytes.
VALUE_AND_INDEX = 16
#: Elements that one thread block of a foreach kernel takes (kChunkSize, cuda/MultiTensorApply.cuh).
FOREACH_CHUNK = 65536


@register("aten.sum.default", "aten.sum.dim_IntList", "aten.mean.default", "aten.mean.dim")
def sum_or_mean(call: KernelCall) -> list[Workspace]:
    """Partial sums in the type of accumulation; 16-bit inputs are read eight at a time."""
    wide = call.argument(0, "self").dtype in HALF
    over = None if call.name.endswith(".default") else call.argument(1, "dim")
    return _reduce(call, over, vector=8 if wide else 4)


@register("aten.linalg_vector_norm.default")
def vector_norm(call: KernelCall) -> list[Workspace]:
    """Partial norms in the type of accumulation."""
    return _reduce(call, call.argument(2, "dim"))


@register("aten.amax.default", "aten.amin.default")
def extremum(call: KernelCall) -> list[Workspace]:
    """Partial extrema, in the type of the input."""
    return _reduce(call, call.argument(1, "dim"), partial=call.outputs[0].element_size())


@register("aten.max.default", "aten.min.default")
def total_extremum(call: KernelCall) -> list[Workspace]:
    """The same over all elements."""
    return _reduce(call, None, partial=call.outputs[0].element_size())


@register("aten.max.dim", "aten.min.dim", "aten.argmax.default", "aten.argmin.default")
def indexed_extremum(call: KernelCall) -> list[Workspace]:
    """Partial extrema, each with its index."""
    dim = call.argument(1, "dim")
    return _reduce(call, None if dim is None else (dim,), partial=VALUE_AND_INDEX, cast=False)


@register(
    "aten.any.default", "aten.any.dim", "aten.any.dims",
    "aten.all.default", "aten.all.dim", "aten.all.dims",
)  # fmt: skip
def any_or_all(call: KernelCall) -> list[Workspace]:
    """Partial answers of one byte, read from the input whatever its type."""
    dim = call.argument(1, "dim")
    return _reduce(call, (dim,) if isinstance(dim, int) else dim, partial=1, cast=False)


def _reduce(
    call: KernelCall, over: Iterable[int] | None, *, vector: int = 4, partial: int | None = None, cast: bool = True
) -> list[Workspace]:
    tensor: torch.Tensor = call.argument(0, "self")
    output = call.outputs[0]
    buffers = []
    # make_reduction_from_out_ty: 16-bit inputs are read into float32 outputs as they are; any other change of type is
    # a copy of the input first
    if cast and tensor.dtype is not output.dtype and not (tensor.dtype in HALF and output.dtype is torch.float32):
        buffers.append(Workspace("input", tensor.numel() * output.element_size(), after_outputs=True))
        tensor = torch.empty_like(tensor, dtype=output.dtype, device="meta")
    plan = staging(tensor, over, _element(tensor, output, vector, partial), call.device)
    return [
        *buffers,
        Workspace("accumulation buffer", plan.accumulation, after_outputs=True),
        Workspace("staging buffer", plan.buffer, after_outputs=True),
        Workspace("semaphores", plan.semaphores, after_outputs=True),
    ]


def _element(tensor: torch.Tensor, output: torch.Tensor, vector: int, partial: int | None) -> Element:
    size = output.element_size()
    return Element(
        input=tensor.element_size(),
        output=size,
        # 16-bit floats accumulate in float32, everything else in its own type
        partial=partial or (4 if output.dtype in HALF else size),
        vector=vector,
        accumulates_in_output=not (tensor.dtype in HALF and output.dtype is tensor.dtype),
    )


@register("aten._foreach_norm.Scalar")
def foreach_norm(call: KernelCall) -> list[Workspace]:
    """One partial norm for each chunk of each tensor, as many chunks as the largest tensor has.

    `foreach_tensor_norm_cuda_internal`, which takes norms of one and two and, from 2.5 on, the largest element; others
    are taken tensor by tensor.
    """
    tensors: list[torch.Tensor] = list(call.argument(0, "self"))
    chunks = max(ceil_div(tensor.numel(), FOREACH_CHUNK) for tensor in tensors)
    dtype: Any = call.argument(2, "dtype") or tensors[0].dtype
    partial = torch.float32 if dtype in HALF else dtype
    return [Workspace("output_per_tensor", len(tensors) * chunks * partial.itemsize, after_outputs=False)]
