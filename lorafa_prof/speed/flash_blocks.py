"""What flash attention executes: whole blocks of scores, those on the diagonal and at the edges too.

Blocks are those of flash-attention 2's kernels, which PyTorch 2.13 builds (flash_fwd_launch_template.h and
flash_bwd_launch_template.h in csrc/flash_attn/src). A causal kernel leaves out blocks above the diagonal, and computes
those on it whole; a head is as wide as the kernel that is built for it.
"""

from __future__ import annotations

from typing import NamedTuple

from lorafa_prof.speed.work import AttentionProduct

#: Shared memory of a block from which the larger tiles of the backward are taken: compute capabilities that have it.
_ROOMY = frozenset({(8, 0), (8, 7), (9, 0), (10, 0), (10, 3)})
#: Widths of a head that kernels are built for.
_WIDTHS = (32, 64, 96, 128, 192, 256)


class Tile(NamedTuple):
    """Scores that are computed together."""

    queries: int
    keys: int


def forward_tile(width: int, capability: tuple[int, int], *, causal: bool, dropout: bool = False) -> Tile:
    """Return the tile of the forward kernel for heads of a width that a kernel is built for."""
    small = capability[0] == 8 and capability[1] > 0
    if width <= 64:
        return Tile(128, 64 if dropout and width > 32 else 128)
    if small and causal and width <= 128 and not (dropout and width > 96):
        return Tile(64, 64)
    if width <= 96:
        return Tile(128, 64)
    if width <= 128:
        return Tile(128, 32 if dropout or (small and not causal) else 64)
    if width <= 192:
        return Tile(64 if dropout else 128, 64)
    return Tile(128 if capability in {(8, 0), (8, 7)} else 64, 64)


def backward_tile(width: int, capability: tuple[int, int]) -> Tile:
    """Return the tile of the backward kernel for heads of a width that a kernel is built for."""
    roomy = capability in _ROOMY
    if width <= 32:
        return Tile(128, 128)
    if width <= 64:
        return Tile(128 if roomy else 64, 128)
    if width <= 96:
        return Tile(64, 128)
    if width <= 128:
        return Tile(64, 128 if roomy else 64)
    return Tile(64, 64)


def built_width(width: int) -> int:
    """Return the width of the kernel that takes heads `width` wide.

    Raises:
        ValueError: none does.
    """
    for built in _WIDTHS:
        if width <= built:
            return built
    raise ValueError(f"flash attention has no kernel for heads {width} wide")


def executed_flops(shape: AttentionProduct, capability: tuple[int, int], *, dropout: bool = False) -> int:
    """Return the floating-point operations that flash attention's kernel runs, masked scores of its blocks included.

    Args:
        shape: the attention; values as wide as queries and keys.
        capability: compute capability of the card.
        dropout: whether attention weights are dropped.

    Raises:
        ValueError: heads that no kernel takes.
    """
    width = built_width(max(shape.width, shape.value_width))
    if shape.backward:
        scores = backward_scores(shape, backward_tile(width, capability))
    else:
        scores = forward_scores(shape, forward_tile(width, capability, causal=shape.causal, dropout=dropout))
    return 2 * shape.batch * shape.heads * scores * width * (5 if shape.backward else 2)


def forward_scores(shape: AttentionProduct, tile: Tile) -> int:
    """Return the scores of a head: for each block of queries the blocks of keys up to its last query."""
    scores = 0
    for end in range(tile.queries, shape.queries + tile.queries, tile.queries):
        seen = min(shape.keys, max(0, end + shape.keys - shape.queries)) if shape.causal else shape.keys
        scores += -(-seen // tile.keys) * tile.queries * tile.keys
    return scores


def backward_scores(shape: AttentionProduct, tile: Tile) -> int:
    """Return the scores of a head: for each block of keys the blocks of queries from the first that sees one."""
    blocks = -(-shape.queries // tile.queries)
    scores = 0
    for begin in range(0, shape.keys, tile.keys):
        first = max(0, begin + shape.queries - shape.keys) // tile.queries if shape.causal else 0
        scores += max(0, blocks - first) * tile.queries * tile.keys
    return scores
