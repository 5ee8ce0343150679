"""What the formulas do not size, in words, by operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

_CUDNN = "cuDNN's attention asks for a workspace whose size only the library knows (ATen/native/cudnn/MHA.cpp)."
_CUSOLVER = "cuSOLVER's workspace, which only the library knows, and column-major copies of the matrix (cuda/linalg)."
_SCAN = "CUB's temporary storage of a scan over one long dimension, some bytes for each few thousand elements."
_SORT = "sorting more than 4096 elements at a time: keys, indices and CUB's temporary storage (cuda/SortStable.cu)."
_GROUPED = "CUTLASS's workspace and the table of the problems (ATen/native/cuda/GroupMM.cu)."
_SCALED = "the float32 or integer products and the scales' preparation (ATen/native/cuda/ScaledBlas.cpp)."
_BOOLEAN = "places that a boolean mask selects are counted first, and their indices written out (cuda/Nonzero.cu)."
_WELFORD = "the staging buffer of partial means and variances (ATen/native/cuda/ReduceMomentKernel.cu)."
_MAXIMUM_NORM = (
    "norms of another order than 1, 2 or infinity are taken tensor by tensor, with the buffers of a reduction."
)
_TEMPORARY = (
    "CUB's histograms and counters beside its buffers of keys and values; for some thousand positions it needs none."
)
_OPTIMIZER_8BIT = "nothing is known to be allocated in bitsandbytes' optimizer kernels, whose source is not read here."
_GEMM_4BIT = "from 5 to 1536 rows the kernel may read the 4-bit weight directly; it is counted as dequantised."
_OUTLIERS = "the product of the columns with outliers, in the type of the input, depends on the data."
_PACKED = "attention over packed sequences (variable lengths)."

#: What is not counted inside an operator's kernel: operator (with its overload) -> one sentence.
UNMODELLED: Mapping[str, str] = MappingProxyType(
    {
        "aten._scaled_dot_product_cudnn_attention.default": _CUDNN,
        "aten._scaled_dot_product_cudnn_attention_backward.default": _CUDNN,
        "aten._scaled_dot_product_fused_attention_overrideable.default": "an attention kernel of another library.",
        "aten._flash_attention_forward.default": _PACKED,
        "aten._flash_attention_backward.default": _PACKED,
        "aten._efficient_attention_forward.default": _PACKED,
        "aten._efficient_attention_backward.default": _PACKED,
        "flash_attn._flash_attn_forward.default": "the buffers of the flash-attn package's forward kernel.",
        "flash_attn._flash_attn_backward.default": "the buffers of the flash-attn package, such as its float32 dq.",
        "aten.embedding_dense_backward.default": _TEMPORARY,
        "aten._index_put_impl_.default": _TEMPORARY,
        "aten.index_put.default": _TEMPORARY,
        "aten.index_put_.default": _TEMPORARY,
        "aten._linalg_svd.default": _CUSOLVER,
        "aten._linalg_eigh.default": _CUSOLVER,
        "aten.linalg_qr.default": _CUSOLVER,
        "aten.linalg_inv_ex.default": _CUSOLVER,
        "aten.linalg_cholesky_ex.default": _CUSOLVER,
        "aten.linalg_lu_factor_ex.default": _CUSOLVER,
        "aten._linalg_solve_ex.default": _CUSOLVER,
        "aten.cumsum.default": _SCAN,
        "aten.cumprod.default": _SCAN,
        "aten.sort.default": _SORT,
        "aten.sort.stable": _SORT,
        "aten.argsort.default": _SORT,
        "aten.argsort.stable": _SORT,
        "aten.topk.default": "large slices: the state of a radix selection and, if sorted, a sort (TensorTopK.cu).",
        "aten.isin.Tensor_Tensor": "the comparison of every element with every test element, or a sort of both.",
        "aten.nonzero.default": _BOOLEAN,
        "aten.masked_select.default": _BOOLEAN,
        "aten.masked_scatter.default": "a prefix sum over the mask, 8 bytes for each element (cuda/IndexKernel.cpp).",
        "aten.index.Tensor": _BOOLEAN,
        "aten._unique2.default": "a sort and the positions of the distinct elements (cuda/Unique.cu).",
        "aten.histc.default": "the counters of the histogram's bins (cuda/SummaryOps.cu).",
        "aten.bincount.default": "the counters of the bins (cuda/SummaryOps.cu).",
        "aten.var.correction": _WELFORD,
        "aten.std.correction": _WELFORD,
        "aten.var_mean.correction": _WELFORD,
        "aten._foreach_norm.Scalar": _MAXIMUM_NORM,
        "aten._grouped_mm.default": _GROUPED,
        "aten._scaled_mm.default": _SCALED,
        "aten._scaled_grouped_mm.default": _SCALED,
        "aten._int_mm.default": "cuBLASLt's workspace for integer products, and copies of matrices that lie otherwise.",
        "aten.convolution.default": "cuDNN's workspace, which it chooses by measuring or by its own rules.",
        "aten.convolution_backward.default": "cuDNN's workspaces, which it chooses by measuring or by its own rules.",
        "bitsandbytes.gemm_4bit.default": _GEMM_4BIT,
        "bitsandbytes.int8_mixed_scaled_mm.default": _OUTLIERS,
        "bitsandbytes.optimizer_update_8bit_blockwise.default": _OPTIMIZER_8BIT,
        "bitsandbytes.optimizer_update_32bit.default": _OPTIMIZER_8BIT,
    }
)


def unmodelled_in(operators: Iterable[str]) -> dict[str, str]:
    """Return the entries of `UNMODELLED` for the operators that really ran, in the order of the table."""
    ran = set(operators)
    return {operator: sentence for operator, sentence in UNMODELLED.items() if operator in ran}
