"""The model of the caching allocator: scenarios whose outcome follows from the rules, worked out beside each."""

from __future__ import annotations

import pytest

from lorafa_prof.allocator.caching_allocator import CachingAllocator
from lorafa_prof.allocator.out_of_memory import CudaOutOfMemoryError, format_size
from lorafa_prof.allocator.segments import TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.allocator.sizes import round_size
from lorafa_prof.errors import BadInputError
from lorafa_prof.units import GIB, KIB, MIB

M = MIB


def figures(allocator: CachingAllocator) -> tuple[int, int]:
    """Allocated and reserved bytes."""
    return allocator.allocated, allocator.reserved


class TestSizes:
    """Which block and which segment a request gets from an empty allocator."""

    @pytest.mark.parametrize(
        ("requested", "block", "segment"),
        [
            (1, 512, 2 * M),
            (512, 512, 2 * M),
            (513, 1024, 2 * M),
            # Small requests end at 1 MiB, inclusive; they share segments of 2 MiB.
            (M, M, 2 * M),
            # Beyond, up to 10 MiB after rounding and exclusive, they share segments of 20 MiB.
            (M + 1, M + 512, 20 * M),
            (10 * M - 512, 10 * M - 512, 20 * M),
            (10 * M - 511, 10 * M, 10 * M),
            (10 * M, 10 * M, 10 * M),
            # From there on the segment is the request, rounded up to 2 MiB. What remains is split off only if it is
            # more than 1 MiB: 12 - 11 = 1 is not, 512 bytes more are.
            (11 * M, 12 * M, 12 * M),
            (11 * M - 512, 11 * M - 512, 12 * M),
            (10 * M + 1, 10 * M + 512, 12 * M),
            (20 * M, 20 * M, 20 * M),
            (20 * M + 1, 20 * M + 512, 22 * M),
            (GIB + 3 * M // 2, GIB + 2 * M, GIB + 2 * M),
        ],
    )
    def test_first_request(self, requested: int, block: int, segment: int) -> None:
        """Requested, allocated and reserved bytes are three figures."""
        allocator = CachingAllocator()
        allocator.malloc(requested)
        statistics = allocator.statistics()
        assert (statistics.requested, statistics.allocated, statistics.reserved) == (requested, block, segment)
        assert statistics.segments == 1

    def test_a_small_block_is_split_down_to_512_bytes(self) -> None:
        """2 MiB hold one block of 1 MiB, one of 1 MiB - 512 bytes and one of 512 bytes: the smallest remainder that is
        split off. The next request needs another segment.
        """
        allocator = CachingAllocator()
        for size in (M, M - 512, 512):
            allocator.malloc(size)
        assert figures(allocator) == (2 * M, 2 * M)
        allocator.malloc(1)
        assert figures(allocator) == (2 * M + 512, 4 * M)

    def test_a_large_block_keeps_a_remainder_up_to_1_mib(self) -> None:
        """A cached block of 12 MiB serves 11 MiB whole, since 1 MiB would remain; and 10 MiB with 2 MiB to spare."""
        allocator = CachingAllocator()
        allocator.free(allocator.malloc(12 * M))
        address = allocator.malloc(11 * M)
        assert figures(allocator) == (12 * M, 12 * M)
        allocator.free(address)
        allocator.malloc(10 * M)
        assert figures(allocator) == (10 * M, 12 * M)

    def test_a_block_has_at_least_one_byte(self) -> None:
        """PyTorch allocates nothing for an empty storage: whoever asks has to leave it out."""
        with pytest.raises(BadInputError, match="at least 1 byte, not 0"):
            CachingAllocator().malloc(0)

    def test_only_an_address_in_use_can_be_freed(self) -> None:
        """Freeing twice is refused, in PyTorch's words."""
        allocator = CachingAllocator()
        address = allocator.malloc(1)
        allocator.free(address)
        with pytest.raises(BadInputError, match="invalid device pointer: 0x7f"):
            allocator.free(address)


class TestBestFit:
    """Which of the cached blocks a request takes."""

    def test_the_smallest_that_is_large_enough(self) -> None:
        """Of cached 30, 14 and 22 MiB a request for 20 MiB takes 22 MiB; one for 14 MiB the block of 14 MiB."""
        allocator = CachingAllocator()
        addresses = {size: allocator.malloc(size * M) for size in (30, 14, 22)}
        for address in addresses.values():
            allocator.free(address)
        assert allocator.malloc(20 * M) == addresses[22]
        assert allocator.malloc(14 * M) == addresses[14]

    def test_the_lowest_of_equal_ones(self) -> None:
        """Two cached blocks of 12 MiB: the lower address goes first, whichever was freed first."""
        allocator = CachingAllocator()
        low, high = allocator.malloc(12 * M), allocator.malloc(12 * M)
        assert low < high
        allocator.free(high)
        allocator.free(low)
        assert allocator.malloc(12 * M) == low

    def test_pools_do_not_share(self) -> None:
        """A request for 1 MiB does not take a cached block of 12 MiB: small requests have segments of their own."""
        allocator = CachingAllocator()
        allocator.free(allocator.malloc(12 * M))
        allocator.malloc(M)
        assert figures(allocator) == (M, 14 * M)

    def test_streams_do_not_share(self) -> None:
        """A block that stream 1 freed is nothing to stream 2."""
        allocator = CachingAllocator()
        first = allocator.malloc(12 * M, 1)
        allocator.free(first)
        assert allocator.malloc(12 * M, 2) != first
        assert figures(allocator) == (12 * M, 24 * M)
        assert allocator.malloc(12 * M, 1) == first


class TestMerging:
    """Freed blocks become one with free neighbours of their segment. The segment: 20 MiB as 6 + 6 + 6 + rest of 2."""

    @pytest.mark.parametrize(
        ("freed", "free_blocks"),
        [
            ([0], [6, 2]),
            ([0, 1], [12, 2]),  # with the one before
            ([1, 0], [12, 2]),  # with the one behind
            ([2], [8]),  # with the rest
            ([0, 2], [6, 8]),
            ([0, 2, 1], [20]),  # with both
        ],
    )
    def test_neighbours(self, freed: list[int], free_blocks: list[int]) -> None:
        """Sizes of the free blocks in MiB, by address; free bytes are inactive and split until the segment is whole."""
        allocator = CachingAllocator()
        addresses = [allocator.malloc(6 * M) for _ in range(3)]
        for number in freed:
            allocator.free(addresses[number])
        (segment,) = allocator.segments()
        assert [b["size"] // M for b in segment["blocks"] if b["state"] == "inactive"] == free_blocks
        assert allocator.statistics().inactive_split == (0 if free_blocks == [20] else sum(free_blocks) * M)

    def test_segments_do_not_merge(self) -> None:
        """Two cached segments of 12 MiB do not make 24 MiB."""
        allocator = CachingAllocator()
        for address in [allocator.malloc(12 * M), allocator.malloc(12 * M)]:
            allocator.free(address)
        allocator.malloc(24 * M)
        assert figures(allocator) == (24 * M, 48 * M)


class TestReturningMemory:
    """What goes back to the driver, and when."""

    def test_emptying_the_cache_returns_whole_segments_only(self) -> None:
        """Of a free segment of 12 MiB and one of 20 MiB that is half in use, the first goes; large ones go before
        small ones.
        """
        history: list[TraceEntry] = []
        allocator = CachingAllocator(history=history)
        small, large = allocator.malloc(1), allocator.malloc(12 * M)
        allocator.malloc(6 * M)
        allocator.free(small)
        allocator.free(large)
        allocator.empty_cache()
        assert figures(allocator) == (6 * M, 20 * M)
        assert [entry[2] for entry in history if entry[0] == "segment_free"] == [12 * M, 2 * M]
        assert allocator.statistics().num_alloc_retries == 0

    def test_a_full_device_gives_cached_segments_another_chance(self) -> None:
        """100 MiB hold a cached segment of 60 MiB; for 80 MiB it has to go first: one retry."""
        allocator = CachingAllocator(capacity=100 * M)
        allocator.free(allocator.malloc(60 * M))
        allocator.malloc(80 * M)
        statistics = allocator.statistics()
        assert (statistics.reserved, statistics.reserved_peak) == (80 * M, 80 * M)
        assert (statistics.num_alloc_retries, statistics.num_ooms, statistics.segments) == (1, 0, 1)

    def test_out_of_memory(self) -> None:
        """100 MiB, of which 10 lie outside: a segment of 20 MiB with 6 in use cannot go, so that 70 MiB are left, and
        72 are not there. The allocator is as it was, but for the cached 2 MiB that were tried.
        """
        history: list[TraceEntry] = []
        allocator = CachingAllocator(capacity=100 * M, outside=10 * M, history=history)
        allocator.malloc(6 * M)
        allocator.free(allocator.malloc(1))
        with pytest.raises(CudaOutOfMemoryError) as caught:
            allocator.malloc(72 * M - 1)
        assert str(caught.value) == (
            "CUDA out of memory. Tried to allocate 72.00 MiB. GPU 0 has a total capacity of 100.00 MiB of which "
            "70.00 MiB is free. Including non-PyTorch memory, this process has 30.00 MiB memory in use. Of the "
            "allocated memory 6.00 MiB is allocated by PyTorch, and 14.00 MiB is reserved by PyTorch but unallocated. "
            "If reserved but unallocated memory is large try setting "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
            "Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html"
            "#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
        )
        assert caught.value.figures.requested == 72 * M - 1
        assert history[-1] == ("oom", 70 * M, 72 * M, 0)
        statistics = allocator.statistics()
        assert (statistics.num_alloc_retries, statistics.num_ooms) == (1, 1)
        assert (statistics.requested, statistics.reserved) == (6 * M, 20 * M)
        allocator.malloc(70 * M)

    def test_a_memory_fraction_limits_what_is_reserved(self) -> None:
        """80 % of 100 MiB: 60 and 20 MiB fit exactly, 2 MiB more do not although the device has them."""
        allocator = CachingAllocator(AllocatorSettings(per_process_memory_fraction=0.8), capacity=100 * M)
        allocator.malloc(60 * M)
        allocator.malloc(20 * M)
        with pytest.raises(CudaOutOfMemoryError, match=r"20\.00 MiB is free\. .* in use\. 80\.00 MiB allowed; Of the"):
            allocator.malloc(1)

    def test_a_memory_fraction_needs_a_capacity(self) -> None:
        """A share of nothing known is refused."""
        with pytest.raises(BadInputError, match="capacity"):
            CachingAllocator(AllocatorSettings(per_process_memory_fraction=0.5))

    def test_the_driver_counts_in_pages(self) -> None:
        """A segment of 21 MiB takes 22 MiB of the device, though 21 MiB are reserved: two do not fit into 43 MiB."""
        allocator = CachingAllocator(AllocatorSettings(large_segment_size_mb=21), capacity=43 * M)
        first = allocator.malloc(9 * M)
        assert (allocator.reserved, allocator.driver.free_bytes) == (21 * M, 21 * M)
        with pytest.raises(CudaOutOfMemoryError):
            allocator.malloc(22 * M)
        allocator.free(first)
        allocator.malloc(42 * M)

    @pytest.mark.parametrize(
        ("size", "text"),
        [
            (0, "0 bytes"), (KIB, "1024 bytes"), (KIB + 1, "1.00 KiB"), (M, "1024.00 KiB"), (M + M // 2, "1.50 MiB"),
            (GIB, "1024.00 MiB"), (80 * GIB, "80.00 GiB"),
        ],
    )  # fmt: skip
    def test_sizes_in_messages(self, size: int, text: str) -> None:
        """PyTorch keeps to the smaller unit up to and including 1024 of it."""
        assert format_size(size) == text


class TestPowersOfTwo:
    """roundup_power2_divisions."""

    @pytest.mark.parametrize(
        ("requested", "steps", "rounded"),
        [
            # Between 1024 and 2048 bytes with 4 steps: 1024, 1280, ... are below 4 * 512, where plain rounding is kept.
            (1200, 4, 1536),
            (2048, 4, 2048),
            # Between 2048 and 4096: steps of 512.
            (2049, 4, 2560),
            (5 * M, 4, 5 * M),
            (5 * M + 1, 4, 6 * M),
            (7 * M + 1, 4, 8 * M),
            (5 * M + 1, 2, 6 * M),
            (5 * M + 1, 1, 5 * M + 512),
            (5 * M + 1, 0, 5 * M + 512),
            (1, 8, 512),
        ],
    )
    def test_steps(self, requested: int, steps: int, rounded: int) -> None:
        """A request is rounded up to the next of so many steps between two powers of two."""
        assert round_size(requested, (steps,) * 16) == rounded

    def test_each_interval_has_its_own(self) -> None:
        """Interval 0 is everything below 2 MiB, 1 is [2, 4) MiB, 15 all from 32 GiB on."""
        divisions = (2, 4, *(1,) * 13, 8)
        assert round_size(M + 1, divisions) == M + M // 2
        assert round_size(2 * M - 1, divisions) == 2 * M
        assert round_size(2 * M + 1, divisions) == 2 * M + M // 2
        assert round_size(4 * M + 1, divisions) == 4 * M + 512
        assert round_size(32 * GIB + 1, divisions) == 36 * GIB
        assert round_size(128 * GIB + 1, divisions) == 144 * GIB

    @pytest.mark.parametrize(
        ("text", "rounded"),
        [
            ("roundup_power2_divisions:4", 96),
            ("roundup_power2_divisions:[64:8,128:2,256:2,512:2,1024:1,>:1]", 88),
            ("roundup_power2_divisions:[64:2,128:4,256:2,512:2,1024:1,>:1]", 96),
            ("roundup_power2_divisions:[32:1,64:1]", 84),
        ],
    )
    def test_pytorchs_own_example(self, text: str, rounded: int) -> None:
        """84 MiB lie in [64, 128): 8 steps of 8 MiB give 88, 4 of 16 MiB or 2 of 32 MiB give 96. PyTorch measures the
        like on a device (test_allocator_settings of its test/test_cuda.py).
        """
        allocator = CachingAllocator(AllocatorSettings.parse(text))
        allocator.malloc(84 * M)
        assert allocator.allocated == rounded * M

    def test_the_allocator_uses_them(self) -> None:
        """With 2 steps between 512 KiB and 1 MiB 700 KiB become 768, and allocated bytes say so."""
        allocator = CachingAllocator(AllocatorSettings(roundup_power2_divisions=2))
        allocator.malloc(700 * KIB)
        assert allocator.allocated == 768 * KIB


class TestMaxSplitSize:
    """max_split_size_mb: 40."""

    SETTINGS = AllocatorSettings(max_split_size_mb=40)

    def cached(self, *sizes: int, capacity: int = GIB) -> tuple[CachingAllocator, list[int]]:
        allocator = CachingAllocator(self.SETTINGS, capacity=capacity)
        addresses = [allocator.malloc(size * M) for size in sizes]
        for address in addresses:
            allocator.free(address)
        return allocator, addresses

    def test_a_large_block_is_not_for_small_requests(self) -> None:
        """40 MiB count as large: a request for 39 MiB gets a new segment, one for 40 MiB the cached block."""
        allocator, (address,) = self.cached(40)
        allocator.malloc(39 * M)
        assert figures(allocator) == (40 * M, 80 * M)  # 39 of 40 MiB: a remainder of 1 MiB is not split off
        assert allocator.malloc(40 * M) == address

    @pytest.mark.parametrize(("requested", "taken"), [(40, False), (40.5, True), (59, True)])
    def test_a_large_block_is_taken_whole_if_less_than_20_mib_larger(self, requested: float, taken: bool) -> None:
        """60 MiB serve requests of more than 40 MiB, and are not split for them."""
        allocator, (address,) = self.cached(60)
        assert (allocator.malloc(int(requested * M)) == address) is taken
        assert figures(allocator) == ((60 if taken else 40) * M, (60 if taken else 100) * M)

    def test_below_it_blocks_are_split(self) -> None:
        """38 MiB serve 10 MiB, and 28 remain."""
        allocator, (address,) = self.cached(38)
        assert allocator.malloc(10 * M) == address
        assert figures(allocator) == (10 * M, 38 * M)

    def test_one_oversize_block_is_released_for_a_request_that_it_could_hold(self) -> None:
        """On 112 MiB with 70 and 42 cached, 45 MiB fit neither (70 is too much larger): the smallest of at least 45
        MiB, 70, is released, and the rest of the cache stays; this counts as no retry.
        """
        allocator, (_, kept) = self.cached(70, 42, capacity=112 * M)
        allocator.malloc(45 * M)
        assert figures(allocator) == (46 * M, (42 + 46) * M)
        assert allocator.num_alloc_retries == 0
        assert allocator.malloc(42 * M) == kept

    def test_several_oversize_blocks_are_released_largest_first_until_it_is_enough(self) -> None:
        """On 150 MiB with 50, 42 and 44 cached, 80 MiB need 50 + 44; 42 MiB stay."""
        allocator, (_, kept, _) = self.cached(50, 42, 44, capacity=150 * M)
        allocator.malloc(80 * M)
        assert figures(allocator) == (80 * M, 122 * M)
        assert allocator.num_alloc_retries == 0
        assert allocator.malloc(42 * M) == kept

    def test_small_requests_release_an_oversize_block(self) -> None:
        """On 100 MiB with 90 cached and refused to a request for 30 MiB, a block of at least 40 MiB is looked for."""
        allocator, _ = self.cached(90, capacity=100 * M)
        allocator.malloc(30 * M)
        assert figures(allocator) == (30 * M, 30 * M)
        assert allocator.num_alloc_retries == 0

    def test_blocks_that_can_be_split_are_left_to_the_retry(self) -> None:
        """On 100 MiB with 60 in use and 38 cached, 39 MiB find nothing oversize; emptying the cache helps: a retry."""
        allocator = CachingAllocator(self.SETTINGS, capacity=100 * M)
        allocator.malloc(60 * M)
        allocator.free(allocator.malloc(38 * M))
        allocator.malloc(39 * M)
        assert allocator.num_alloc_retries == 1


class TestGarbageCollection:
    """A device of 200 MiB of which 100 are allowed. Three blocks of 20 MiB bring 60 MiB reserved in 3 searches."""

    @staticmethod
    def run(threshold: float) -> tuple[CachingAllocator, list[int], list[int]]:
        """Free a at age 3, take 22 MiB (search 4: 82 reserved), free b at age 4, take 24 MiB (search 5)."""
        history: list[TraceEntry] = []
        settings = AllocatorSettings(garbage_collection_threshold=threshold, per_process_memory_fraction=0.5)
        allocator = CachingAllocator(settings, capacity=200 * M, history=history)
        a, b, _ = addresses = [allocator.malloc(20 * M) for _ in range(3)]
        allocator.free(a)
        allocator.malloc(22 * M)
        allocator.free(b)
        allocator.malloc(24 * M)
        return allocator, addresses, [entry[1] for entry in history if entry[0] == "segment_free"]

    def test_blocks_older_than_average_are_freed_until_it_is_enough(self) -> None:
        """Threshold 80 MiB, 82 reserved: a is 2 searches old and b 1, 1.5 on average; a goes, and is enough."""
        allocator, (a, _, _), freed = self.run(0.8)
        assert freed == [a]
        assert allocator.reserved == (82 - 20 + 24) * M

    def test_the_average_falls_with_each_round(self) -> None:
        """Threshold 60 MiB: 22 have to go. After a the average is b's own age, so that b goes too."""
        allocator, (a, b, _), freed = self.run(0.6)
        assert freed == [a, b]
        assert allocator.reserved == (82 - 40 + 24) * M

    def test_nothing_happens_up_to_the_threshold(self) -> None:
        """Threshold 82 MiB, 82 reserved: it takes the limit of 100 MiB to get a and b freed, by a retry."""
        allocator, (a, b, _), freed = self.run(0.82)
        assert freed == [a, b]
        assert allocator.num_alloc_retries == 1

    def test_a_block_that_was_used_in_between_is_young_again(self) -> None:
        """a and b are free since search 3; search 4 takes a, which is free again before search 5: a is 1 old and b 2,
        and b alone is above the average.
        """
        history: list[TraceEntry] = []
        settings = AllocatorSettings(garbage_collection_threshold=0.5, per_process_memory_fraction=0.5)
        allocator = CachingAllocator(settings, capacity=200 * M, history=history)
        a, b, _ = [allocator.malloc(20 * M) for _ in range(3)]
        allocator.free(a)
        allocator.free(b)
        allocator.free(allocator.malloc(20 * M))
        allocator.malloc(22 * M)
        assert [entry[1] for entry in history if entry[0] == "segment_free"] == [b]
        assert allocator.reserved == 62 * M

    def test_searches_of_the_small_pool_age_nothing(self) -> None:
        """A small request between the two frees leaves 62 MiB reserved, 61 being the threshold. a and b are as old as
        without it: both at the average, both freed.
        """
        history: list[TraceEntry] = []
        settings = AllocatorSettings(garbage_collection_threshold=0.61, per_process_memory_fraction=0.5)
        allocator = CachingAllocator(settings, capacity=200 * M, history=history)
        a, b, _ = [allocator.malloc(20 * M) for _ in range(3)]
        allocator.free(a)
        allocator.malloc(1)
        allocator.free(b)
        allocator.malloc(22 * M)
        assert [entry[1] for entry in history if entry[0] == "segment_free"] == [a, b]

    def test_without_a_memory_fraction_nothing_is_collected(self) -> None:
        """As in PyTorch, a threshold alone does nothing."""
        allocator = CachingAllocator(AllocatorSettings(garbage_collection_threshold=0.1), capacity=300 * M)
        allocator.free(allocator.malloc(100 * M))
        allocator.malloc(102 * M)
        assert allocator.reserved == 202 * M


class TestExpandableSegments:
    """Pages of 20 MiB in the large pool and of 2 MiB in the small one, mapped when needed."""

    SETTINGS = AllocatorSettings(expandable_segments=True)

    def test_the_segment_grows_at_its_end(self) -> None:
        """30 MiB take 2 pages and leave 10 MiB; 25 MiB use these and one page more: the blocks touch."""
        history: list[TraceEntry] = []
        allocator = CachingAllocator(self.SETTINGS, history=history)
        first, second = allocator.malloc(30 * M), allocator.malloc(25 * M)
        assert second == first + 30 * M
        assert history == [
            ("segment_map", first, 40 * M, 0),
            ("alloc", first, 30 * M, 0),
            ("segment_map", first + 40 * M, 20 * M, 0),
            ("alloc", second, 25 * M, 0),
        ]
        statistics = allocator.statistics()
        assert (statistics.allocated, statistics.reserved) == (55 * M, 60 * M)
        assert (statistics.segments, statistics.inactive_split) == (0, 0)

    def test_blocks_are_split_exactly(self) -> None:
        """11 MiB are 11 MiB: in the large pool, too, 512 bytes are enough to be split off."""
        allocator = CachingAllocator(self.SETTINGS)
        allocator.malloc(11 * M)
        allocator.malloc(9 * M - 512)
        allocator.malloc(1)
        assert figures(allocator) == (20 * M, 22 * M)

    def test_a_block_that_cannot_grow_goes_first(self) -> None:
        """40 MiB free before a block in use, 15 MiB free at the growing end: 10 MiB are taken from the 40, since the
        15 count with all that they can grow to.
        """
        allocator = CachingAllocator(self.SETTINGS)
        first = allocator.malloc(40 * M)
        allocator.malloc(5 * M)
        allocator.free(first)
        assert allocator.malloc(10 * M) == first

    def test_whole_free_pages_go_back(self) -> None:
        """Blocks of 30, 30 and 40 MiB on 5 pages. Without the first one, [0, 30), page 1 goes; without the middle
        one, [30, 60), page 3 alone ([40, 60)): page 2 holds both. The gap is filled before the segment grows.
        """
        history: list[TraceEntry] = []
        allocator = CachingAllocator(self.SETTINGS, history=history)
        base, middle, _ = [allocator.malloc(size * M) for size in (30, 30, 40)]
        allocator.free(base)
        allocator.empty_cache()
        assert history[-1] == ("segment_unmap", base, 20 * M, 0)
        assert [(s["address"] - base, s["total_size"]) for s in allocator.segments()] == [(20 * M, 80 * M)]
        allocator.free(middle)
        allocator.empty_cache()
        assert history[-1] == ("segment_unmap", base + 20 * M, 40 * M, 0)
        assert allocator.reserved == 40 * M
        assert allocator.malloc(45 * M) == base
        assert history[-2] == ("segment_map", base, 60 * M, 0)
        assert figures(allocator) == (85 * M, 100 * M)

    def test_a_free_block_before_a_gap_is_used_with_it(self) -> None:
        """Pages 0 to 2 with [0, 5) in use: after unmapping, [5, 20) is free and [20, 60) unmapped. 30 MiB start at 5
        and map one page.
        """
        history: list[TraceEntry] = []
        allocator = CachingAllocator(self.SETTINGS, history=history)
        base = allocator.malloc(5 * M)
        large = allocator.malloc(50 * M)
        allocator.free(large)
        allocator.empty_cache()
        assert figures(allocator) == (5 * M, 20 * M)
        assert allocator.malloc(30 * M) == base + 5 * M
        assert history[-2:] == [("segment_map", base + 20 * M, 20 * M, 0), ("alloc", base + 5 * M, 30 * M, 0)]

    def test_each_stream_and_pool_has_its_own_segment(self) -> None:
        """Two streams, a large and a small request: three ranges of addresses."""
        allocator = CachingAllocator(self.SETTINGS)
        allocator.malloc(2 * M, 1)
        allocator.malloc(2 * M, 2)
        allocator.malloc(1, 2)
        segments = allocator.segments()
        assert [(s["stream"], s["segment_type"], s["total_size"] // M) for s in segments] == [
            (1, "large", 20), (2, "large", 20), (2, "small", 2),
        ]  # fmt: skip
        assert all(s["is_expandable"] for s in segments)

    def test_running_out_of_pages(self) -> None:
        """50 MiB hold 2 pages. After 30 MiB, 20 more need a third; nothing whole is free, so the request fails."""
        allocator = CachingAllocator(self.SETTINGS, capacity=50 * M)
        allocator.malloc(30 * M)
        with pytest.raises(CudaOutOfMemoryError, match=r"Tried to allocate 20\.00 MiB.*of which 10\.00 MiB is free"):
            allocator.malloc(20 * M)
        assert (allocator.num_alloc_retries, allocator.reserved) == (1, 40 * M)
        allocator.malloc(10 * M)

    def test_pages_move_to_another_stream(self) -> None:
        """Both pages of stream 1 are free and go to stream 2: a retry, but no failure."""
        allocator = CachingAllocator(self.SETTINGS, capacity=50 * M)
        allocator.free(allocator.malloc(30 * M, 1))
        allocator.malloc(30 * M, 2)
        assert (allocator.num_alloc_retries, allocator.reserved) == (1, 40 * M)

    def test_pages_of_another_size(self) -> None:
        """large_segment_size_mb is the size of the pages: 30 MiB need three of 12 MiB."""
        settings = AllocatorSettings(expandable_segments=True, large_segment_size_mb=12)
        allocator = CachingAllocator(settings)
        allocator.malloc(30 * M)
        assert allocator.reserved == 36 * M


class TestWhatIsReported:
    """Peaks, history, snapshot."""

    def test_peaks_and_their_reset(self) -> None:
        """Two blocks, one of them freed: peaks stay until they are reset."""
        allocator = CachingAllocator()
        allocator.free(allocator.malloc(12 * M + 1))
        allocator.malloc(1)
        statistics = allocator.statistics()
        assert (statistics.requested_peak, statistics.allocated_peak) == (12 * M + 1, 12 * M + 512)
        assert (statistics.active_peak, statistics.reserved_peak) == (12 * M + 512, 16 * M)
        allocator.reset_peaks()
        statistics = allocator.statistics()
        assert (statistics.requested_peak, statistics.allocated_peak, statistics.reserved_peak) == (1, 512, 16 * M)

    def test_history(self) -> None:
        """Actions in PyTorch's order; blocks with what was requested, segments with their size."""
        history: list[TraceEntry] = []
        allocator = CachingAllocator(history=history)
        address = allocator.malloc(1000, 3)
        allocator.free(address)
        allocator.empty_cache()
        assert history == [
            ("segment_alloc", address, 2 * M, 3),
            ("alloc", address, 1000, 3),
            ("free_requested", address, 1000, 3),
            ("free_completed", address, 1000, 3),
            ("segment_free", address, 2 * M, 3),
        ]

    def test_snapshot(self) -> None:
        """One block of 1,000 bytes at the start of a small segment, in PyTorch's terms."""
        allocator = CachingAllocator()
        address = allocator.malloc(1000, 3)
        assert allocator.segments() == [
            {
                "address": address,
                "total_size": 2 * M,
                "stream": 3,
                "segment_type": "small",
                "allocated_size": 1024,
                "active_size": 1024,
                "requested_size": 1000,
                "is_expandable": False,
                "blocks": [
                    {"address": address, "size": 1024, "requested_size": 1000, "state": "active_allocated"},
                    {"address": address + 1024, "size": 2 * M - 1024, "requested_size": 0, "state": "inactive"},
                ],
            }
        ]

    def test_state_at_the_peak_of_reserved_bytes(self) -> None:
        """20 MiB for 6 MiB, then 16 for 15: 36 reserved, 22 allocated (15 is not split), 14 inactive and split."""
        allocator = CachingAllocator()
        allocator.malloc(6 * M)
        allocator.malloc(15 * M)
        allocator.malloc(3 * M)
        peak = allocator.at_reserved_peak
        assert (peak.reserved, peak.allocated, peak.unallocated, peak.inactive_split) == (
            36 * M,
            22 * M,
            14 * M,
            14 * M,
        )
