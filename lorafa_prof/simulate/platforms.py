"""What a device does that meta tensors do not: its choices of kernels, and what these allocate inside."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from lorafa_prof.simulate.calls import CallSpec
from lorafa_prof.simulate.kernels.choices import Choices
from lorafa_prof.simulate.kernels.cuda import cuda_on_meta
from lorafa_prof.simulate.kernels.int8 import STAND_INS
from lorafa_prof.simulate.kernels.workspaces import (
    CUBLAS_OPERATORS,
    DeviceTraits,
    LtWorkspace,
    Workspace,
    cublas_workspace_bytes,
    cublaslt_workspace,
    cublaslt_workspace_bytes,
    kernel_workspaces,
    registered_operators,
    uses_cublaslt,
)
from lorafa_prof.workload.lora_ga import BACKWARDS

aten = torch.ops.aten


class Libraries(Protocol):
    """The libraries of one process: what they allocate at their first use they keep."""

    def at(self, call: CallSpec, phase: str) -> Sequence[Workspace]:
        """Return what a library allocates at this call, after the outputs."""


class Platform(Protocol):
    """A device as the recorder sees it."""

    def kernels(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which meta tensors take the way that this device's tensors take."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor of the trace would be in the memory of this device."""

    def watches(self, func: Any) -> bool:
        """Say whether an operator's kernel may allocate more than its outputs."""

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a watched operator on meta."""

    def workspaces(self, call: CallSpec) -> Sequence[Workspace]:
        """Return the buffers of the kernel behind one call, in order of allocation."""

    def new_process(self) -> Libraries:
        """Return the libraries of a process that has not used them yet."""


class Cuda:
    """A CUDA device, simulated on meta.

    Args:
        traits: compute capability and multiprocessors, on which kernels and their buffers depend.
        torch_version: the release whose libraries' workspaces are meant.
    """

    def __init__(self, traits: DeviceTraits, torch_version: str) -> None:
        self.traits = traits
        self.torch_version = torch_version
        self.choices = Choices()
        self._watched: dict[Any, bool] = {}

    def kernels(self) -> contextlib.AbstractContextManager[None]:
        """See `Platform.kernels`."""
        return cuda_on_meta(self.traits, self.choices)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Meta stands for the device; what is on the CPU (AdamW's step counters) is on the host there too."""
        return tensor.is_meta

    def watches(self, func: Any) -> bool:
        """See `Platform.watches`; answers are kept, for an operator's name is slow to ask for."""
        known = self._watched.get(func)
        if known is None:
            known = self._watched[func] = str(func) in _WATCHED
        return known

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """See `Platform.run`."""
        return STAND_INS.get(str(func), func)(*args, **kwargs)

    def workspaces(self, call: CallSpec) -> Sequence[Workspace]:
        """See `Platform.workspaces`."""
        return kernel_workspaces(call.kernel_call(str(call.func), self.traits))

    def new_process(self) -> CudaLibraries:
        """See `Platform.new_process`."""
        return CudaLibraries(self.traits, self.torch_version)


class CudaLibraries:
    """cuBLAS and cuBLASLt: each thread has a handle, and each handle a workspace that is allocated at its first use.

    The main thread runs forward and optimizer; autograd's thread the backward, and what is recomputed in it.
    """

    def __init__(self, traits: DeviceTraits, torch_version: str) -> None:
        self._traits = traits
        self._blas = Workspace(
            "cuBLAS workspace", cublas_workspace_bytes(traits.compute_capability, torch_version), True
        )
        self._lt = Workspace(
            "cuBLASLt workspace", cublaslt_workspace_bytes(traits.compute_capability, torch_version), True
        )
        self._lt_source = cublaslt_workspace(torch_version)
        self._used: set[tuple[str, str]] = set()

    def at(self, call: CallSpec, phase: str) -> Sequence[Workspace]:
        """See `Libraries.at`."""
        name = str(call.func)
        if name not in CUBLAS_OPERATORS:
            return ()
        workspace = self._blas
        if self._lt_source is not LtWorkspace.SHARED and uses_cublaslt(call.kernel_call(name, self._traits)):
            if self._lt_source is LtWorkspace.EACH_CALL:
                return ()
            workspace = self._lt
        use = (workspace.name, "autograd" if phase in BACKWARDS else "main")
        if use in self._used:
            return ()
        self._used.add(use)
        return (workspace,)


_WATCHED = registered_operators() | CUBLAS_OPERATORS | STAND_INS.keys()


def answered(func: Any, args: Any, *, padded: bool = False) -> tuple[bool, Any]:
    """Answer `bool()` of a meta tensor of a model of the catalog; (False, None) for any other question.

    transformers' code for these models asks only yes or no: whether all positions follow one another (the batch is not
    packed), and of a batch with an attention mask whether all of it is set. Yes, unless the batch is padded.
    """
    if func is not aten._local_scalar_dense.default or not args[0].is_meta or args[0].dtype != torch.bool:
        return False, None
    return True, not padded
