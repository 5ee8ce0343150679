"""Sizes of blocks and segments: round_size and get_allocation_size of PyTorch's caching allocator."""

from __future__ import annotations

from lorafa_prof.units import ALLOCATION_GRANULE, MIB

# Names in c10/core/AllocatorConfig.h: kSmallSize, kSmallBuffer, kMinLargeAlloc, kRoundLarge.
SMALL_SIZE = 1 * MIB
SMALL_SEGMENT = 2 * MIB
MIN_LARGE_ALLOC = 10 * MIB
ROUND_LARGE = 2 * MIB


def round_size(requested: int, divisions: tuple[int, ...]) -> int:
    """Return the size of block that a request needs.

    Args:
        requested: bytes, at least 1.
        divisions: `AllocatorSettings.divisions`.
    """
    interval = min(max(requested.bit_length() - MIB.bit_length(), 0), len(divisions) - 1)
    steps = divisions[interval]
    if steps <= 1 or requested <= ALLOCATION_GRANULE * steps:
        return (requested + ALLOCATION_GRANULE - 1) & -ALLOCATION_GRANULE
    # 2^k < requested < 2^(k+1): the next multiple of 2^k / steps. At least 512: requested > 512 * steps.
    step = (1 << requested.bit_length() - 1) // steps
    return -(-requested // step) * step


def segment_size(size: int, large_segment: int) -> int:
    """Return the bytes that `cudaMalloc` is asked for when no free block has the `size` bytes of a rounded request."""
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < MIN_LARGE_ALLOC:
        return large_segment
    return -(-size // ROUND_LARGE) * ROUND_LARGE
