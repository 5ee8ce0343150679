"""Buffers inside reductions, embeddings, indexing, normalisation and bitsandbytes' operators, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafa_prof.simulate.kernels.workspaces import OUTPUTS, DeviceTraits, KernelCall, Workspace, kernel_workspaces
from lorafa_prof.simulate.kernels.workspaces.reduce_plan import Dim, iteration_dims

BF16, FP32, INT64 = torch.bfloat16, torch.float32, torch.int64
H100 = DeviceTraits((9, 0), 132)


def meta(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def run(operator: Any, *args: Any, device: DeviceTraits = H100, **kwargs: Any) -> list[Workspace]:
    """The workspaces of an operator that is really called, on meta tensors."""
    result = operator(*args, **kwargs)
    outputs = result if isinstance(result, tuple) else (result,)
    return kernel_workspaces(KernelCall(str(operator), args, kwargs, outputs, device))


def sizes(workspaces: list[Workspace]) -> dict[str, int]:
    return {workspace.name: workspace.nbytes for workspace in workspaces}


# ---- reductions ------------------------------------------------------------------------------------------------------

aten = torch.ops.aten


def test_the_gradient_of_a_bias_is_staged() -> None:
    """8192 x 4096 halves summed over the rows, on 132 multiprocessors of 2048 threads.

    Loads of four outputs, blocks of 32 x 4 threads: 2048 values for each thread, 32 groups of outputs, 16 blocks on a
    multiprocessor. 2112 / 32 = 66 blocks share an output; each keeps a float32 for 4096 outputs x 32 threads x 4.
    """
    assert run(aten.sum.dim_IntList, meta(8192, 4096), [0]) == [
        Workspace("staging buffer", 4 * 4096 * 66 * 32 * 4, True),
        Workspace("semaphores", 4 * 32, True),
    ]


def test_a_total_is_staged() -> None:
    """A million floats into one: 512 threads, 1954 values each, of which 16 are worth a block: 123 blocks."""
    expected = {"staging buffer": 4 * 123, "semaphores": 4}
    assert sizes(run(aten.sum.default, meta(1000, 1000, dtype=FP32))) == expected
    assert sizes(run(aten.mean.default, meta(1_000_000, dtype=FP32))) == expected


def test_a_mean_over_the_last_dimension_is_not_staged() -> None:
    """RMS norm's: 32 x 16 threads have 16 values each, fewer than 256."""
    assert run(aten.mean.dim, meta(4096, 8192, dtype=FP32), [-1], True) == []


def test_odd_widths_are_loaded_in_pairs() -> None:
    """100000 x 30: two outputs at a time, blocks of 8 x 32 threads, 3125 values each, 2 groups, 196 blocks."""
    assert sizes(run(aten.sum.dim_IntList, meta(100_000, 30), [0])) == {
        "staging buffer": 4 * 30 * 196 * 8 * 2,
        "semaphores": 4 * 2,
    }


def test_summing_a_mask_converts_it_first() -> None:
    """Booleans are summed as int64, through a copy of eight bytes each."""
    assert sizes(run(aten.sum.default, meta(4, 1024, dtype=torch.bool))) == {"input": 4 * 1024 * 8}


def test_summing_halves_into_floats_needs_no_copy() -> None:
    """The kernel reads one type and adds in another; the output need not be that of the input."""
    assert sizes(run(aten.sum.default, meta(1000, 1000), dtype=FP32)) == {"staging buffer": 4 * 123, "semaphores": 4}


def test_extrema_with_their_place_are_staged_in_sixteen_bytes() -> None:
    """The total maximum of a million floats, and where it is."""
    assert sizes(run(aten.argmax.default, meta(1_000_000, dtype=FP32)))["staging buffer"] == 16 * 123
    assert sizes(run(aten.any.default, meta(1_000_000, dtype=torch.bool)))["staging buffer"] == 123


def test_without_the_number_of_multiprocessors_nothing_is_staged() -> None:
    """An unknown device is not given another's figures."""
    assert run(aten.sum.default, meta(1_000_000, dtype=FP32), device=DeviceTraits(None, None)) == []


def test_reductions_beyond_two_gibibytes_go_in_pieces() -> None:
    """Offsets of 31 bits reach through 2 GiB and no further; then the sums of 16-bit pieces are kept in float32."""
    assert "accumulation buffer" not in sizes(run(aten.sum.dim_IntList, meta(2**18, 2**12), [0]))
    tensor = meta(2**18 + 1, 2**12)
    assert sizes(run(aten.sum.dim_IntList, tensor, [0]))["accumulation buffer"] == 2**12 * 4
    assert "accumulation buffer" not in sizes(run(aten.sum.dim_IntList, tensor, [0], dtype=FP32))


@pytest.mark.parametrize(
    ("shape", "strides", "reduced", "expected"),
    [
        ((4, 5, 6), (30, 6, 1), (2,), [Dim(6, 1, 0), Dim(20, 6, 1)]),
        ((4, 5, 6), (30, 6, 1), (0,), [Dim(4, 30, 0), Dim(30, 1, 1)]),
        ((4, 5, 6), (30, 6, 1), (1,), [Dim(5, 6, 0), Dim(6, 1, 1), Dim(4, 30, 6)]),
        ((4, 5, 6), (30, 6, 1), (0, 1), [Dim(20, 6, 0), Dim(6, 1, 1)]),
        ((4, 5, 6), (30, 6, 1), (0, 2), [Dim(6, 1, 0), Dim(4, 30, 0), Dim(5, 6, 1)]),
        ((4, 5, 6), (30, 6, 1), None, [Dim(120, 1, 0)]),
        ((4, 5), (1, 4), (0,), [Dim(4, 1, 0), Dim(5, 4, 1)]),
        ((4, 1, 6), (6, 6, 1), (0,), [Dim(4, 6, 0), Dim(6, 1, 1)]),
    ],
)
def test_dimensions_are_ordered_and_merged_as_the_iterator_does(
    shape: tuple[int, ...], strides: tuple[int, ...], reduced: tuple[int, ...] | None, expected: list[Dim]
) -> None:
    """Reduced ones first, then by rising stride; neighbours in memory become one."""
    assert iteration_dims(shape, strides, reduced) == expected


def test_norms_of_many_tensors_have_a_place_for_each_chunk() -> None:
    """Two tensors, the larger of 65537 elements or two chunks: four places of four bytes, before the outputs."""
    tensors = [meta(65_537, dtype=FP32), meta(10, dtype=FP32)]
    call = KernelCall("aten._foreach_norm.Scalar", (tensors, 2), {}, (), H100)
    assert kernel_workspaces(call) == [Workspace("output_per_tensor", 16, False)]


# ---- embedding and indexing ------------------------------------------------------------------------------------------


def embedding_backward(positions: int, rows: int, width: int) -> list[Workspace]:
    grad, indices = meta(positions, width), meta(positions, dtype=INT64)
    return run(aten.embedding_dense_backward.default, grad, indices, rows, -1, False)


def test_few_positions_are_not_sorted() -> None:
    """Up to 3072 one kernel does without."""
    assert embedding_backward(3072, 32_000, 64) == []


def test_the_gradient_of_a_vocabulary() -> None:
    """4096 positions of int64, 4096 segments at most, 409 + 4096 = 4505 pieces of 4096 float32."""
    index, pieces = 4096 * 8, 4505
    assert embedding_backward(4096, 32_000, 4096) == [
        Workspace("sorted_indices", index, False),
        Workspace("orig_indices", index, False),
        Workspace("range", index, False, OUTPUTS),
        Workspace("temporary storage of the sort", 2 * index, False, OUTPUTS),
        Workspace("segment_offsets", index, True),
        Workspace("num_of_segments", 8, True),
        Workspace("keys of the segments", index, True, "partials_per_segment"),
        Workspace("partials_per_segment", index, True),
        Workspace("partials_per_segment_offset", index, True),
        Workspace("num_of_partial_segments", 8, True),
        Workspace("partial_segment_offset", pieces * 8, True),
        Workspace("grad_weight_per_segment", 73_809_920, True),
    ]


def test_the_gradient_of_two_token_types_is_added_atomically() -> None:
    """8192 positions in two segments, 821 pieces: the weight itself in float32 takes the place of the pieces' sums."""
    found = sizes(embedding_backward(8192, 2, 768))
    assert found["partial_to_segment_idx"] == 821 * 8
    assert found["grad_weight_acc"] == 2 * 768 * 4
    assert "grad_weight_per_segment" not in found


def test_accumulating_through_indices_sorts_them() -> None:
    """Thirty int64 in eight places: the remainder, the linear index, sorted, positions, and CUB's two."""
    tensor, values, indices = meta(100, 64, dtype=FP32), meta(30, 64, dtype=FP32), [meta(30, dtype=INT64)]
    assert run(aten.index_put.default, tensor, indices, values, True) == [
        Workspace("remainder 0", 240, True, "sorted_indices"),
        Workspace("linearIndex", 240, True),
        Workspace("sorted_indices", 240, True),
        Workspace("orig_indices", 240, True),
        Workspace("range", 240, True),
        Workspace("temporary storage of the sort", 480, True),
    ]


def test_values_that_are_expanded_are_copied_whole() -> None:
    """One row written to thirty places becomes thirty rows."""
    tensor, values, indices = meta(100, 64, dtype=FP32), meta(64, dtype=FP32), [meta(30, dtype=INT64)]
    assert sizes(run(aten.index_put.default, tensor, indices, values, True))["values"] == 30 * 64 * 4


def test_writing_through_indices_without_accumulating_takes_nothing() -> None:
    """The kernel writes where it is told."""
    tensor, values, indices = meta(100, 64), meta(30, 64), [meta(30, dtype=INT64)]
    assert run(aten.index_put.default, tensor, indices, values) == []


# ---- softmax and norms -----------------------------------------------------------------------------------------------


def test_the_backward_of_softmax_holds_the_product_of_gradient_and_output() -> None:
    """One more [B, H, S, T] in float32; the backward of log-softmax does without."""
    weights = meta(2, 4, 8, 8, dtype=FP32)
    assert run(aten._softmax_backward_data.default, weights, weights, -1, FP32) == [
        Workspace("grad * output", 2 * 4 * 8 * 8 * 4, True)
    ]
    assert run(aten._log_softmax_backward_data.default, weights, weights, -1, FP32) == []


def test_softmax_copies_what_is_not_contiguous() -> None:
    """A transposed input is made contiguous first."""
    assert run(aten._softmax.default, meta(3, 5, dtype=FP32).t(), 1, False) == [Workspace("input", 3 * 5 * 4, True)]


def layer_norm_backward(rows: int, width: int) -> list[Workspace]:
    x, statistic, weight = meta(rows, width, dtype=FP32), meta(rows, 1, dtype=FP32), meta(width, dtype=FP32)
    args = (x, x, [width], statistic, statistic, weight, weight, [True, True, True])
    return run(aten.native_layer_norm_backward.default, *args)


def test_many_narrow_rows_leave_partial_gradients_of_the_weight() -> None:
    """131072 rows of 768: 24 blocks of 32 columns leave 32768 / 24 = 1365 of rows, for weight and for bias."""
    partial = 1365 * 768 * 4
    assert layer_norm_backward(131_072, 768) == [
        Workspace("dgamma_blocks", partial, True),
        Workspace("dbeta_blocks", partial, True),
    ]


def test_few_or_wide_rows_are_summed_in_one_pass() -> None:
    """Up to 65536 rows, or 66 blocks of 32 columns and more, half of the multiprocessors."""
    assert layer_norm_backward(65_536, 768) == []
    assert layer_norm_backward(131_072, 66 * 32) == []


# ---- bitsandbytes ----------------------------------------------------------------------------------------------------


def gemm_4bit(rows: int, *, scales: bool) -> dict[str, int]:
    # a weight [11008, 4096] in blocks of 64: 704512 scales
    kwargs = {"absmax_8bit": meta(704_512, dtype=torch.uint8)} if scales else {}
    args = (meta(rows, 4096), meta(11_008 * 4096 // 2, 1, dtype=torch.uint8), [11_008, 4096], None, 64, "nf4")
    return sizes(kernel_workspaces(KernelCall("bitsandbytes.gemm_4bit.default", args, kwargs, (), H100)))


def test_a_4_bit_weight_is_dequantised_whole() -> None:
    """11008 x 4096 of two bytes; scales that are quantised too come first, twice in float32."""
    assert gemm_4bit(2048, scales=False) == {"B_dq": 90_177_536}
    assert gemm_4bit(2048, scales=True) == {"absmax_dq": 2_818_048, "absmax": 2_818_048, "B_dq": 90_177_536}


def test_a_few_rows_are_multiplied_with_the_4_bit_weight_itself() -> None:
    """Up to four rows, as in decoding."""
    assert gemm_4bit(4, scales=True) == {}


def test_an_8_bit_product_is_an_integer_first() -> None:
    """[M, N] in int32, then in float16, unless that is the result."""
    output = meta(10, 20)
    call = KernelCall("bitsandbytes.int8_scaled_mm.default", (), {}, (output,), H100)
    assert sizes(kernel_workspaces(call)) == {"out_i32": 800, "out in float16": 400}
    half = KernelCall(call.name, (), {}, (output.to(torch.float16),), H100)
    assert sizes(kernel_workspaces(half)) == {"out_i32": 800}
