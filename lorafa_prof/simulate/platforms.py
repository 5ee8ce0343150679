"""What a device does that meta tensors do not: its choices of kernels, and what these allocate inside."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.simulate.cuda_kernels import cuda_on_meta
from lorafa_prof.simulate.modules import tensors_in
from lorafa_prof.simulate.workspaces import (
    CUBLAS_OPERATORS,
    DeviceTraits,
    KernelCall,
    LtWorkspace,
    Workspace,
    cublas_workspace_bytes,
    cublaslt_workspace,
    cublaslt_workspace_bytes,
    kernel_workspaces,
    registered_operators,
    uses_cublaslt,
)

aten = torch.ops.aten


class Platform(Protocol):
    """A device as the recorder sees it."""

    name: str
    """As the allocator's user calls it: "cuda" or "cpu"."""

    def kernels(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which meta tensors take the way that this device's tensors take."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor of the trace would be in the memory of this device."""

    def answer(self, func: Any, args: Any) -> tuple[bool, Any]:
        """Return (True, value) where an operator asks for a value that meta tensors do not have."""

    def watches(self, func: Any) -> bool:
        """Say whether an operator's kernel may allocate more than its outputs."""

    def workspaces(self, func: Any, args: Any, kwargs: Any, out: Any) -> Sequence[Workspace]:
        """Return the buffers of the kernel behind one call, in order of allocation."""

    def libraries(self, func: Any, args: Any, kwargs: Any, phase: str) -> Sequence[Workspace]:
        """Return the buffers that a library allocates at this call and keeps."""


class Cuda:
    """A CUDA device, simulated on meta.

    Args:
        traits: compute capability and multiprocessors, on which kernels and their buffers depend.
        torch_version: the release whose libraries' workspaces are meant.
    """

    name = "cuda"

    def __init__(self, traits: DeviceTraits, torch_version: str) -> None:
        self.traits = traits
        self.torch_version = torch_version
        self._watched: dict[Any, str] = {}
        self._handles: set[str] = set()
        self._lt_handles: set[str] = set()

    def kernels(self) -> contextlib.AbstractContextManager[None]:
        """See `Platform.kernels`."""
        return cuda_on_meta()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Meta stands for the device; what is on the CPU (AdamW's step counters) is on the host there too."""
        return tensor.is_meta

    def answer(self, func: Any, args: Any) -> tuple[bool, Any]:
        """See `answered`."""
        return answered(func, args)

    def watches(self, func: Any) -> bool:
        """See `Platform.watches`; the operator's name is kept, for it is slow to ask for."""
        name = self._watched.get(func)
        if name is None:
            name = str(func)
            self._watched[func] = name = name if name in _WATCHED else ""
        return name != ""

    def workspaces(self, func: Any, args: Any, kwargs: Any, out: Any) -> Sequence[Workspace]:
        """See `Platform.workspaces`."""
        return kernel_workspaces(self._call(func, args, kwargs, out))

    def libraries(self, func: Any, args: Any, kwargs: Any, phase: str) -> Sequence[Workspace]:
        """Each thread has a cuBLAS handle of its own, and each handle a workspace that is allocated at its first use.

        The main thread runs forward and optimizer; autograd's thread the backward, and what is recomputed in it.
        """
        name = self._watched[func]
        if name not in CUBLAS_OPERATORS:
            return ()
        thread = "autograd" if phase == "backward" else "main"
        call = self._call(func, args, kwargs, ())
        if uses_cublaslt(call) and cublaslt_workspace(self.torch_version) is not LtWorkspace.SHARED:
            return self._lt_workspace(thread)
        if thread in self._handles:
            return ()
        self._handles.add(thread)
        size = cublas_workspace_bytes(self.traits.compute_capability, self.torch_version)
        return (Workspace(f"cuBLAS workspace of the {thread} thread", size, after_outputs=True),)

    def _lt_workspace(self, thread: str) -> Sequence[Workspace]:
        kept = cublaslt_workspace(self.torch_version) is LtWorkspace.OWN
        if not kept or thread in self._lt_handles:
            return ()
        self._lt_handles.add(thread)
        size = cublaslt_workspace_bytes(self.traits.compute_capability, self.torch_version)
        return (Workspace(f"cuBLASLt workspace of the {thread} thread", size, after_outputs=True),)

    def _call(self, func: Any, args: Any, kwargs: Any, out: Any) -> KernelCall:
        return KernelCall(self._watched[func], args, kwargs, tuple(tensors_in(out)), self.traits)


_WATCHED = registered_operators() | CUBLAS_OPERATORS


def answered(func: Any, args: Any) -> tuple[bool, Any]:
    """Answer `.item()` and `bool()` of a meta tensor with True where that is what a full batch says.

    transformers asks only yes or no: whether all positions follow one another (the batch is not packed) and whether all
    of a mask is set (nothing is padded). Both hold for the batches of `workload`.

    Raises:
        UnsupportedError: a number is asked for: what the step does then depends on its data.
    """
    if func is not aten._local_scalar_dense.default or not args[0].is_meta:
        return False, None
    if args[0].dtype != torch.bool:
        raise UnsupportedError(
            "the model's forward asks for a value that depends on the data (aten._local_scalar_dense), which a "
            "simulated step does not have; --engine analytic does without"
        )
    return True, True
