"""Buffers that libraries keep inside PyTorch's allocator, by what the device is."""

from __future__ import annotations

from lorafa_prof.specs import DeviceSpec
from lorafa_prof.units import KIB, MIB

#: PyTorch gives each cuBLAS handle a workspace from its allocator, ":4096:2:16:8" (two buffers of 4096 KiB and eight of
#: 16 KiB) before Hopper and 32 MiB from Hopper on (ATen/cuda/CublasHandlePool.cpp).
CUBLAS_WORKSPACE = (2 * 4096 + 8 * 16) * KIB
CUBLAS_WORKSPACE_HOPPER = 32 * MIB
#: The main thread's handle runs forward and optimizer, the autograd thread's the backward.
CUBLAS_HANDLES = 2


def cublas_workspace_of_each(device: DeviceSpec | None) -> tuple[int, ...]:
    """Return the bytes of each cuBLAS workspace of a training process on `device` (None: a card before Hopper)."""
    if device is not None and device.compute_capability is not None and device.compute_capability >= (9, 0):
        return (CUBLAS_WORKSPACE_HOPPER,) * CUBLAS_HANDLES
    return (CUBLAS_WORKSPACE,) * CUBLAS_HANDLES


def cublas_workspaces(device: DeviceSpec | None) -> int:
    """Return the bytes of all cuBLAS workspaces of a training process on `device` (None: a card before Hopper)."""
    return sum(cublas_workspace_of_each(device))
