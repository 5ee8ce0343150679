"""The workspaces that cuBLAS and cuBLASLt are given, by device and by release of PyTorch.

One cuBLAS workspace is kept for each thread and stream that ran a product: with one stream that is one for the main
thread (forward, optimizer) and one for the autograd thread (backward, and what checkpointing recomputes in it).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import torch

from lorafa_prof.simulate.kernels.workspaces.registry import KernelCall
from lorafa_prof.units import KIB, MIB

#: Operators whose kernel asks for the cuBLAS handle and so for the thread's workspace (ATen/native/cuda/Blas.cpp).
#: `linear` and `matmul` arrive as one of these; `addmm` may take cuBLASLt instead: `uses_cublaslt`.
CUBLAS_OPERATORS = frozenset(
    f"aten.{operator}"
    for operator in (
        "mm.default", "mm.out", "mm.dtype", "bmm.default", "bmm.out", "bmm.dtype", "addmm.default", "addmm.out",
        "addmm_.default", "baddbmm.default", "baddbmm.out", "baddbmm_.default", "addmv.default", "mv.default",
        "dot.default", "vdot.default", "addbmm.default", "_addmm_activation.default",
    )
)  # fmt: skip

LT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class LtWorkspace(Enum):
    """Where cuBLASLt's workspace comes from."""

    EACH_CALL = "allocated in each call, freed when it returns"
    OWN = "kept for each thread and stream, beside cuBLAS's"
    SHARED = "cuBLAS's own, which the call allocates where there is none yet"


def cublas_workspace_bytes(compute_capability: tuple[int, int] | None, torch_version: str) -> int:
    """Return the bytes of one cuBLAS workspace (`parseChosenWorkspaceSize`, ATen/cuda/CublasHandlePool.cpp).

    ":4096:2:16:8", two buffers of 4096 KiB and eight of 16 KiB; 32 MiB on compute capability 9.0 and, from release 2.12
    on, on 9.x, 10.x and 12.x. The variable CUBLAS_WORKSPACE_CONFIG, which changes it, is not read here.
    """
    major, minor = compute_capability or (8, 0)
    large = major in (9, 10, 12) if _release(torch_version) >= (2, 12) else (major, minor) == (9, 0)
    return 32 * MIB if large else (2 * 4096 + 8 * 16) * KIB


def cublaslt_workspace(torch_version: str) -> LtWorkspace:
    """Say where cuBLASLt's workspace comes from in a release of PyTorch.

    `gemm_and_bias` (ATen/cuda/CUDABlas.cpp) made an `at::empty` of its own until 2.8. 2.9 keeps one for each handle and
    stream; from 2.11 on TORCH_CUBLASLT_UNIFIED_WORKSPACE is on by default, and the two libraries share one.
    """
    release = _release(torch_version)
    if release >= (2, 11):
        return LtWorkspace.SHARED
    return LtWorkspace.OWN if release >= (2, 9) else LtWorkspace.EACH_CALL


def cublaslt_workspace_bytes(compute_capability: tuple[int, int] | None, torch_version: str) -> int:
    """Return the bytes that a call of cuBLASLt has to allocate where no workspace is there yet.

    1024 KiB of its own (`parseCUDABlasLtWorkspaceSize`), or a whole cuBLAS workspace where it is shared.
    """
    if cublaslt_workspace(torch_version) is LtWorkspace.SHARED:
        return cublas_workspace_bytes(compute_capability, torch_version)
    return 1024 * KIB


def uses_cublaslt(call: KernelCall) -> bool:
    """Say whether `call`'s product runs in cuBLASLt, with the bias in its epilogue, instead of in cuBLAS.

    The conditions are `isInputCompliesAddmmCudaLt`'s (ATen/native/cuda/Blas.cpp): `addmm` with beta 1 and a contiguous
    bias of one dimension, of a type that cuBLASLt multiplies, the second matrix more than one wide and high.
    """
    if call.name not in ("aten.addmm.default", "aten.addmm.out"):
        return False
    bias, first, second = (call.argument(i, name) for i, name in enumerate(("self", "mat1", "mat2")))
    return bool(
        call.kwargs.get("beta", 1) == 1
        and _is_row(bias)
        and bias.shape[-1] == second.shape[1]
        and first.dtype in LT_DTYPES
        and min(second.shape) > 1
    )


def _is_row(bias: Any) -> bool:
    return bool(bias.is_contiguous() and (bias.dim() == 1 or bias.squeeze().dim() == 1))


def _release(torch_version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", torch_version)
    if not found:
        raise ValueError(f"not a release of PyTorch: {torch_version!r}")
    return int(found[1]), int(found[2])
