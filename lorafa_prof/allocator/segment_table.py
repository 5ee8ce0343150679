"""The state of the allocator as plain data, in the shape of PyTorch's memory snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lorafa_prof.allocator.free_blocks import FreeBlocks


def segments_of(
    pools: Iterable[FreeBlocks], live: Mapping[int, tuple[FreeBlocks, int, int]], *, is_expandable: bool
) -> list[dict[str, Any]]:
    """Return all segments, lowest address first, in the shape of `torch.cuda.memory._snapshot()["segments"]`.

    An expandable segment counts as one segment for each stretch of its addresses that is mapped. Sizes are bytes;
    `requested_size` of a block that is not in use is 0.

    Args:
        pools: free blocks.
        live: address of each block in use -> its pool, its size, what was requested.
        is_expandable: whether these are expandable segments.
    """
    blocks = [(address, size, pool, None) for pool in pools for address, size in pool]
    blocks += [(address, size, pool, requested) for address, (pool, size, requested) in live.items()]  # type: ignore[misc]
    segments: list[dict[str, Any]] = []
    end = None
    for address, size, pool, requested in sorted(blocks, key=lambda block: block[0]):
        if address != end:  # two segments never touch
            segments.append(_segment(address, pool, is_expandable))
        _add(segments[-1], address, size, requested)
        end = address + size
    return segments


def _segment(address: int, pool: FreeBlocks, is_expandable: bool) -> dict[str, Any]:
    return {
        "address": address, "total_size": 0, "stream": pool.stream,
        "segment_type": "small" if pool.is_small else "large", "allocated_size": 0, "active_size": 0,
        "requested_size": 0, "is_expandable": is_expandable, "blocks": [],
    }  # fmt: skip


def _add(segment: dict[str, Any], address: int, size: int, requested: int | None) -> None:
    """Append a block; `requested` is None where it is free."""
    segment["total_size"] += size
    if requested is not None:
        segment["allocated_size"] += size
        segment["active_size"] += size
        segment["requested_size"] += requested
    state = "inactive" if requested is None else "active_allocated"
    block = {"address": address, "size": size, "requested_size": requested or 0, "state": state}
    segment["blocks"].append(block)
