"""The caching allocator once more, slow and plain: linked blocks and sorted sets, as PyTorch's source arranges them.

It shares the rounding of sizes and the driver with the model under test, and nothing else: blocks are objects with
neighbours, the statistics are counted where PyTorch counts them (inactive_split above all), the pools hold all streams
and are sorted anew at every look. Source: PyTorch 2.13, c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lorafa_prof.allocator.driver import Driver
from lorafa_prof.allocator.expandable_segments import SMALL_PAGE, UNBOUNDED
from lorafa_prof.allocator.segments import TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.allocator.sizes import SMALL_SIZE, round_size, segment_size

UNLIMITED = 1 << 63


class RefusedError(Exception):
    """Out of memory."""


@dataclass(eq=False)
class Range:
    """One expandable segment's addresses."""

    base: int
    length: int
    page: int


@dataclass(eq=False)
class Pool:
    is_small: bool
    blocks: list[Block] = field(default_factory=list)
    unmapped: list[Block] = field(default_factory=list)
    searches: int = 0

    def insert(self, block: Block) -> None:
        block.since = self.searches
        self.blocks.append(block)
        self.blocks.sort(key=lambda b: (b.stream, b.size, b.address))

    def insert_unmapped(self, block: Block) -> None:
        self.unmapped.append(block)
        self.unmapped.sort(key=lambda b: (b.stream, b.address))


@dataclass(eq=False)
class Block:
    pool: Pool
    stream: int
    address: int
    size: int
    range: Range | None = None
    requested: int = 0
    allocated: bool = False
    mapped: bool = True
    prev: Block | None = None
    next: Block | None = None
    since: int = 0

    @property
    def is_split(self) -> bool:
        return self.prev is not None or self.next is not None

    def splice(self, before: Block | None, after: Block | None) -> None:
        self.prev, self.next = before, after
        if before:
            before.next = self
        if after:
            after.prev = self


class ReferenceAllocator:
    """Same calls as `CachingAllocator`, and counters of the same names."""

    def __init__(self, settings: AllocatorSettings, *, capacity: int | None, outside: int) -> None:
        self.settings, self.driver = settings, Driver(capacity, outside)
        self.large, self.small = Pool(is_small=False), Pool(is_small=True)
        self.live: dict[int, Block] = {}
        self.history: list[TraceEntry] = []
        self.requested = self.allocated = self.reserved = self.inactive_split = self.segment_count = 0
        self.num_alloc_retries = self.num_ooms = 0
        self.max_split = settings.max_split_size or UNLIMITED
        fraction = settings.per_process_memory_fraction
        self.allowed = None if fraction == 1.0 or capacity is None else int(fraction * capacity)

    def record(self, action: str, address: int, size: int, stream: int) -> None:
        self.history.append((action, address, size, stream))

    @property
    def collects(self) -> bool:
        return self.allowed is not None and self.settings.garbage_collection_threshold > 0

    def malloc(self, requested: int, stream: int = 0) -> int:
        size = round_size(requested, self.settings.divisions)
        pool = self.small if size <= SMALL_SIZE else self.large
        block = self.get_free_block(pool, size, stream)
        if block is None:
            if self.collects:
                self.collect_garbage()
            block = self.alloc_block(pool, size, stream)
        if block is None and self.release_available(pool, size, stream):
            block = self.alloc_block(pool, size, stream)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self.alloc_block(pool, size, stream)
        if block is None:
            self.num_ooms += 1
            self.record("oom", self.driver.free_bytes, size, stream)
            raise RefusedError
        return self.hand_out(block, size, requested)

    def should_split(self, block: Block, size: int) -> bool:
        remaining = block.size - size
        if block.pool.is_small or self.settings.expandable_segments:
            return remaining >= 512
        return size < self.max_split and remaining > SMALL_SIZE

    def hand_out(self, block: Block, size: int, requested: int) -> int:
        already_split = block.is_split
        if self.should_split(block, size):
            rest = block
            block = Block(rest.pool, rest.stream, rest.address, size, rest.range)
            block.splice(rest.prev, rest)
            rest.address += size
            rest.size -= size
            rest.pool.insert(rest)
            if block.range is None:
                self.inactive_split += -size if already_split else rest.size
        elif already_split and block.range is None:
            self.inactive_split -= block.size
        block.allocated, block.requested = True, requested
        self.live[block.address] = block
        self.allocated += block.size
        self.requested += requested
        self.record("alloc", block.address, requested, block.stream)
        return block.address

    def free(self, address: int) -> None:
        block = self.live.pop(address)
        block.allocated = False
        self.allocated -= block.size
        self.requested -= block.requested
        self.record("free_requested", address, block.requested, block.stream)
        self.record("free_completed", address, block.requested, block.stream)
        subsumed = self.merge(block, block.prev) + self.merge(block, block.next)
        block.pool.insert(block)
        if block.range is None:
            self.inactive_split += (block.size if block.is_split else 0) - subsumed

    def merge(self, block: Block, other: Block | None) -> int:
        if other is None or other.allocated or other.mapped != block.mapped:
            return 0
        if block.prev is other:
            block.address = other.address
            block.splice(other.prev, block.next)
        else:
            block.splice(block.prev, other.next)
        block.size += other.size
        (other.pool.blocks if other.mapped else other.pool.unmapped).remove(other)
        return other.size

    def get_free_block(self, pool: Pool, size: int, stream: int) -> Block | None:
        if self.collects:
            pool.searches += 1
        fitting = [b for b in pool.blocks if b.stream == stream and b.size >= size]
        if not fitting:
            return None
        chosen = fitting[0]
        if self.settings.expandable_segments:
            for larger in fitting[1:]:
                if self.expandable_size(larger) >= self.expandable_size(chosen):
                    break
                chosen = larger
        if size < self.max_split <= chosen.size:
            return None
        if size >= self.max_split and chosen.size >= size + self.settings.max_non_split_rounding:
            return None
        pool.blocks.remove(chosen)
        return chosen

    @staticmethod
    def expandable_size(block: Block) -> int:
        return block.size + (block.next.size if block.next and not block.next.mapped else 0)

    def alloc_block(self, pool: Pool, size: int, stream: int) -> Block | None:
        fresh = segment_size(size, self.settings.large_segment_size)
        if self.allowed is not None and self.reserved + fresh > self.allowed:
            return None
        if self.settings.expandable_segments:
            return self.alloc_expandable(pool, size, stream)
        if not self.driver.take(fresh):
            return None
        self.reserved += fresh
        self.segment_count += 1
        block = Block(pool, stream, self.driver.reserve_addresses(fresh), fresh)
        self.record("segment_alloc", block.address, fresh, stream)
        return block

    def release_available(self, pool: Pool, size: int, stream: int) -> bool:
        if self.max_split == UNLIMITED:
            return False
        wanted = max(size, self.max_split)
        mine = [b for b in pool.blocks if b.stream == stream]
        enough = [b for b in mine if b.size >= wanted]
        if enough and enough[0].range is None:
            self.release_block(enough[0])
            return True
        released = 0
        for block in reversed(mine):
            if released >= wanted or block.size < self.max_split:
                break
            if block.range is None:
                released += block.size
                self.release_block(block)
        return released >= wanted

    def empty_cache(self) -> None:
        for pool in (self.large, self.small):
            blocks = list(pool.blocks)
            for block in [b for b in blocks if b.range is None and not b.is_split]:
                self.release_block(block)
            for block in [b for b in blocks if b.range is not None]:
                self.unmap_block(block)
                if not block.is_split:
                    pool.unmapped.remove(block)

    def release_block(self, block: Block) -> None:
        assert not block.is_split
        self.record("segment_free", block.address, block.size, block.stream)
        self.driver.give_back(block.size)
        self.reserved -= block.size
        self.segment_count -= 1
        block.pool.blocks.remove(block)

    def collect_garbage(self) -> None:
        assert self.allowed is not None
        threshold = int(self.settings.garbage_collection_threshold * self.allowed)
        if self.reserved <= threshold:
            return
        target, reclaimed = self.reserved - threshold, 0
        pool = self.large
        total_age = sum(pool.searches - b.since for b in pool.blocks if not b.is_split)
        count = sum(not b.is_split for b in pool.blocks)
        freed = True
        while reclaimed < target and freed and count > 0:
            limit, freed = total_age / count, False
            for block in list(pool.blocks):
                age = pool.searches - block.since
                if not block.is_split and block.range is None and age >= limit:
                    freed = True
                    reclaimed += block.size
                    total_age -= age
                    count -= 1
                    self.release_block(block)

    def alloc_expandable(self, pool: Pool, size: int, stream: int) -> Block | None:
        candidate = self.find_expandable(pool, size, stream)
        if not candidate.mapped and not self.map_block(candidate, min(candidate.size, size)):
            return None
        while candidate.size < size:
            new = candidate.next
            assert new is not None
            if not self.map_block(new, min(size - candidate.size, new.size)):
                return None
            candidate = new
        pool.blocks.remove(candidate)
        return candidate

    def find_expandable(self, pool: Pool, size: int, stream: int) -> Block:
        for unmapped in [b for b in pool.unmapped if b.stream == stream]:
            start = unmapped
            if unmapped.prev and not unmapped.prev.allocated:
                start = unmapped.prev
            room, at = 0, start
            while room < size and at and not at.allocated:
                room, at = room + at.size, at.next  # type: ignore[assignment]
            if room >= size:
                return start
        capacity = self.driver.capacity
        page = SMALL_PAGE if pool.is_small else self.settings.large_segment_size
        wanted = UNBOUNDED if capacity is None else capacity + capacity // 8
        length = -(-max(wanted, size) // page) * page
        base = self.driver.reserve_addresses(length)
        block = Block(pool, stream, base, length, Range(base, length, page), mapped=False)
        pool.insert_unmapped(block)
        return block

    def map_block(self, block: Block, size: int) -> bool:
        assert block.range is not None
        page = block.range.page
        pages = -(-size // page)
        for taken in range(pages):
            if not self.driver.take(page):
                self.driver.give_back(taken * page)
                return False
        address, mapped = block.address, pages * page
        pool = block.pool
        pool.unmapped.remove(block)
        block.mapped = True
        if mapped < block.size:
            rest = Block(pool, block.stream, address + mapped, block.size - mapped, block.range, mapped=False)
            rest.splice(block, block.next)
            pool.insert_unmapped(rest)
            block.size = mapped
        self.merge(block, block.prev)
        self.merge(block, block.next)
        pool.insert(block)
        self.reserved += mapped
        self.record("segment_map", address, mapped, block.stream)
        return True

    def unmap_block(self, block: Block) -> None:
        assert block.range is not None
        base, page = block.range.base, block.range.page
        first = -(-(block.address - base) // page)
        last = (block.address + block.size - base) // page
        if first >= last:
            return
        start, end = base + first * page, base + last * page
        pool = block.pool
        pool.blocks.remove(block)
        if before := start - block.address:
            piece = Block(pool, block.stream, block.address, before, block.range)
            piece.splice(block.prev, block)
            pool.insert(piece)
        if after := block.address + block.size - end:
            piece = Block(pool, block.stream, end, after, block.range)
            piece.splice(block, block.next)
            pool.insert(piece)
        block.address, block.size, block.mapped = start, end - start, False
        self.driver.give_back(end - start)
        self.merge(block, block.prev)
        self.merge(block, block.next)
        pool.insert_unmapped(block)
        self.reserved -= end - start
        self.record("segment_unmap", start, end - start, block.stream)
