"""Device memory as the CUDA driver hands it out: bytes taken and left, addresses never used twice.

What is assumed, for lack of a specification:

- `cudaMalloc` takes physical memory in units of 2 MiB, as `cuMemCreate` does; all that the caching allocator asks for
  by default is a multiple of it.
- Addresses are fresh, increasing, on 2 MiB boundaries, and two ranges never touch. The real driver gives freed
  addresses out again. Addresses matter to the allocator only between free blocks of exactly the same size, of which
  it takes the lowest.
"""

from __future__ import annotations

from lorafa_prof.units import MIB

#: Smallest physical page of a CUDA device that cuMemCreate maps (its allocation granularity).
PAGE = 2 * MIB
#: Where the first segment lies: an address of the size that CUDA addresses have on Linux.
FIRST_ADDRESS = 0x7F00_0000_0000


class Driver:
    """Counts the memory of one device.

    Args:
        capacity: bytes of the device, or None: there is always enough.
        outside: bytes of them that are taken before the allocator starts: CUDA context, libraries, other processes.
    """

    __slots__ = ("_next_address", "capacity", "outside", "taken")

    def __init__(self, capacity: int | None, outside: int) -> None:
        self.capacity = capacity
        self.outside = outside
        self.taken = 0
        self._next_address = FIRST_ADDRESS

    @property
    def free_bytes(self) -> int:
        """Bytes that cudaMemGetInfo would call free; only on a device of known capacity."""
        assert self.capacity is not None
        return max(0, self.capacity - self.outside - self.taken)

    def take(self, size: int) -> bool:
        """Take `size` bytes of physical memory, whole pages; say whether they were there."""
        size = -(-size // PAGE) * PAGE
        if self.capacity is not None and size > self.free_bytes:
            return False
        self.taken += size
        return True

    def give_back(self, size: int) -> None:
        """Return what `take(size)` took."""
        self.taken -= -(-size // PAGE) * PAGE

    def reserve_addresses(self, size: int) -> int:
        """Return the first address of a range of `size` bytes that nothing else ever uses."""
        address = self._next_address
        self._next_address += (size // PAGE + 2) * PAGE
        return address
