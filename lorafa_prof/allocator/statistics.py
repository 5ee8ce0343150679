"""Figures of the caching allocator, under the names of PyTorch's memory statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What `torch.cuda.memory_stats` would show; bytes, and peaks since the last reset."""

    requested: int
    """requested_bytes.all: what was asked for."""
    requested_peak: int
    allocated: int
    """allocated_bytes.all: sizes of the blocks in use. A block is the rounded request, and also what was left of a
    larger block where that was too little to be split off."""
    allocated_peak: int
    reserved: int
    """reserved_bytes.all: what was taken from the driver."""
    reserved_peak: int
    inactive_split: int
    """inactive_split_bytes.all: free blocks whose segment is partly in use; 0 with expandable segments."""
    segments: int
    """segment.all: segments from cudaMalloc; expandable segments are not counted."""
    num_alloc_retries: int
    num_ooms: int

    @property
    def active(self) -> int:
        """active_bytes.all: the same as allocated, since no block waits for another stream here."""
        return self.allocated

    @property
    def active_peak(self) -> int:
        """Peak of `active`."""
        return self.allocated_peak


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragmentation:
    """How well the reserved bytes were used at one moment."""

    reserved: int
    allocated: int
    inactive_split: int

    @property
    def unallocated(self) -> int:
        """Reserved bytes that no block in use covers."""
        return self.reserved - self.allocated
