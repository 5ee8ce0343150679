"""Expandable segments: ranges of addresses whose pages get memory when it is needed, and lose it when it is not.

Follows find_expandable_block, try_allocate_expandable_block, map_block and unmap_block of PyTorch's
c10/cuda/CUDACachingAllocator.cpp (2.13).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from lorafa_prof.allocator.free_blocks import FreeBlocks
from lorafa_prof.allocator.segments import Segments
from lorafa_prof.units import MIB, TIB

#: Pages of the small pool; those of the large pool are `AllocatorSettings.large_segment_size`.
SMALL_PAGE = 2 * MIB
#: Length of a range of addresses on a device of unknown capacity; a range takes no memory by itself.
UNBOUNDED = 64 * TIB


class ExpandableSegments:
    """The expandable segments of all pools and streams of one allocator.

    A range consists of blocks in use, free blocks, and unmapped stretches that begin and end at pages. Free blocks are
    in the tables of `Segments`, unmapped stretches in the same kind of tables here.

    Args:
        segments: tables of the allocator.
        large_page: bytes of a page in the large pool.
    """

    __slots__ = ("_bases", "_large_page", "_lengths", "_segments", "_unmapped_sizes", "_unmapped_starts")

    def __init__(self, segments: Segments, large_page: int) -> None:
        self._segments = segments
        self._large_page = large_page
        self._bases: list[int] = []
        self._lengths: dict[int, int] = {}
        self._unmapped_sizes: dict[int, int] = {}
        self._unmapped_starts: dict[int, int] = {}

    def best_fit(self, pool: FreeBlocks, index: int) -> int:
        """Return the index of the block to take, given that of the smallest that is large enough.

        A block that can grow into unmapped addresses counts with them, so that a larger block which cannot grow is
        taken first; the search stops where the sum no longer falls.
        """
        room = self._room(pool, index)
        while index + 1 < len(pool.keys):
            next_room = self._room(pool, index + 1)
            if next_room >= room:
                break
            index, room = index + 1, next_room
        return index

    def _room(self, pool: FreeBlocks, index: int) -> int:
        address, size = pool.at(index)
        return size + self._unmapped_sizes.get(address + size, 0)

    def allocate(self, pool: FreeBlocks, size: int) -> tuple[int, int] | None:
        """Map as many pages as make a free block of `size` bytes at the lowest address that has room.

        Returns:
            Address and size of the block, which is in the pool; None where the device has no more memory. What was
            mapped until then stays mapped and free, as in PyTorch.
        """
        address = self._find(pool, size)
        free_ends, unmapped = self._segments.free_ends, self._unmapped_sizes
        if address in unmapped and not self._map(pool, address, min(unmapped[address], size)):
            return None
        while (missing := address + size - (end := free_ends[address])) > 0:
            if not self._map(pool, end, min(unmapped[end], missing)):
                return None
        return address, end - address

    def _find(self, pool: FreeBlocks, size: int) -> int:
        """Return where `size` bytes of free blocks and unmapped pages lie in a row, in a new range if nowhere."""
        segments = self._segments
        for unmapped in pool.unmapped:
            start = end = segments.free_start(unmapped)
            while end - start < size:
                if end in segments.free_ends:
                    end = segments.free_ends[end]
                elif end in self._unmapped_sizes:
                    end += self._unmapped_sizes[end]
                else:
                    break
            else:
                return start
        # PyTorch reserves 9/8 of the device's memory, so that unmapped pages early in the range are no loss.
        capacity = segments.driver.capacity
        page = self._page(pool)
        wanted = UNBOUNDED if capacity is None else capacity + capacity // 8
        # A request longer than that fails here as there: the device runs out of pages before the range does.
        length = -(-max(wanted, size) // page) * page
        base = segments.driver.reserve_addresses(length)
        self._bases.append(base)  # addresses only grow: the list stays sorted
        self._lengths[base] = length
        self._add_unmapped(pool, base, length)
        return base

    def _map(self, pool: FreeBlocks, address: int, size: int) -> bool:
        """Put memory behind the first `size` bytes, whole pages, of the unmapped stretch at `address`.

        The stretch becomes a free block, one with the free blocks before and behind it.
        """
        segments, page = self._segments, self._page(pool)
        pages = -(-size // page)
        for taken in range(pages):
            if not segments.driver.take(page):
                segments.driver.give_back(taken * page)
                return False
        mapped = pages * page
        rest = self._remove_unmapped(pool, address) - mapped
        if rest:
            self._add_unmapped(pool, address + mapped, rest)
        start, end = segments.free_start(address), address + mapped
        if start < address:
            segments.remove_free(pool, start, address - start)
        last = segments.free_ends.get(end, end)
        if end < last:
            segments.remove_free(pool, end, last - end)
        segments.add_free(pool, start, last - start)
        segments.count_reserved(mapped)
        segments.record("segment_map", address, mapped, pool.stream)
        return True

    def release(self, pools: list[FreeBlocks]) -> None:
        """Unmap every page that is wholly inside a free block, in the order of streams, sizes and addresses."""
        # All of them are listed first: unmapping leaves pieces of blocks behind, which are not looked at again.
        blocks = [(pool, address, size) for pool in pools for address, size in pool]
        for block in blocks:
            self._unmap(*block)

    def _unmap(self, pool: FreeBlocks, address: int, size: int) -> None:
        """Take the memory from behind the whole pages of a free block; what is left of it at both ends stays free."""
        segments, page = self._segments, self._page(pool)
        base = self._bases[bisect_right(self._bases, address) - 1]
        start = base - (base - address) // page * page
        end = base + (address + size - base) // page * page
        if start >= end:
            return
        segments.remove_free(pool, address, size)
        if address < start:
            segments.add_free(pool, address, start - address)
        if end < address + size:
            segments.add_free(pool, end, address + size - end)
        segments.driver.give_back(end - start)
        first, last = self._unmapped_starts.get(start, start), end
        if first < start:
            self._remove_unmapped(pool, first)
        if end in self._unmapped_sizes:
            last += self._remove_unmapped(pool, end)
        if last - first < self._lengths[base]:
            self._add_unmapped(pool, first, last - first)
        else:  # nothing is left in the whole range: its addresses go back too
            self._bases.remove(base)
            del self._lengths[base]
        segments.count_reserved(start - end)
        segments.record("segment_unmap", start, end - start, pool.stream)

    def _page(self, pool: FreeBlocks) -> int:
        return SMALL_PAGE if pool.is_small else self._large_page

    def _add_unmapped(self, pool: FreeBlocks, address: int, size: int) -> None:
        insort(pool.unmapped, address)
        self._unmapped_sizes[address] = size
        self._unmapped_starts[address + size] = address

    def _remove_unmapped(self, pool: FreeBlocks, address: int) -> int:
        """Take an unmapped stretch out and return its size."""
        del pool.unmapped[bisect_left(pool.unmapped, address)]
        size = self._unmapped_sizes.pop(address)
        del self._unmapped_starts[address + size]
        return size
