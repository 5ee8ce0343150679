"""What the allocator holds from the driver: segments, the free blocks in them, and the trace of what happened."""

from __future__ import annotations

from lorafa_prof.simulate.allocator.driver import Driver
from lorafa_prof.simulate.allocator.free_blocks import FreeBlocks

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
        "driver", "free_sizes", "free_starts", "history", "position", "reserved", "reserved_peak", "reserved_peak_at",
    )  # fmt: skip

    def __init__(self, driver: Driver, history: list[TraceEntry] | None) -> None:
        self.driver = driver
        self.history = history
        self.position = 0
        """Where the caller is in its list of events; a peak remembers it."""
        self.reserved = 0
        self.reserved_peak = 0
        self.reserved_peak_at = 0
        self.free_sizes: dict[int, int] = {}
        """First address of each free block -> its size."""
        self.free_starts: dict[int, int] = {}
        """Address behind each free block -> its first address."""

    def record(self, action: str, address: int, size: int, stream: int) -> None:
        """Append to the history, if there is one."""
        if self.history is not None:
            self.history.append((action, address, size, stream))

    def count_reserved(self, size: int) -> None:
        """Count `size` more reserved bytes, or fewer where negative."""
        self.reserved += size
        if self.reserved > self.reserved_peak:
            self.reserved_peak, self.reserved_peak_at = self.reserved, self.position

    def add_free(self, pool: FreeBlocks, address: int, size: int) -> None:
        """Put a free block in its pool and both tables, as it is: nothing is merged."""
        pool.add(address, size)
        self.free_sizes[address] = size
        self.free_starts[address + size] = address

    def remove_free(self, pool: FreeBlocks, address: int, size: int) -> None:
        """Take a free block out of its pool and both tables."""
        pool.remove(address, size)
        del self.free_sizes[address]
        del self.free_starts[address + size]
