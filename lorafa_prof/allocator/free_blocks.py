"""Cached blocks that are free: one pool for each stream and for small and large requests, in the order of best fit."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from lorafa_prof.allocator.sizes import SMALL_SIZE, round_size
from lorafa_prof.errors import BadInputError

#: More bytes than any block has.
NEVER = 1 << 62

#: A block is one integer, its key: its size above this many bits, its address below. Integers in order are blocks in
#: order of (size, address), which is the order that the allocator keeps within a stream, and a sorted list of
#: integers is searched and changed at the speed of C.
ADDRESS_BITS = 60
ADDRESS_MASK = (1 << ADDRESS_BITS) - 1


def key_of(address: int, size: int) -> int:
    """Return the key of a block."""
    return size << ADDRESS_BITS | address


class FreeBlocks:
    """Free blocks of one pool and stream.

    PyTorch keeps one ordered set for all streams, sorted by stream first; since no request looks beyond its own
    stream, one list for each is the same.
    """

    __slots__ = ("is_small", "keys", "least_remainder", "stream", "unmapped")

    def __init__(self, stream: int, *, is_small: bool, least_remainder: int) -> None:
        self.stream = stream
        self.is_small = is_small
        self.least_remainder = least_remainder
        """A block is split when at least this many bytes remain of it."""
        self.keys: list[int] = []
        """Keys of the free blocks, smallest first."""
        self.unmapped: list[int] = []
        """Addresses of ranges of expandable segments with no memory behind them, lowest first."""

    def add(self, address: int, size: int) -> None:
        """Put a block in."""
        insort(self.keys, key_of(address, size))

    def remove(self, address: int, size: int) -> None:
        """Take a block out that is in."""
        del self.keys[self.index_of(address, size)]

    def index_of(self, address: int, size: int) -> int:
        """Return the index in `keys` of a block that is in."""
        return bisect_left(self.keys, key_of(address, size))

    def first_of(self, size: int) -> int:
        """Return the index in `keys` of the smallest, then lowest block of at least `size` bytes."""
        return bisect_left(self.keys, size << ADDRESS_BITS)

    def at(self, index: int) -> tuple[int, int]:
        """Return (address, size) of the block at `index` of `keys`."""
        key = self.keys[index]
        return key & ADDRESS_MASK, key >> ADDRESS_BITS

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (address, size) of what is in now, smallest first; what changes meanwhile is not seen."""
        return iter([(key & ADDRESS_MASK, key >> ADDRESS_BITS) for key in self.keys])


#: A block in use: its pool, its key, its first address, the address behind it, its size.
Block = tuple[FreeBlocks, int, int, int, int]

#: What a request needs: the pool that it looks in, the size of its block, the least key of a block that fits (no block
#: has address 0), what is taken off the key of a block from whose front so much is taken, and the least key of what
#: must remain of a block that is split.
Need = tuple[FreeBlocks, int, int, int, int]


class Needs(dict[int, Need]):
    """Requested bytes, at least 1 -> what they need, found out once for each size.

    Args:
        pools: the small and the large pool of a stream.
        divisions: `AllocatorSettings.divisions`.
        split_below: only for smaller blocks than this are larger ones split.
    """

    def __init__(self, pools: tuple[FreeBlocks, FreeBlocks], divisions: tuple[int, ...], split_below: int) -> None:
        self._small, self._large = pools
        self._divisions, self._split_below = divisions, split_below

    def __missing__(self, requested: int) -> Need:
        if requested <= 0:
            raise BadInputError(f"a block has at least 1 byte, not {requested}")
        size = round_size(requested, self._divisions)
        pool = self._small if size <= SMALL_SIZE else self._large
        wanted = key_of(0, size)
        least_rest = key_of(0, pool.least_remainder if size < self._split_below else NEVER)
        need = self[requested] = pool, size, wanted, wanted - size, least_rest
        return need


class Pools(dict[int, FreeBlocks]):
    """Free blocks of each stream, made at the first request of the stream."""

    def __init__(self, *, is_small: bool, least_remainder: int) -> None:
        self._is_small, self._least_remainder = is_small, least_remainder

    def __missing__(self, stream: int) -> FreeBlocks:
        pool = FreeBlocks(stream, is_small=self._is_small, least_remainder=self._least_remainder)
        self[stream] = pool
        return pool

    def in_order(self) -> list[FreeBlocks]:
        """Return the pools in the order of their streams."""
        return [self[stream] for stream in sorted(self)]
