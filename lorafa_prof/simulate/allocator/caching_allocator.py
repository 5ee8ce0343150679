"""A model of PyTorch's CUDA caching allocator: the same blocks, segments and statistics for the same requests.

Follows DeviceCachingAllocator of PyTorch 2.13 (c10/cuda/CUDACachingAllocator.cpp). Not modelled: private pools (CUDA
graphs, torch.cuda.MemPool), record_stream (a block is free at once, so that active and allocated bytes are the same),
settings that change while a program runs, and threads. Releases of 2024 (2.4 and later) decide the same, but for one
thing: there a memory fraction of exactly 1, once set, limits memory and lets garbage be collected; since then it is no
limit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.simulate.allocator.driver import Driver
from lorafa_prof.simulate.allocator.expandable_segments import ExpandableSegments
from lorafa_prof.simulate.allocator.free_blocks import ADDRESS_BITS, ADDRESS_MASK, FreeBlocks, Pools
from lorafa_prof.simulate.allocator.out_of_memory import CudaOutOfMemoryError, OutOfMemory
from lorafa_prof.simulate.allocator.segment_table import segments_of
from lorafa_prof.simulate.allocator.segments import Segments, TraceEntry
from lorafa_prof.simulate.allocator.settings import AllocatorSettings
from lorafa_prof.simulate.allocator.sizes import SMALL_SIZE, round_size, segment_size
from lorafa_prof.simulate.allocator.statistics import Fragmentation, Statistics
from lorafa_prof.units import ALLOCATION_GRANULE

_ROUND_UP, _ROUND_DOWN = ALLOCATION_GRANULE - 1, -ALLOCATION_GRANULE
_NEVER = 1 << 62


class CachingAllocator(Segments):
    """The caching allocator of one device.

    Args:
        settings: as PYTORCH_CUDA_ALLOC_CONF has them; None: the defaults.
        capacity: bytes of the device (`torch.cuda.get_device_properties(0).total_memory`), or None: never full.
        outside: bytes of it that the allocator cannot have: CUDA context, libraries, other processes.
        history: gets a (action, address, size, stream) for each action, as PyTorch's trace has them; None: nothing
            is recorded.

    Raises:
        BadInputError: a memory fraction without a capacity.
    """

    __slots__ = (
        "_allowed", "_collects", "_divisions", "_expandable", "_idle_since", "_large", "_live", "_max_split",
        "_searches", "_segment_sizes", "_small", "_special_fit", "_split_below", "_whole_free", "allocated",
        "allocated_peak", "allocated_peak_at", "at_reserved_peak", "num_alloc_retries", "num_ooms", "requested",
        "requested_peak", "requested_peak_at", "settings",
    )  # fmt: skip

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        *,
        capacity: int | None = None,
        outside: int = 0,
        history: list[TraceEntry] | None = None,
    ) -> None:
        settings = AllocatorSettings() if settings is None else settings
        super().__init__(Driver(capacity, outside), history)
        self.settings = settings
        self.requested = self.requested_peak = self.requested_peak_at = 0
        self.allocated = self.allocated_peak = self.allocated_peak_at = 0
        self.num_alloc_retries = self.num_ooms = 0
        self.at_reserved_peak = Fragmentation(reserved=0, allocated=0, inactive_split=0)
        """State right after the request that brought `reserved_peak`."""

        # Address of each block in use -> its pool, its size, what was requested.
        self._live: dict[int, tuple[FreeBlocks, int, int]] = {}
        self._segment_sizes: dict[int, int] = {}
        self._whole_free = 0  # bytes of segments without any block in use
        self._allowed = self._allowed_memory(capacity)
        self._divisions = settings.divisions if max(settings.divisions) > 1 else None
        self._max_split = settings.max_split_size
        # should_split: in the small pool and in expandable segments from one granule on; in the large pool more than
        # 1 MiB, all sizes being multiples of a granule, and only for requests below the largest size to be split.
        expandable = settings.expandable_segments
        self._expandable = ExpandableSegments(self, settings.large_segment_size) if expandable else None
        self._split_below = _NEVER if expandable or self._max_split is None else self._max_split
        large_remainder = ALLOCATION_GRANULE if expandable else SMALL_SIZE + ALLOCATION_GRANULE
        self._small = Pools(is_small=True, least_remainder=ALLOCATION_GRANULE)
        self._large = Pools(is_small=False, least_remainder=large_remainder)
        # Ages for the garbage collector, counted in searches of the large pool.
        self._collects = self._allowed is not None and settings.garbage_collection_threshold > 0
        self._searches = 0
        self._idle_since: dict[int, int] = {}
        self._special_fit = expandable or self._max_split is not None or self._collects

    def _allowed_memory(self, capacity: int | None) -> int | None:
        fraction = self.settings.per_process_memory_fraction
        if fraction == 1.0:
            return None
        if capacity is None:
            raise BadInputError("per_process_memory_fraction needs a device's capacity that it is a fraction of")
        return int(fraction * capacity)

    # malloc and free are where a replay spends its time: what is needed for every block stands in them in full.

    def malloc(self, requested: int, stream: int = 0) -> int:
        """Return the address of a new block of at least `requested` bytes.

        Raises:
            CudaOutOfMemoryError: the device is full, also after all that is cached was returned to it.
            BadInputError: less than 1 byte (PyTorch allocates nothing for 0 bytes, and does not ask the allocator).
        """
        if requested <= 0:
            raise BadInputError(f"a block has at least 1 byte, not {requested}")
        if self._divisions is None:
            size = (requested + _ROUND_UP) & _ROUND_DOWN
        else:
            size = round_size(requested, self._divisions)
        pool = self._small[stream] if size <= SMALL_SIZE else self._large[stream]
        keys = pool.keys
        index = bisect_left(keys, size << ADDRESS_BITS)
        if self._special_fit:
            index = self._fit(pool, size, index)
        if index == len(keys):
            index = self._grow(pool, size, requested)

        address = keys.pop(index) & ADDRESS_MASK
        block_size = self.free_sizes.pop(address)
        if address in self._segment_sizes and self._segment_sizes[address] == block_size:
            self._whole_free -= block_size
        if block_size - size >= pool.least_remainder and size < self._split_below:
            rest = address + size
            rest_size = block_size - size
            insort(keys, rest_size << ADDRESS_BITS | rest)
            self.free_sizes[rest] = rest_size
            self.free_starts[rest + rest_size] = rest
        else:
            size = block_size
            del self.free_starts[address + size]

        self._live[address] = (pool, size, requested)
        allocated = self.allocated = self.allocated + size
        if allocated > self.allocated_peak:
            self.allocated_peak = allocated
            self.allocated_peak_at = self.position
        total = self.requested = self.requested + requested
        if total > self.requested_peak:
            self.requested_peak = total
            self.requested_peak_at = self.position
        if self.history is not None:
            self.history.append(("alloc", address, requested, stream))
        return address

    def free(self, address: int) -> None:
        """Return a block to its pool, one with the free blocks before and behind it.

        Raises:
            BadInputError: no block in use begins there.
        """
        try:
            pool, size, requested = self._live.pop(address)
        except KeyError:
            raise BadInputError(f"invalid device pointer: {address:#x}") from None
        self.allocated -= size
        self.requested -= requested
        if self.history is not None:
            self.history.append(("free_requested", address, requested, pool.stream))
            self.history.append(("free_completed", address, requested, pool.stream))

        keys, free_sizes, free_starts = pool.keys, self.free_sizes, self.free_starts
        end = address + size
        if address in free_starts:
            start = free_starts.pop(address)
            del keys[bisect_left(keys, address - start << ADDRESS_BITS | start)]
            address = start
        if end in free_sizes:
            behind = free_sizes.pop(end)
            del keys[bisect_left(keys, behind << ADDRESS_BITS | end)]
            end += behind
        size = end - address
        free_sizes[address] = size
        free_starts[end] = address
        insort(keys, size << ADDRESS_BITS | address)
        if address in self._segment_sizes and self._segment_sizes[address] == size:
            self._whole_free += size
            if self._collects:
                self._idle_since[address] = self._searches

    def block_size(self, address: int) -> int:
        """Return the bytes of the block in use that begins at `address`, as `allocated` counts them."""
        return self._live[address][1]

    def empty_cache(self) -> None:
        """Return all segments, or pages of expandable segments, without a block in use to the driver."""
        for pools in (self._large, self._small):
            if self._expandable is not None:
                self._expandable.release(pools.in_order())
            for pool in pools.in_order():
                for address, size in pool:
                    if self._segment_sizes.get(address) == size:
                        self._release(pool, address, size)

    def reset_peaks(self) -> None:
        """Let every peak begin anew at what is there now."""
        self.requested_peak, self.requested_peak_at = self.requested, self.position
        self.allocated_peak, self.allocated_peak_at = self.allocated, self.position
        self.reserved_peak, self.reserved_peak_at = self.reserved, self.position
        self.at_reserved_peak = self._fragmentation(self.allocated, self._whole_free)

    def statistics(self) -> Statistics:
        """Return all figures as they are now."""
        return Statistics(
            requested=self.requested, requested_peak=self.requested_peak, allocated=self.allocated,
            allocated_peak=self.allocated_peak, reserved=self.reserved, reserved_peak=self.reserved_peak,
            inactive_split=self._fragmentation(self.allocated, self._whole_free).inactive_split,
            segments=len(self._segment_sizes),
            num_alloc_retries=self.num_alloc_retries, num_ooms=self.num_ooms,
        )  # fmt: skip

    def segments(self) -> list[dict[str, Any]]:
        """Return all segments and their blocks as `torch.cuda.memory._snapshot()["segments"]` has them."""
        pools = [*self._small.in_order(), *self._large.in_order()]
        return segments_of(pools, self._live, is_expandable=self._expandable is not None)

    def _fragmentation(self, allocated: int, whole_free: int) -> Fragmentation:
        """Return the state with so many bytes in use, and so many in segments without any block in use."""
        # Every other free byte is in a segment that is partly in use.
        split = 0 if self._expandable is not None else self.reserved - allocated - whole_free
        return Fragmentation(reserved=self.reserved, allocated=allocated, inactive_split=split)

    def _fit(self, pool: FreeBlocks, size: int, index: int) -> int:
        """Return the index of the block to take where settings change the best fit; the end where none will do."""
        if self._collects and not pool.is_small:
            self._searches += 1
        keys = pool.keys
        if index == len(keys):
            return index
        if self._expandable is not None:
            index = self._expandable.best_fit(pool, index)
        if self._max_split is not None:
            block_size = keys[index] >> ADDRESS_BITS
            # Blocks too large to be split are for requests as large, and only if they are not much larger.
            if size < self._max_split <= block_size:
                return len(keys)
            if size >= self._max_split and block_size >= size + self.settings.max_non_split_rounding:
                return len(keys)
        return index

    def _grow(self, pool: FreeBlocks, size: int, requested: int) -> int:
        """Get memory from the driver and return the index, in the pool, of the block that can now be taken."""
        peak_before = self.reserved_peak
        if self._collects:
            self._collect_garbage()
        block = self._new_block(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._new_block(pool, size)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._new_block(pool, size)
        if block is None:
            if self.reserved_peak > peak_before:  # some pages of an expandable segment were there, but not enough
                self.at_reserved_peak = Fragmentation(
                    reserved=self.reserved_peak, allocated=self.allocated, inactive_split=0
                )
            raise CudaOutOfMemoryError(self._out_of_memory(pool, size, requested))
        address, block_size = block
        if self.reserved_peak > peak_before:
            split = block_size - size >= pool.least_remainder and size < self._split_below
            allocated = self.allocated + (size if split else block_size)
            self.at_reserved_peak = self._fragmentation(
                allocated, self._whole_free - self._segment_sizes.get(address, 0)
            )
        return pool.index_of(address, block_size)

    def _new_block(self, pool: FreeBlocks, size: int) -> tuple[int, int] | None:
        """Return address and size of a free block from fresh memory, which is in the pool; None: no memory left."""
        fresh = segment_size(size, self.settings.large_segment_size)
        if self._allowed is not None and self.reserved + fresh > self._allowed:
            return None
        if self._expandable is not None:
            return self._expandable.allocate(pool, size)
        if not self.driver.take(fresh):
            return None
        address = self.driver.reserve_addresses(fresh)
        self._segment_sizes[address] = fresh
        self._whole_free += fresh
        self.add_free(pool, address, fresh)
        self.count_reserved(fresh)
        self.record("segment_alloc", address, fresh, pool.stream)
        return address, fresh

    def _release(self, pool: FreeBlocks, address: int, size: int) -> None:
        """Return a segment without any block in use to the driver."""
        self.record("segment_free", address, size, pool.stream)
        self.driver.give_back(size)
        self.remove_free(pool, address, size)
        del self._segment_sizes[address]
        self._idle_since.pop(address, None)
        self._whole_free -= size
        self.count_reserved(-size)

    def _release_oversize(self, pool: FreeBlocks, size: int) -> bool:
        """Return blocks too large to be split, of this pool and stream, until `size` bytes are free; say if so.

        PyTorch's release_available_cached_blocks: one block if one is enough, else the largest first.
        """
        if self._max_split is None or self._expandable is not None:
            return False
        wanted = max(size, self._max_split)
        index = pool.first_of(wanted)
        if index < len(pool.keys):
            self._release(pool, *pool.at(index))
            return True
        released = 0
        while released < wanted and pool.keys and pool.at(-1)[1] >= self._max_split:
            address, block_size = pool.at(-1)
            self._release(pool, address, block_size)
            released += block_size
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Return segments of the large pool that idle longest, once reserved memory passes the threshold.

        All that are at least as old as the average go, however many bytes that makes, and again until enough are back.
        """
        assert self._allowed is not None
        threshold = int(self.settings.garbage_collection_threshold * self._allowed)
        excess = self.reserved - threshold
        whole = [
            (pool, address, size)
            for pool in self._large.in_order()
            for address, size in pool
            if self._segment_sizes.get(address) == size
        ]
        freed = True
        while excess > 0 and freed and whole:
            ages = [self._searches - self._idle_since[address] for _, address, _ in whole]
            average = sum(ages) / len(ages)
            old = [block for block, age in zip(whole, ages, strict=True) if age >= average]
            freed = bool(old)
            for block in old:
                self._release(*block)
                excess -= block[2]
            whole = [block for block, age in zip(whole, ages, strict=True) if age < average]

    def _out_of_memory(self, pool: FreeBlocks, size: int, requested: int) -> OutOfMemory:
        """Count a request that failed, and return the figures that PyTorch's message would have."""
        driver = self.driver
        assert driver.capacity is not None  # a device of unknown capacity is never full
        self.record("oom", driver.free_bytes, size, pool.stream)
        self.num_ooms += 1
        return OutOfMemory(
            tried=segment_size(size, self.settings.large_segment_size), requested=requested, capacity=driver.capacity,
            free=driver.free_bytes, in_use=driver.outside + driver.taken, allowed=self._allowed,
            allocated=self.allocated, reserved=self.reserved,
        )  # fmt: skip
