"""What the allocator holds from the driver: segments, the free blocks in them, and the trace of what happened."""

from __future__ import annotations

from lorafa_prof.allocator.driver import Driver
from lorafa_prof.allocator.free_blocks import ADDRESS_MASK, FreeBlocks, key_of

#: One action of the allocator, as PyTorch's trace has it: (action, address, size in bytes, stream). Actions: alloc,
#: free_requested, free_completed, segment_alloc, segment_free, segment_map, segment_unmap, oom (whose address is the
#: device's free bytes). Sizes of alloc and free are those that were requested, not rounded.
TraceEntry = tuple[str, int, int, int]


class Segments:
    """Segments from the driver and their free blocks.

    Every free block of every pool is in two tables, by its first address and by the address behind it, so that a block
    that is freed finds its free neighbours. Ranges of two segments never touch (see `Driver`), so that neighbours are
    always of one segment.

    Args:
        driver: where memory comes from.
        history: gets a `TraceEntry` for each action; None: nothing is recorded.
    """

    __slots__ = (
        "driver", "free_ends", "free_keys", "history", "idle_since", "position", "reserved", "reserved_peak",
        "reserved_peak_at", "whole_segments",
    )  # fmt: skip

    def __init__(self, driver: Driver, history: list[TraceEntry] | None) -> None:
        self.driver = driver
        self.history = history
        self.position = 0
        """Where the caller is in its list of events; a peak remembers it."""
        self.reserved = 0
        self.reserved_peak = 0
        self.reserved_peak_at = 0
        self.free_ends: dict[int, int] = {}
        """First address of each free block -> the address behind it."""
        self.free_keys: dict[int, int] = {}
        """Address behind each free block -> its key."""
        self.whole_segments: set[int] = set()
        """Keys of blocks that are whole segments, one a segment; those of expandable segments are not here."""
        self.idle_since: dict[int, int] = {}
        """First address of a segment without a block in use -> when that was; only where garbage is collected."""

    def record(self, action: str, address: int, size: int, stream: int) -> None:
        """Append to the history, if there is one."""
        if self.history is not None:
            self.history.append((action, address, size, stream))

    def count_reserved(self, size: int) -> None:
        """Count `size` more reserved bytes, or fewer where negative."""
        self.reserved += size
        if self.reserved > self.reserved_peak:
            self.reserved_peak, self.reserved_peak_at = self.reserved, self.position

    def free_start(self, end: int) -> int:
        """Return the first address of the free block that ends at `end`; `end` itself where none does."""
        return self.free_keys.get(end, end) & ADDRESS_MASK

    def add_free(self, pool: FreeBlocks, address: int, size: int) -> None:
        """Put a free block in its pool and both tables, as it is: nothing is merged."""
        pool.add(address, size)
        self.free_ends[address] = address + size
        self.free_keys[address + size] = key_of(address, size)

    def remove_free(self, pool: FreeBlocks, address: int, size: int) -> None:
        """Take a free block out of its pool and both tables."""
        pool.remove(address, size)
        del self.free_keys[self.free_ends.pop(address)]

    def allocate(self, pool: FreeBlocks, size: int) -> tuple[int, int] | None:
        """Return address and size of a new segment, which is in the pool as a free block; None: no memory left."""
        if not self.driver.take(size):
            return None
        address = self.driver.reserve_addresses(size)
        self.whole_segments.add(key_of(address, size))
        self.add_free(pool, address, size)
        self.count_reserved(size)
        self.record("segment_alloc", address, size, pool.stream)
        return address, size

    def release(self, pool: FreeBlocks, address: int, size: int) -> None:
        """Return a segment without any block in use to the driver."""
        self.record("segment_free", address, size, pool.stream)
        self.driver.give_back(size)
        self.remove_free(pool, address, size)
        self.whole_segments.remove(key_of(address, size))
        self.idle_since.pop(address, None)
        self.count_reserved(-size)
