"""The buffers that the CPU's kernels allocate inside an operator, which no dispatch mode can see.

They are why the simulated step can be held to a real one on the CPU byte by byte, where everybody can repeat it: what
the recorder sees of the outputs, plus these, is what the CPU's allocator reports. Sizes are in bytes as requested, the
source is PyTorch 2.13 under aten/src/ATen/native where no other folder is named.

Known limitations: for 16-bit matrix products oneDNN asks for scratch memory by the processor at hand and its blocking,
which has no closed form; they are refused unless oneDNN is off (`torch.backends.mkldnn.set_flags`), when they need
none. Where PyTorch finds an Intel processor and takes its random streams, `bernoulli_` needs 4 bytes an
element more (cpu/DistributionKernels.cpp), which is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.registry import Registry
from lorafa_prof.simulate.kernels.workspaces import KernelCall, Workspace
from lorafa_prof.simulate.kernels.workspaces.registry import contiguous_copy

Formula = Callable[[KernelCall, int], list[Workspace]]

_FORMULAS: Registry[Formula] = Registry("the CPU's workspace formula of")
_formula = _FORMULAS.register

HALF = (torch.bfloat16, torch.float16)

#: Elements below which reductions do not split their work among threads (ATen/Parallel.h, GRAIN_SIZE).
GRAIN_SIZE = 32768
#: Multiplications up to which oneDNN is not asked (mkldnn/Matmul.cpp, `mkldnn_gemm_min_size`).
ONEDNN_SMALLEST = 16 * 16 * 16


def registered_operators() -> frozenset[str]:
    """The operators that have a formula."""
    return frozenset(_FORMULAS)


def cpu_workspaces(call: KernelCall, threads: int) -> list[Workspace]:
    """Return the buffers of the CPU kernel behind `call`, in order of allocation; `call.device` is not looked at.

    Args:
        call: the operator; its tensors may be on meta.
        threads: what `torch.get_num_threads()` says: some buffers have a part for each.

    Raises:
        UnsupportedError: oneDNN would run the operator, and its scratch memory is not known.
    """
    formula = _FORMULAS.get(call.name)
    return [] if formula is None else [workspace for workspace in formula(call, threads) if workspace.nbytes]


# -- pointwise arithmetic (ATen/TensorIterator.cpp, `compute_types`) -------------------------------------------------

_ARITHMETIC = ("add", "sub", "mul", "div", "rsub", "eq", "ne", "lt", "gt", "le", "ge")
_POINTWISE = [
    f"aten.{name}{suffix}.{overload}"
    for name in _ARITHMETIC
    for suffix in ("", "_")
    for overload in ("Tensor", "Scalar")
]  # fmt: skip


@_formula(*_POINTWISE)
def _pointwise(call: KernelCall, threads: int) -> list[Workspace]:
    """Python numbers become tensors; operands of another dtype than the common one are cast, on the CPU in memory."""
    first, second = call.args[:2]
    common = torch.result_type(first, second)
    if call.name.startswith("aten.div") and not (common.is_floating_point or common.is_complex):
        common = torch.get_default_dtype()
    found = [Workspace("number", _wrapped(second).itemsize, False)] if not isinstance(second, torch.Tensor) else []
    operation = call.name.split(".")[1]
    if operation.endswith("_") and first.dtype != common:
        found.append(Workspace("sum before it is cast back", first.numel() * common.itemsize, False))
    found += [Workspace(f"cast of operand {i}", n, False) for i, n in enumerate(_casts(call.args[:2], common))]
    return found


def _wrapped(number: complex) -> torch.dtype:
    """The dtype of the tensor that stands for a Python number (ATen/ScalarOps.h, `wrapped_scalar_tensor`)."""
    if isinstance(number, bool):
        return torch.bool
    return torch.int64 if isinstance(number, int) else torch.float64


def _casts(operands: tuple[Any, ...], common: torch.dtype) -> Iterator[int]:
    """Bytes of each operand's cast to the common dtype, 0 where it has that already."""
    for operand in operands:
        dtype = operand.dtype if isinstance(operand, torch.Tensor) else _wrapped(operand)
        numel = operand.numel() if isinstance(operand, torch.Tensor) else 1
        yield 0 if dtype == common else numel * common.itemsize


@_formula("aten.where.self")
def _where(call: KernelCall, threads: int) -> list[Workspace]:
    """TensorCompare.cpp, `where_self_out`."""
    common = torch.result_type(*call.args[1:3])
    return [Workspace(f"cast of operand {i}", n, False) for i, n in enumerate(_casts(call.args[1:3], common))]


_FOREACH = [f"aten._foreach_{name}_.{kind}" for name in _ARITHMETIC[:4] for kind in ("Scalar", "ScalarList")]


@_formula(*_FOREACH)
def _foreach(call: KernelCall, threads: int) -> list[Workspace]:
    """ForeachOpsKernels.cpp: one tensor after the other on the CPU, each by an operator in place with a number."""
    tensors, numbers = call.args[:2]
    numbers = numbers if isinstance(numbers, (list, tuple)) else [numbers] * len(tensors)
    steps = [
        _pointwise(KernelCall(f"aten.{call.name.split('_')[2]}_.Scalar", pair, {}, (), call.device), threads)
        for pair in zip(tensors, numbers, strict=True)
    ]
    return max(steps, key=lambda step: sum(workspace.nbytes for workspace in step), default=[])


# -- reductions (TensorIteratorReduce.cpp, ReduceOps.cpp) ------------------------------------------------------------


def _partial_sums(name: str, source: torch.Tensor, result: torch.dtype, outputs: int, threads: int) -> list[Workspace]:
    """Of a reduction to one element each thread keeps a sum of its own (`two_pass_reduction`)."""
    split = outputs == 1 and source.numel() >= GRAIN_SIZE and threads > 1
    return [Workspace("partial results", threads * result.itemsize, True, freed_before=name)] if split else []


@_formula("aten.sum.default", "aten.sum.dim_IntList")
def _sum(call: KernelCall, threads: int) -> list[Workspace]:
    """The input is cast to the result's dtype beforehand (ReduceOps.cpp, `sum_out`; ReduceOpsUtils.h)."""
    source, result = call.args[0], call.outputs[0]
    cast = source.numel() * result.itemsize if source.dtype != result.dtype else 0
    found = [Workspace("cast of the input", cast, True)]
    return [*found, *_partial_sums("", source, result.dtype, result.numel(), threads)]


@_formula("aten.mean.default", "aten.mean.dim")
def _mean(call: KernelCall, threads: int) -> list[Workspace]:
    """The sum, in fp32 where the mean is of 16 bits, divided in place by a number (ReduceOps.cpp, `mean_out`)."""
    source, result = call.args[0], call.outputs[0]
    dtype = torch.float32 if result.dtype in HALF else result.dtype
    temporary = result.numel() * dtype.itemsize if result.dtype in HALF else 0
    cast = source.numel() * dtype.itemsize if source.dtype != dtype else 0
    return [
        Workspace("mean in fp32", temporary, True),
        Workspace("cast of the input", cast, True, freed_before="number"),
        *_partial_sums("number", source, dtype, result.numel(), threads),
        Workspace("number", torch.int64.itemsize, True),
        Workspace("cast of the number", dtype.itemsize, True),
    ]


@_formula("aten.cumsum.default")
def _cumsum(call: KernelCall, threads: int) -> list[Workspace]:
    """The input is cast to the result's dtype (ReduceOps.cpp, `impl_func_cum_ops`)."""
    source, result = call.args[0], call.outputs[0]
    cast = source.numel() * result.itemsize if source.dtype != result.dtype else 0
    return [Workspace("cast of the input", cast, True)]


# -- attention (transformers/attention.cpp, cpu/FlashAttentionKernel.cpp) --------------------------------------------


@_formula("aten._safe_softmax.default")
def _safe_softmax(call: KernelCall, threads: int) -> list[Workspace]:
    """Which scores are minus infinity, which rows are nothing else, and the zero that these become."""
    scores, dim = call.args[0], call.args[1]
    return [
        Workspace("masked", scores.numel(), True),
        Workspace("masked rows", scores.numel() // scores.shape[dim], True),
        Workspace("zero", call.outputs[0].itemsize, True),
    ]


def _splits(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Rows of queries and of keys that a thread takes at a time; both tensors are (batch, heads, rows, width)."""
    rows = query.shape[2]
    q_split = 256 if rows >= 768 else 64 if rows >= 192 else 32
    return min(q_split, rows), min(512, key.shape[2])


def _refuse_onednn(what: str, dtype: torch.dtype) -> None:
    if dtype in HALF and torch._C._get_mkldnn_enabled():
        raise UnsupportedError(
            f"what oneDNN allocates for {what} in 16 bits is not known; torch.backends.mkldnn.set_flags switches it off"
        )


@_formula("aten._scaled_dot_product_flash_attention_for_cpu.default")
def _flash_attention(call: KernelCall, threads: int) -> list[Workspace]:
    """For each thread a block of scores, the rows' maxima and sums, and the block's result, in fp32."""
    query, key = call.args[:2]
    _refuse_onednn("attention", query.dtype)
    q, kv = _splits(query, key)
    accumulated = max(4, query.itemsize)  # fp64 stays
    per_thread = q * kv + 2 * q + q * query.shape[3]
    return [
        Workspace("buf", threads * per_thread * accumulated, True),
        Workspace("buf_reduced", threads * q * kv * query.itemsize if query.dtype in HALF else 0, True),
    ]


@_formula("aten._scaled_dot_product_flash_attention_for_cpu_backward.default")
def _flash_attention_backward(call: KernelCall, threads: int) -> list[Workspace]:
    """For each thread a block of scores and of their gradient, and row sums, of which the caller's alone are reported.

    The gradient is read as (batch, rows, heads, width), and copied where it does not lie like that.
    """
    grad, query, key = call.args[:3]
    _refuse_onednn("attention", query.dtype)
    q, kv = _splits(query, key)
    accumulated = max(4, query.itemsize)
    return [
        *contiguous_copy("gradient, contiguous", grad.transpose(1, 2), after_outputs=True),
        Workspace("buf", threads * 2 * q * kv * accumulated, True),
        Workspace("buf_reduced", threads * 2 * q * kv * query.itemsize if query.dtype in HALF else 0, True),
        Workspace("dsum", q * accumulated, True),
    ]


# -- normalization and embedding (layer_norm.cpp, cpu/layer_norm_kernel.cpp, Embedding.cpp) --------------------------


@_formula("aten.native_layer_norm.default")
def _layer_norm(call: KernelCall, threads: int) -> list[Workspace]:
    return contiguous_copy("input, contiguous", call.args[0], after_outputs=False)


@_formula("aten.native_layer_norm_backward.default")
def _layer_norm_backward(call: KernelCall, threads: int) -> list[Workspace]:
    """For each thread a row of its own for the gradients of weight and bias, in the input's dtype."""
    grad, source, shape = call.args[:3]
    needed = call.argument(7, "output_mask")
    width = torch.Size(shape).numel()
    buffer = 2 * threads * width * source.itemsize if needed[1] or needed[2] else 0
    return [
        *contiguous_copy("input, contiguous", source, after_outputs=False),
        *contiguous_copy("gradient, contiguous", grad, after_outputs=True),
        Workspace("buffer", buffer, True),
    ]


@_formula("aten.embedding.default")
def _embedding(call: KernelCall, threads: int) -> list[Workspace]:
    """Rows are selected by indices in one dimension: a copy, where the indices cannot be viewed so."""
    indices = call.args[1]
    flat = indices.reshape(-1)
    viewed = flat.untyped_storage()._cdata == indices.untyped_storage()._cdata
    return [] if viewed else [Workspace("indices, flat", flat.numel() * flat.itemsize, False)]


@_formula("aten.embedding_dense_backward.default")
def _embedding_backward(call: KernelCall, threads: int) -> list[Workspace]:
    grad, indices = call.args[:2]
    copied = contiguous_copy("indices, contiguous", indices, after_outputs=True)
    return copied + contiguous_copy("gradient, contiguous", grad, after_outputs=True)


@_formula("aten.linalg_pinv.atol_rtol_tensor")
def _pseudo_inverse(call: KernelCall, threads: int) -> list[Workspace]:
    """Of an r x r matrix, rank 1 aside: its factors, and one of them divided by the singular values (`pinv`).

    PEFT's LoRA-FA optimizer takes it of the frozen adapter's Gram matrix; what stands at the last product is the most.
    """
    matrix = call.args[0]
    rank = matrix.shape[-1]
    square, row = rank * rank * matrix.itemsize, rank * matrix.itemsize
    factors = [Workspace(name, square, False) for name in ("U", "Vh", "V, scaled")]
    values = [Workspace(name, row, False) for name in ("S", "S, inverted")]
    tolerances = [Workspace(name, torch.float64.itemsize, False) for name in ("atol", "rtol", "tolerance")]
    return tolerances + factors + values


@_formula("aten._linalg_eigh.default")
def _symmetric_eigenvalues(call: KernelCall, threads: int) -> list[Workspace]:
    """What LAPACK's divide and conquer asks for (BatchLinearAlgebraKernel.cpp, `apply_lapack_eigh`).

    1 + 6 n + 2 n^2 numbers and 3 + 5 n integers, of numbers one more where MKL tells how many as a float.
    """
    matrix = call.args[0]
    n = matrix.shape[-1]
    numbers, integers = (1 + 6 * n + 2 * n * n, 3 + 5 * n) if n > 1 else (1, 1)
    return [
        Workspace("infos", 4, True), Workspace("work", (numbers + 1) * matrix.itemsize, True),
        Workspace("iwork", 4 * integers, True),
    ]  # fmt: skip


@_formula("aten._linalg_svd.default")
def _singular_values(call: KernelCall, threads: int) -> list[Workspace]:
    """A copy of the matrix, which LAPACK overwrites (BatchLinearAlgebra.cpp); what it works in is no tensor."""
    matrix = call.args[0]
    block = _transposition(matrix.mT, torch.empty(matrix.mT.shape, dtype=matrix.dtype, device="meta"))
    return [
        Workspace("infos", 4, True), Workspace("matrix", matrix.numel() * matrix.itemsize, True),
        Workspace("block", block, True),
    ]  # fmt: skip


# -- copies (Copy.cpp, `copy_transpose_valid`) -----------------------------------------------------------------------


@_formula("aten.clone.default", "aten.copy_.default")
def _copy(call: KernelCall, threads: int) -> list[Workspace]:
    """A transposed matrix is copied by blocks of 60 x 60 elements (of 120 x 120 bytes), through one more of them."""
    source = call.args[0] if call.name == "aten.clone.default" else call.args[1]
    target = call.outputs[0] if call.name == "aten.clone.default" else call.args[0]
    return [Workspace("block", _transposition(source, target), True)]


def _transposition(source: torch.Tensor, target: torch.Tensor) -> int:
    if source.dim() != 2 or source.stride() != (1, source.shape[0]) or not target.is_contiguous():
        return 0
    if source.shape != target.shape or source.dtype != target.dtype or source.numel() < 60 * 60:
        return 0
    return (120 * 120 if source.dtype == torch.uint8 else 60 * 60) * source.itemsize


# -- matrix products (LinearAlgebra.cpp, `addmm_impl_cpu_` and `bmm_out_or_baddbmm_`) --------------------------------


def _blas_takes(matrix: torch.Tensor) -> bool:
    """Whether BLAS can read the last two dimensions as they lie, by rows or by columns."""
    (rows, columns), (down, across) = matrix.shape[-2:], matrix.stride()[-2:]
    return (across == 1 and down >= max(1, columns)) or (down == 1 and across >= max(1, rows))


@_formula("aten.mm.default", "aten.mm.out", "aten.addmm.default", "aten.addmm.out", "aten.bmm.default")
def _matmul(call: KernelCall, threads: int) -> list[Workspace]:
    """What BLAS cannot read is copied, of a batch one product's operands at a time."""
    left, right = call.args[-2:]
    products = left.numel() * right.shape[-1]
    if products > ONEDNN_SMALLEST:
        _refuse_onednn("matrix products", left.dtype)
    if left.dim() == 3 and products < 400 * left.shape[0]:  # a loop of its own
        return []
    return [
        Workspace(name, matrix.shape[-2] * matrix.shape[-1] * matrix.itemsize, True)
        for name, matrix in (("left", left), ("right", right))
        if not _blas_takes(matrix)
    ]


# -- bitsandbytes 0.50 (backends/default/ops.py) ---------------------------------------------------------------------


@_formula("bitsandbytes.gemm_4bit.default")
def _gemm_4bit(call: KernelCall, threads: int) -> list[Workspace]:
    """The weight [N, K], dequantised, before it the scales where these are quantised too."""
    inputs, shape, scales = call.args[0], call.args[2], call.argument(7, "absmax_8bit")
    if inputs.numel() * shape[0] > ONEDNN_SMALLEST:
        _refuse_onednn("matrix products", inputs.dtype)
    names = () if scales is None else (("absmax_dq", "B_dq"), ("absmax", None))
    buffers = [Workspace(name, scales.numel() * 4, False, freed_before=end) for name, end in names]
    return [*buffers, Workspace("B_dq", shape[0] * shape[1] * inputs.itemsize, False)]
