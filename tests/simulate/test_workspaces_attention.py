"""Buffers inside the attention kernels, worked out by hand from the formulas of their sources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lorafa_prof.simulate.kernels.workspaces import DeviceTraits, KernelCall, Workspace, kernel_workspaces

BF16, FP32 = torch.bfloat16, torch.float32
A100, L40S, RTX3090, H100 = (
    DeviceTraits((8, 0), 108), DeviceTraits((8, 9), 142), DeviceTraits((8, 6), 82), DeviceTraits((9, 0), 132)
)  # fmt: skip


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def heads(batch: int, heads: int, length: int, width: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """[B, H, S, K] as a model makes it: a view of [B, S, H, K]."""
    return torch.empty(batch, length, heads, width, dtype=dtype, device="meta").transpose(1, 2)


def sizes(call: KernelCall) -> dict[str, int]:
    return {workspace.name: workspace.nbytes for workspace in kernel_workspaces(call)}


# ---- flash -----------------------------------------------------------------------------------------------------------


def flash_forward(
    batch: int, count: int, length: int, width: int, *, device: DeviceTraits = H100, dropout: float = 0.0
) -> dict[str, int]:
    query = heads(batch, count, length, width)
    args = (query, query, query, dropout, True)
    return sizes(KernelCall("aten._scaled_dot_product_flash_attention.default", args, {}, (query,), device))


def test_flash_forward_takes_nothing_when_the_device_is_full() -> None:
    """8 x 32 heads x 16 blocks of 64 queries are more than four fifths of 264 slots."""
    assert flash_forward(8, 32, 1024, 128) == {}


def test_flash_forward_splits_the_keys_of_a_small_batch() -> None:
    """Eight heads of 512 and width 128: 64 blocks of queries for 264 slots, four blocks of 128 keys.

    1, 2 and 4 splits fill 0.24, 0.48 and 0.97 of the slots (3 leaves blocks of as many keys as 2), so 4 are taken:
    4 x 8 x 512 rows of one float32, and of 128.
    """
    assert flash_forward(1, 8, 512, 128) == {"softmax_lse_accum": 65_536, "out_accum": 8_388_608}


def test_flash_forward_splits_less_where_heads_are_narrow() -> None:
    """Width 64 has blocks of 256 keys, two here: 2 x 8 x 512 rows."""
    assert flash_forward(1, 8, 512, 64) == {"softmax_lse_accum": 32_768, "out_accum": 2_097_152}


def test_flash_forward_rounds_the_width_up() -> None:
    """Width 72 counts as 96: 4 splits x 8 x 512 rows of 96 float32."""
    assert flash_forward(1, 8, 512, 72)["out_accum"] == 6_291_456


def test_flash_forward_never_splits_with_dropout_or_on_an_unknown_device() -> None:
    """There is no such kernel for dropout; without the multiprocessors nothing can be said."""
    assert flash_forward(1, 8, 512, 128, dropout=0.1) == {}
    assert flash_forward(1, 8, 512, 128, device=DeviceTraits((9, 0), None)) == {}


def flash_backward(
    query: torch.Tensor, key: torch.Tensor, *, grad: torch.Tensor | None = None, device: DeviceTraits = H100
) -> list[Workspace]:
    grad = torch.empty_like(query) if grad is None else grad
    args = (grad, query, key, key, torch.empty_like(query), None, None, None, 0, 0, 0.0, True, None, None)
    name = "aten._scaled_dot_product_flash_attention_backward.default"
    return kernel_workspaces(KernelCall(name, args, {}, (query, key, key), device))


def test_flash_backward_of_grouped_heads() -> None:
    """Llama's 32 heads over 8, a hundred positions: 2 x 32 x 128 rows of one and of 128 float32.

    The gradients of keys and values are written for 32 heads, 2 x 100 x 32 x 128 of two bytes, and summed over groups.
    """
    assert flash_backward(heads(2, 32, 100, 128), heads(2, 8, 100, 128)) == [
        Workspace("softmax_d", 32_768, True),
        Workspace("dq_accum", 4_194_304, True),
        Workspace("dk_expanded", 1_638_400, True),
        Workspace("dv_expanded", 1_638_400, True),
    ]


@pytest.mark.parametrize(
    ("width", "rounded"),
    [(64, 64), (72, 96), (80, 96), (96, 96), (128, 128), (136, 192), (160, 192), (200, 256), (256, 256)],
)
def test_flash_backward_rounds_positions_and_width(width: int, rounded: int) -> None:
    """257 positions count as 384; widths go up to multiples of 32, beyond 128 of 64."""
    assert flash_backward(heads(1, 3, 257, width), heads(1, 3, 257, width)) == [
        Workspace("softmax_d", 3 * 384 * 4, True),
        Workspace("dq_accum", 3 * 384 * rounded * 4, True),
    ]


def test_flash_backward_copies_a_gradient_that_lies_otherwise() -> None:
    """The kernel wants [B, S, H, K] contiguous; a contiguous [B, H, S, K] is copied before the outputs."""
    query = heads(1, 4, 128, 64)
    grad = torch.empty(1, 4, 128, 64, dtype=BF16, device="meta")
    assert flash_backward(query, query, grad=grad)[0] == Workspace("grad_out", 4 * 128 * 64 * 2, False)


@pytest.mark.usefixtures("deterministic")
def test_flash_backward_without_atomics_has_an_accumulator_for_each_share() -> None:
    """132 multiprocessors over three heads: 44 accumulators."""
    assert flash_backward(heads(1, 3, 128, 64), heads(1, 3, 128, 64))[1].nbytes == 44 * 3 * 128 * 64 * 4


# ---- memory-efficient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "dtype", "expected"), [(128, BF16, {}), (256, FP32, {}), (256, BF16, {"output_accum": 40_960})]
)
def test_efficient_forward_accumulates_wide_values(width: int, dtype: torch.dtype, expected: dict[str, int]) -> None:
    """Beyond 128 the output does not fit in registers: 10 x 4 x 256 float32, unless it is float32 itself."""
    query = heads(1, 4, 10, width, dtype)
    args = (query, query, query, None, True, 0.0, True)
    assert (
        sizes(KernelCall("aten._scaled_dot_product_efficient_attention.default", args, {}, (query,), A100)) == expected
    )


def efficient_backward(query: torch.Tensor, device: DeviceTraits, *, dropout: float = 0.0) -> dict[str, int]:
    args = (torch.empty_like(query), query, query, query, None, torch.empty_like(query), None, None, None, dropout)
    args += ([True, True, True, False], False)
    name = "aten._scaled_dot_product_efficient_attention_backward.default"
    return sizes(KernelCall(name, args, {}, (query, query, query), device))


def test_efficient_backward_in_registers() -> None:
    """Width 64, tiles of 64 x 64: two blocks of a hundred queries, each with four words and a tile, for eight heads."""
    assert efficient_backward(heads(2, 4, 100, 64), A100) == {
        "delta": 2 * 4 * 100 * 4,
        "gradient accumulators": 8 * 2 * (4 + 64 * 64) * 4,
    }


def test_efficient_backward_of_wide_heads_depends_on_shared_memory() -> None:
    """Width 128, 32 heads, 1024 positions.

    With much shared memory, tiles of 128 x 128: 8 blocks. With little, tiles of 64 x 64 and accumulators for keys and
    values: 16 splits, but no more than 200 / 32 = 6, of 64 keys x 128, and 16 x 2 blocks of queries.
    """
    query = heads(1, 32, 1024, 128)
    assert efficient_backward(query, A100)["gradient accumulators"] == 32 * 8 * (4 + 128 * 128) * 4
    little = 2 * 6 * 64 * 128 + 16 * 2 * (4 + 64 * 64)
    assert little == 229_504
    assert efficient_backward(query, L40S)["gradient accumulators"] == 32 * little * 4
    assert efficient_backward(query, DeviceTraits((12, 0), 170))["gradient accumulators"] == 32 * little * 4


def test_efficient_backward_has_a_tile_for_96_on_small_cards_without_dropout() -> None:
    """A hundred queries: one block of 128 x two of 64 columns; with dropout 64 x 64, two splits, 96 counting as 128."""
    query = heads(1, 1, 100, 96)
    assert efficient_backward(query, RTX3090)["gradient accumulators"] == 2 * (4 + 128 * 64) * 4
    with_dropout = 2 * 2 * 64 * 128 + 2 * 2 * (4 + 64 * 64)
    assert efficient_backward(query, RTX3090, dropout=0.1)["gradient accumulators"] == with_dropout * 4


def test_efficient_backward_in_float32_computes_delta_by_operators() -> None:
    """The product of gradient and output, its sum over the head, and that once more in another order."""
    assert efficient_backward(heads(1, 2, 4, 64, FP32), A100) == {
        "grad_out * out": 2 * 4 * 64 * 4,
        "sum over the head": 2 * 4 * 4,
        "delta": 2 * 4 * 4,
        "gradient accumulators": 2 * (4 + 64 * 64) * 4,
    }
