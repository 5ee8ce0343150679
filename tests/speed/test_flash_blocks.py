"""Blocks of scores that flash attention computes, counted one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.speed.flash_blocks import (
    Tile,
    backward_scores,
    backward_tile,
    built_width,
    executed_flops,
    forward_scores,
    forward_tile,
)
from lorafa_prof.speed.work import AttentionProduct

TILES = st.sampled_from([Tile(128, 128), Tile(128, 64), Tile(128, 32), Tile(64, 64), Tile(64, 128)])
SHAPE = AttentionProduct(
    batch=8, heads=32, key_heads=32, queries=1024, keys=1024, width=128, value_width=128, causal=True
)


@given(st.integers(1, 700), TILES, st.booleans())
def test_blocks_are_those_that_hold_a_score(length: int, tile: Tile, causal: bool) -> None:
    """A block is computed, by either kernel, exactly if any query in it sees any key in it."""
    shape = replace(SHAPE, queries=length, keys=length, causal=causal)
    blocks = 0
    for top in range(0, length, tile.queries):
        for left in range(0, length, tile.keys):
            last_query = min(top + tile.queries, length) - 1
            blocks += not causal or left <= last_query
    expected = blocks * tile.queries * tile.keys
    assert forward_scores(shape, tile) == expected
    assert backward_scores(shape, tile) == expected


def test_an_a100_at_1024_tokens() -> None:
    """By hand, heads of 128: 8 blocks of 128 queries see 2, 4, ... 16 blocks of 64 keys; in the backward 8 blocks of
    128 keys are seen by 16, 14, ... 2 blocks of 64 queries.
    """
    assert forward_tile(128, (8, 0), causal=True) == Tile(128, 64)
    assert forward_scores(SHAPE, Tile(128, 64)) == 72 * 128 * 64
    assert backward_tile(128, (8, 0)) == Tile(64, 128)
    assert backward_scores(SHAPE, Tile(64, 128)) == 72 * 64 * 128
    # an eighth more than up to the diagonal, which is half of all and half a row
    share = executed_flops(SHAPE, (8, 0)) / SHAPE.causal_flops
    assert share == pytest.approx(72 * 128 * 64 / (1024 * 1025 / 2))
    again = replace(SHAPE, backward=True)
    assert executed_flops(again, (8, 0)) / again.causal_flops == pytest.approx(share)


def test_heads_are_as_wide_as_a_kernel() -> None:
    """80 counts as 96; beyond 256 there is none."""
    assert built_width(80) == 96
    assert executed_flops(replace(SHAPE, width=80, value_width=80), (9, 0)) == executed_flops(
        replace(SHAPE, width=96, value_width=96), (9, 0)
    )
    with pytest.raises(ValueError, match="257"):
        built_width(257)
