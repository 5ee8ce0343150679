"""A model of PyTorch's CUDA caching allocator: the same blocks, segments and statistics for the same requests.

Follows DeviceCachingAllocator of PyTorch 2.13 (c10/cuda/CUDACachingAllocator.cpp). Not modelled: private pools (CUDA
graphs, torch.cuda.MemPool), record_stream (a block is free at once, so that active and allocated bytes are the same),
settings that change while a program runs, and threads. Releases of 2024 (2.4 and later) decide the same, but for one
thing: there a memory fraction of exactly 1, once set, limits memory and lets garbage be collected; since then it is no
limit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from lorafa_prof.allocator.driver import Driver
from lorafa_prof.allocator.expandable_segments import ExpandableSegments
from lorafa_prof.allocator.free_blocks import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    NEVER,
    Block,
    FreeBlocks,
    Needs,
    Pools,
    key_of,
)
from lorafa_prof.allocator.out_of_memory import CudaOutOfMemoryError, OutOfMemory
from lorafa_prof.allocator.segment_table import segments_of
from lorafa_prof.allocator.segments import Segments, TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.allocator.sizes import SMALL_SIZE, segment_size
from lorafa_prof.allocator.statistics import Fragmentation, Statistics
from lorafa_prof.errors import BadInputError
from lorafa_prof.units import ALLOCATION_GRANULE


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
        "_allowed", "_collects", "_expandable", "_large", "_live", "_max_split", "_needs", "_searches", "_small",
        "_special_fit", "_split_below", "allocated", "allocated_peak", "allocated_peak_at", "at_reserved_peak",
        "num_alloc_retries", "num_ooms", "requested", "requested_peak", "requested_peak_at", "settings",
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

        # Address of each block of `malloc` that is in use -> the block, what was requested.
        self._live: dict[int, tuple[Block, int]] = {}
        self._needs: dict[int, Needs] = {}
        self._allowed = self._allowed_memory(capacity)
        self._max_split = settings.max_split_size
        # should_split: in the small pool and in expandable segments from one granule on; in the large pool more than
        # 1 MiB, all sizes being multiples of a granule, and only for requests below the largest size to be split.
        expandable = settings.expandable_segments
        self._expandable = ExpandableSegments(self, settings.large_segment_size) if expandable else None
        self._split_below = NEVER if expandable or self._max_split is None else self._max_split
        large_remainder = ALLOCATION_GRANULE if expandable else SMALL_SIZE + ALLOCATION_GRANULE
        self._small = Pools(is_small=True, least_remainder=ALLOCATION_GRANULE)
        self._large = Pools(is_small=False, least_remainder=large_remainder)
        # Ages for the garbage collector, counted in searches of the large pool.
        self._collects = self._allowed is not None and settings.garbage_collection_threshold > 0
        self._searches = 0
        self._special_fit = expandable or self._max_split is not None or self._collects

    def _allowed_memory(self, capacity: int | None) -> int | None:
        fraction = self.settings.per_process_memory_fraction
        if fraction == 1.0:
            return None
        if capacity is None:
            raise BadInputError("per_process_memory_fraction needs a device's capacity that it is a fraction of")
        return int(fraction * capacity)

    def malloc(self, requested: int, stream: int = 0) -> int:
        """Return the address of a new block of at least `requested` bytes.

        Raises:
            CudaOutOfMemoryError: the device is full, also after all that is cached was returned to it.
            BadInputError: less than 1 byte (PyTorch allocates nothing for 0 bytes, and does not ask the allocator).
        """
        if not requested:
            raise BadInputError("a block has at least 1 byte, not 0")
        blocks: list[Block | None] = [None]
        self.run([0], [requested], blocks, first=self.position, streams=[stream])
        block = blocks[0]
        assert block is not None
        address = block[2]
        self._live[address] = (block, requested)
        return address

    def free(self, address: int) -> None:
        """Return a block of `malloc` to its pool, one with the free blocks before and behind it.

        Raises:
            BadInputError: no block in use begins there.
        """
        try:
            block, requested = self._live.pop(address)
        except KeyError:
            raise BadInputError(f"invalid device pointer: {address:#x}") from None
        self.run([~0], [requested], [block], first=self.position)

    def run(  # noqa: C901, PLR0912, PLR0915 - one loop over millions of events: calls in it would be a sixth of its time
        self,
        events: Sequence[int],
        sizes: Sequence[int],
        blocks: list[Block | None],
        *,
        first: int = 0,
        streams: Sequence[int] | None = None,
    ) -> None:
        """Do the births and deaths of storages, one after the other.

        This is where a replay spends its time: what every event needs stands here in full, and nowhere else.

        Args:
            events: i >= 0: storage i is born; ~i (negative): it dies.
            sizes: requested bytes of each storage; one of 0 bytes takes nothing.
            blocks: the block of each storage that is alive, None for the others; kept up to date.
            first: number of the first event: `position` and what remembers it count from there.
            streams: stream of each storage; None: all on stream 0.

        Raises:
            CudaOutOfMemoryError: as `malloc`; `position` is that of the event, and those before it are done.
            BadInputError: a birth of what is alive, a death of what is not, a size below 0.
        """
        free_ends, free_keys, history = self.free_ends, self.free_keys, self.history
        needs, special_fit, collects = self._needs_of(0), self._special_fit, self._collects
        allocated, allocated_peak, allocated_peak_at = self.allocated, self.allocated_peak, self.allocated_peak_at
        total, requested_peak, requested_peak_at = self.requested, self.requested_peak, self.requested_peak_at
        position = first
        try:
            for position, event in enumerate(events, first):
                if event >= 0:
                    requested = sizes[event]
                    if not requested:
                        continue
                    if blocks[event] is not None:
                        raise BadInputError(f"event {position}: storage {event} is born but is alive")
                    need = needs[requested] if streams is None else self._needs_of(streams[event])[requested]
                    pool, size, wanted, cut, least_rest = need
                    keys = pool.keys
                    index = bisect_left(keys, wanted)
                    if special_fit:
                        index = self._fit(pool, size, index)
                    try:
                        key = keys[index]
                    except IndexError:  # none is large enough
                        self.allocated, self.position = allocated, position
                        index = self._grow(pool, size, requested)
                        key = keys[index]

                    address = key & ADDRESS_MASK
                    end = free_ends.pop(address)
                    rest = key - cut  # what remains behind the request: smaller by `size`, `size` further on
                    if rest >= least_rest:
                        if index and keys[index - 1] > rest:
                            del keys[index]
                            insort(keys, rest, 0, index)
                        else:
                            keys[index] = rest
                        free_keys[end] = rest
                        middle = address + size
                        free_ends[middle] = end
                        blocks[event] = (pool, wanted + address, address, middle, size)
                    else:
                        del keys[index], free_keys[end]
                        size = end - address
                        blocks[event] = (pool, key, address, end, size)

                    allocated += size
                    if allocated > allocated_peak:
                        allocated_peak, allocated_peak_at = allocated, position
                    total += requested
                    if total > requested_peak:
                        requested_peak, requested_peak_at = total, position
                    if history is not None:
                        history.append(("alloc", address, requested, pool.stream))
                else:
                    storage = ~event
                    block = blocks[storage]
                    if block is None:
                        if sizes[storage]:
                            raise BadInputError(f"event {position}: storage {storage} dies but is not alive")
                        continue
                    blocks[storage] = None
                    pool, key, address, end, size = block
                    allocated -= size
                    total -= sizes[storage]
                    if history is not None:
                        history.append(("free_requested", address, sizes[storage], pool.stream))
                        history.append(("free_completed", address, sizes[storage], pool.stream))

                    # One with its free neighbours: sizes are added, the address is that of the first.
                    keys = pool.keys
                    if address in free_keys:
                        before = free_keys.pop(address)
                        del keys[bisect_left(keys, before)]
                        key += before - address
                        address = before & ADDRESS_MASK
                    if end in free_ends:
                        key -= end
                        end = free_ends.pop(end)
                        behind = free_keys[end]
                        del keys[bisect_left(keys, behind)]
                        key += behind
                    insort(keys, key)
                    free_keys[end] = key
                    free_ends[address] = end
                    if collects and key in self.whole_segments:
                        self.idle_since[address] = self._searches
        finally:
            self.allocated, self.allocated_peak, self.allocated_peak_at = allocated, allocated_peak, allocated_peak_at
            self.requested, self.requested_peak, self.requested_peak_at = total, requested_peak, requested_peak_at
            self.position = position

    def _needs_of(self, stream: int) -> Needs:
        """Return what requests on a stream need."""
        if stream not in self._needs:
            pools = self._small[stream], self._large[stream]
            self._needs[stream] = Needs(pools, self.settings.divisions, self._split_below)
        return self._needs[stream]

    def block_size(self, address: int) -> int:
        """Return the bytes of the block of `malloc` that begins at `address`, as `allocated` counts them."""
        block, _ = self._live[address]
        return block[4]

    def empty_cache(self) -> None:
        """Return all segments, or pages of expandable segments, without a block in use to the driver."""
        for pools in (self._large, self._small):
            if self._expandable is not None:
                self._expandable.release(pools.in_order())
            for pool in pools.in_order():
                for address, size in pool:
                    if key_of(address, size) in self.whole_segments:
                        self.release(pool, address, size)

    def reset_peaks(self) -> None:
        """Let every peak begin anew at what is there now."""
        self.requested_peak, self.requested_peak_at = self.requested, self.position
        self.allocated_peak, self.allocated_peak_at = self.allocated, self.position
        self.reserved_peak, self.reserved_peak_at = self.reserved, self.position
        self.at_reserved_peak = self._fragmentation(self.allocated, self._whole_free())

    def statistics(self) -> Statistics:
        """Return all figures as they are now."""
        return Statistics(
            requested=self.requested, requested_peak=self.requested_peak, allocated=self.allocated,
            allocated_peak=self.allocated_peak, reserved=self.reserved, reserved_peak=self.reserved_peak,
            inactive_split=self._fragmentation(self.allocated, self._whole_free()).inactive_split,
            segments=len(self.whole_segments),
            num_alloc_retries=self.num_alloc_retries, num_ooms=self.num_ooms,
        )  # fmt: skip

    def segments(self) -> list[dict[str, Any]]:
        """Return all segments and their blocks as `torch.cuda.memory._snapshot()["segments"]` has them.

        Blocks in use are those of `malloc`: those of `run` belong to its caller.
        """
        pools = [*self._small.in_order(), *self._large.in_order()]
        live = {address: (block[0], block[4], requested) for address, (block, requested) in self._live.items()}
        return segments_of(pools, live, is_expandable=self._expandable is not None)

    def _fragmentation(self, allocated: int, whole_free: int) -> Fragmentation:
        """Return the state with so many bytes in use, and so many in segments without any block in use."""
        # Every other free byte is in a segment that is partly in use.
        split = 0 if self._expandable is not None else self.reserved - allocated - whole_free
        return Fragmentation(reserved=self.reserved, allocated=allocated, inactive_split=split)

    def _whole_free(self) -> int:
        """Return the bytes of segments without any block in use."""
        pools = (*self._small.values(), *self._large.values())
        return sum(key >> ADDRESS_BITS for pool in pools for key in self.whole_segments.intersection(pool.keys))

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
            taken = block_size if key_of(address, block_size) in self.whole_segments else 0
            self.at_reserved_peak = self._fragmentation(allocated, self._whole_free() - taken)
        return pool.index_of(address, block_size)

    def _new_block(self, pool: FreeBlocks, size: int) -> tuple[int, int] | None:
        """Return address and size of a free block from fresh memory, which is in the pool; None: no memory left."""
        fresh = segment_size(size, self.settings.large_segment_size)
        if self._allowed is not None and self.reserved + fresh > self._allowed:
            return None
        if self._expandable is not None:
            return self._expandable.allocate(pool, size)
        return self.allocate(pool, fresh)

    def _release_oversize(self, pool: FreeBlocks, size: int) -> bool:
        """Return blocks too large to be split, of this pool and stream, until `size` bytes are free; say if so.

        PyTorch's release_available_cached_blocks: one block if one is enough, else the largest first.
        """
        if self._max_split is None or self._expandable is not None:
            return False
        wanted = max(size, self._max_split)
        index = pool.first_of(wanted)
        if index < len(pool.keys):
            self.release(pool, *pool.at(index))
            return True
        released = 0
        while released < wanted and pool.keys and pool.at(-1)[1] >= self._max_split:
            address, block_size = pool.at(-1)
            self.release(pool, address, block_size)
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
            if key_of(address, size) in self.whole_segments
        ]
        freed = True
        while excess > 0 and freed and whole:
            ages = [self._searches - self.idle_since[address] for _, address, _ in whole]
            average = sum(ages) / len(ages)
            old = [block for block, age in zip(whole, ages, strict=True) if age >= average]
            freed = bool(old)
            for block in old:
                self.release(*block)
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
