"""Matrices that cuBLAS cannot read as they lie are copied first (ATen/native/cuda/{Blas.cpp,cuBlasCommonArgs.h}).

cuBLAS reads a matrix whose rows or whose columns are dense. Others, such as an expanded gradient or a slice with a
step, are cloned by the kernel, which autograd never sees. The workspaces of the library itself are in `libraries`.
"""

from __future__ import annotations

import torch

from lorafa_prof.simulate.kernels.workspaces.registry import KernelCall, Workspace, nbytes, register


@register("aten.mm.default", "aten.mm.out", "aten.mm.dtype")
def mm(call: KernelCall) -> list[Workspace]:
    """Clones of the two matrices."""
    return _matrix_clones(call.argument(0, "self"), call.argument(1, "mat2"))


@register("aten.addmm.default", "aten.addmm.out", "aten.addmm_.default")
def addmm(call: KernelCall) -> list[Workspace]:
    """Clones of the two matrices; the bias is either read in cuBLASLt's epilogue or copied into the output."""
    return _matrix_clones(call.argument(1, "mat1"), call.argument(2, "mat2"))


@register("aten.bmm.default", "aten.bmm.dtype")
def bmm(call: KernelCall) -> list[Workspace]:
    """Clones of the two batches of matrices."""
    return _batch_clones(call.argument(0, "self"), call.argument(1, "mat2"))


@register("aten.baddbmm.default", "aten.baddbmm_.default")
def baddbmm(call: KernelCall) -> list[Workspace]:
    """Clones of the two batches of matrices."""
    return _batch_clones(call.argument(1, "batch1"), call.argument(2, "batch2"))


def _matrix_clones(first: torch.Tensor, second: torch.Tensor) -> list[Workspace]:
    # The output is row-major, so the kernel computes its transpose and takes the second matrix first.
    ordered = (("second matrix", second), ("first matrix", first))
    return [Workspace(name, nbytes(matrix), after_outputs=True) for name, matrix in ordered if _is_cloned(matrix)]


def _is_cloned(matrix: torch.Tensor) -> bool:
    # prepare_matrix_for_cublas: dense and without overlap, or one dense dimension and the other at least as far apart.
    (rows, columns), (row_stride, column_stride) = matrix.shape, matrix.stride()
    return not (
        _is_dense(matrix)
        or (row_stride == 1 and column_stride >= max(1, rows))
        or (column_stride == 1 and row_stride >= max(1, columns))
    )


def _is_dense(tensor: torch.Tensor) -> bool:
    # Tensor.is_non_overlapping_and_dense: a permutation of a contiguous tensor.
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _batch_clones(first: torch.Tensor, second: torch.Tensor) -> list[Workspace]:
    # [B, n, k] @ [B, k, p]: the output [B, n, p] is contiguous. It counts as column-major where it is both (p = 1);
    # otherwise the kernel computes the transpose, from the second batch and the first.
    n, k, p = first.shape[1], first.shape[2], second.shape[2]
    if p == 1:
        ordered = (("first batch", first, n, k), ("second batch", second, k, p))
        fast, lead = 1, 2
    else:
        ordered = (("second batch", second, p, k), ("first batch", first, k, n))
        fast, lead = 2, 1
    return [
        Workspace(name, nbytes(batch), after_outputs=True)
        for name, batch, m, width in ordered
        if _is_batch_cloned(batch.stride()[fast], batch.stride()[lead], m, width) and not _is_plain(batch)
    ]


def _is_batch_cloned(fast: int, lead: int, m: int, n: int) -> bool:
    # prepare_batch_matrix_for_cublas
    return not ((fast == 1 and lead >= max(1, m)) or (lead == 1 and fast >= max(1, n)))


def _is_plain(batch: torch.Tensor) -> bool:
    return batch.is_contiguous() and batch.stride()[1] != 0 and batch.stride()[2] != 0
