"""Buffers inside the attention kernels (ATen/native/transformers/cuda).

B batch, S and T query and key positions, H and G query and key heads, K and V widths of a query's and a value's head.
The operators take [B, H, S, K]; the kernels work on the transposed [B, S, H, K].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lorafa_prof.simulate.kernels.workspaces.registry import (
    DeviceTraits,
    KernelCall,
    Workspace,
    ceil_div,
    contiguous_copy,
    deterministic,
    register,
    round_up,
)

FP32 = 4
HALF = (torch.float16, torch.bfloat16)


# ---- flash attention: flash_attn/flash_api.cpp, attention_backward.cu ------------------------------------------------


@register("aten._scaled_dot_product_flash_attention.default")
def flash_forward(call: KernelCall) -> list[Workspace]:
    """What the partial results of split keys take (`mha_fwd`, `set_params_splitkv`).

    The keys are split only without dropout, and only where batch, heads and blocks of 64 queries leave four fifths of
    twice the multiprocessors idle: small runs, with a short sequence.
    """
    query, key = call.argument(0, "query"), call.argument(1, "key")
    multiprocessors = call.device.multiprocessors
    if call.argument(3, "dropout_p", 0.0) > 0 or multiprocessors is None or query.numel() == 0:
        return []
    batch, heads, queries, width = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if queries == 1 and heads > key_heads:  # the groups of a single query take the place of its positions
        queries, heads = heads // key_heads, key_heads
    splits = _flash_splits(batch * heads * ceil_div(queries, 64), 2 * multiprocessors, _flash_key_blocks(width, keys))
    if splits == 1:
        return []
    # [splits, B, H, S] and [splits, B, H, S, K rounded], float32
    rows = splits * batch * heads * queries
    return [
        Workspace("softmax_lse_accum", rows * FP32, after_outputs=True),
        Workspace("out_accum", rows * flash_rounded_width(width) * FP32, after_outputs=True),
    ]


def flash_rounded_width(width: int) -> int:
    """A head's width as flash's kernels are built for it: up to a multiple of 32, of 64 beyond 128.

    In kernels of flash-attention before 2.8 widths from 129 to 160 count as 160, before 2.6 also 193 to 224 as 224.
    """
    width = round_up(width, 8)
    return round_up(width, 32 if width <= 128 else 64)


def _flash_key_blocks(width: int, keys: int) -> int:
    return ceil_div(keys, 256 if width <= 64 else 128 if width <= 128 else 64)


def _flash_splits(blocks: int, slots: int, key_blocks: int) -> int:
    # num_splits_heuristic: the fewest splits that come within 15 % of the best occupancy; float32 as in the kernel's.
    if blocks >= np.float32(0.8) * np.float32(slots):
        return 1
    candidates = [
        splits
        for splits in range(1, min(128, slots, key_blocks) + 1)
        if splits == 1 or ceil_div(key_blocks, splits) != ceil_div(key_blocks, splits - 1)
    ]
    waves = {splits: np.float32(blocks * splits) / np.float32(slots) for splits in candidates}
    efficiency = {splits: wave / np.ceil(wave) for splits, wave in waves.items()}
    enough = 0.85 * float(max(efficiency.values()))
    return next(splits for splits in candidates if float(efficiency[splits]) >= enough)


@register("aten._scaled_dot_product_flash_attention_backward.default")
def flash_backward(call: KernelCall) -> list[Workspace]:
    """The float32 gradient of the query and what goes with it (`_flash_attention_backward`, `mha_bwd`)."""
    grad_out, query, key = (call.argument(i, n) for i, n in enumerate(("grad_out", "query", "key")))
    out = call.argument(4, "out")
    batch, heads, queries, width = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if batch == 0:
        return []
    # the kernel reads grad_out and out as contiguous [B, S, H, K]
    buffers = contiguous_copy("grad_out", grad_out.transpose(1, 2), after_outputs=False)
    buffers += contiguous_copy("out", out.transpose(1, 2), after_outputs=False)
    # [B, H, S rounded] and [splits, B, S rounded, H, K rounded], float32
    rows = batch * heads * round_up(queries, 128)
    splits = _deterministic_splits(call.device, batch * heads)
    buffers.append(Workspace("softmax_d", rows * FP32, after_outputs=True))
    buffers.append(Workspace("dq_accum", splits * rows * flash_rounded_width(width) * FP32, after_outputs=True))
    if key_heads != heads:
        # [B, T, H, K]: one gradient for each query head, summed over the groups afterwards
        expanded = batch * keys * heads * width * query.element_size()
        buffers += [Workspace(name, expanded, after_outputs=True) for name in ("dk_expanded", "dv_expanded")]
    return buffers


def _deterministic_splits(device: DeviceTraits, heads: int) -> int:
    # Without atomic additions each multiprocessor's share of a head has an accumulator of its own.
    if not deterministic() or device.multiprocessors is None:
        return 1
    return ceil_div(device.multiprocessors, heads)


# ---- memory-efficient attention: attention.cu, attention_backward.cu, mem_eff_attention/ -----------------------------


@register("aten._scaled_dot_product_efficient_attention.default")
def efficient_forward(call: KernelCall) -> list[Workspace]:
    """The float32 output of 16-bit values wider than 128 (`kNeedsOutputAccumulatorBuffer`, kernel_forward.h)."""
    query, value = call.argument(0, "query"), call.argument(2, "value")
    width = value.shape[3]
    if query.dtype not in HALF or width <= 128:
        return []
    batch, heads, queries, _ = query.shape
    # a float32 [B, S, H, V]
    return [Workspace("output_accum", batch * queries * heads * width * FP32, after_outputs=True)]


class BackwardTile(NamedTuple):
    """A build of the backward kernel."""

    queries: int
    """kBlockSizeI: queries in a tile."""

    keys: int
    """kBlockSizeJ: keys in a tile."""

    in_registers: bool
    """kOutputInRF: the gradients of keys and values need no accumulators in memory."""


@register("aten._scaled_dot_product_efficient_attention_backward.default")
def efficient_backward(call: KernelCall) -> list[Workspace]:
    """Copies, delta and the accumulators of the gradients (`_efficient_attention_backward`)."""
    grad_out, query, key, value, _, out = call.args[:6]
    batch, heads, queries, width = query.shape
    half = query.dtype in HALF
    buffers = contiguous_copy("grad_out", grad_out.transpose(1, 2), after_outputs=False)
    tile = efficient_backward_tile(call.device, half, max(width, value.shape[3]), call.argument(9, "dropout_p", 0.0))
    # delta, the sum of grad_out * out over a head: [B, H, S], float32
    delta = batch * heads * queries * FP32
    if not (half and (tile.in_registers or call.device.capability >= (7, 5))):
        # (grad_out.to(float) * out.to(float)).sum(-1), then made contiguous
        buffers += _delta_by_operators(grad_out, out, delta)
    buffers.append(Workspace("delta", delta, after_outputs=True))
    stride = _workspace_elements(tile, half, (batch * heads, queries, key.shape[2], width, value.shape[3]))
    buffers.append(Workspace("gradient accumulators", batch * heads * stride * FP32, after_outputs=True))
    return buffers


def efficient_backward_tile(device: DeviceTraits, half: bool, width: int, dropout_p: float) -> BackwardTile:
    """Return the build that `dispatch_cutlassB` launches for heads `width` wide (kernels/generate_kernels.py).

    The first build fits whose width suffices and whose shared memory the device has. Tiles of 128 queries need more
    than the 64 to 99 KiB of 7.5, 8.6, 8.9 and 12.x; for 8.6 and 8.9 there is one of 128 x 64 that is 96 wide. Beyond a
    width of 128, and in float32, that decides nothing but how far the number of queries is rounded up.
    """
    capability = device.capability
    roomy = capability in ((7, 0), (8, 0)) or capability[0] in (9, 10)
    if not half or width > 128:
        wide = width > 64 and roomy and (half or capability >= (8, 0))
        return BackwardTile(128 if wide else 64, 64, in_registers=False)
    if width <= 64:
        return BackwardTile(64, 64, in_registers=True)
    if capability in ((8, 6), (8, 9)) and width <= 96 and dropout_p == 0:
        return BackwardTile(128, 64, in_registers=True)
    if roomy:
        return BackwardTile(128, 128 if capability >= (8, 0) else 64, in_registers=True)
    return BackwardTile(64, 64, in_registers=False)


def _workspace_elements(tile: BackwardTile, half: bool, dims: tuple[int, int, int, int, int]) -> int:
    """The float32 elements of one head's accumulators (`workspace_strideBH`, kernel_backward.h)."""
    heads_in_all, queries, keys, width, value_width = dims
    accumulates = half and not tile.in_registers
    elements = 0
    if accumulates:
        # [splits, keys of a tile, width rounded] for keys and for values
        splits = _key_splits(tile, heads_in_all, keys, accumulates)
        elements += splits * tile.keys * (round_up(width, tile.queries) + round_up(value_width, tile.queries))
    # a lock, a counter, two of padding and one tile for each block of the query's gradient
    blocks = ceil_div(queries, tile.queries) * ceil_div(width, tile.keys)
    elements += blocks * (4 + tile.queries * tile.keys)
    return round_up(elements, 4)


def _key_splits(tile: BackwardTile, heads_in_all: int, keys: int, accumulates: bool) -> int:
    if deterministic():
        return 1
    splits = ceil_div(keys, tile.keys)
    if heads_in_all >= 256 and keys <= 2 * tile.keys:
        splits = 1
    if accumulates:
        splits = min(splits, 200 // heads_in_all)
    return max(splits, 1)


def _delta_by_operators(grad_out: torch.Tensor, out: torch.Tensor, delta: int) -> list[Workspace]:
    product = grad_out.numel() * FP32
    copies = [("grad_out in float32", grad_out), ("out in float32", out)]
    return [
        *(
            Workspace(name, product, after_outputs=True, freed_before="gradient accumulators")
            for name, tensor in copies
            if tensor.dtype is not torch.float32
        ),
        Workspace("grad_out * out", product, after_outputs=True, freed_before="gradient accumulators"),
        Workspace("sum over the head", delta, after_outputs=True, freed_before="gradient accumulators"),
    ]
