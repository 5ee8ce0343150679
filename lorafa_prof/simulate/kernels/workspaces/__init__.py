"""The buffers that CUDA kernels allocate inside an operator, which no dispatch mode can see.

A `TorchDispatchMode` sees every aten operator with its arguments and outputs. What it cannot see are the buffers that
the kernel behind the operator takes from the caching allocator for itself: `kernel_workspaces` names them, each derived
from PyTorch's source (release 2.13 where nothing else is said). `UNMODELLED` says in words what is not derived, so that
a prediction can list what it did not count. Buffers that libraries keep are in `libraries`.

Known limitations: sizes are what the kernel requests (the allocator rounds them); only CUDA's kernels, not ROCm's.
"""

from lorafa_prof.simulate.kernels.workspaces import (
    attention,
    embedding,
    indexing,
    matmul,
    normalization,
    quantized,
    reductions,
)
from lorafa_prof.simulate.kernels.workspaces.libraries import (
    CUBLAS_OPERATORS,
    LtWorkspace,
    cublas_workspace_bytes,
    cublaslt_workspace,
    cublaslt_workspace_bytes,
    uses_cublaslt,
)
from lorafa_prof.simulate.kernels.workspaces.registry import (
    OUTPUTS,
    DeviceTraits,
    KernelCall,
    Workspace,
    kernel_workspaces,
    register,
    registered_operators,
)
from lorafa_prof.simulate.kernels.workspaces.unmodelled import UNMODELLED, unmodelled_in

#: The modules whose import fills the registry.
TABLES = (attention, embedding, indexing, matmul, normalization, quantized, reductions)

__all__ = [
    "CUBLAS_OPERATORS",
    "OUTPUTS",
    "TABLES",
    "UNMODELLED",
    "DeviceTraits",
    "KernelCall",
    "LtWorkspace",
    "Workspace",
    "cublas_workspace_bytes",
    "cublaslt_workspace",
    "cublaslt_workspace_bytes",
    "kernel_workspaces",
    "register",
    "registered_operators",
    "unmodelled_in",
    "uses_cublaslt",
]
