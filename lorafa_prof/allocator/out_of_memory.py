"""Running out of memory: the figures that PyTorch's message prints, and the message."""

from __future__ import annotations

from dataclasses import dataclass

from lorafa_prof.errors import LorafaProfError
from lorafa_prof.units import GIB, KIB, MIB


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """State of the device and of the allocator when a request could not be met; bytes."""

    tried: int
    """Size of the segment that was asked for: the request rounded as `cudaMalloc` would have got it."""
    requested: int
    """The request itself."""
    capacity: int
    free: int
    """What cudaMemGetInfo calls free."""
    in_use: int
    """What this process holds: reserved, and what lies outside the allocator."""
    allowed: int | None
    """The limit that `per_process_memory_fraction` sets; None where it is 1."""
    allocated: int
    reserved: int

    @property
    def reserved_but_unallocated(self) -> int:
        """Cached bytes that could not be used: pieces of segments that are partly in use."""
        return self.reserved - self.allocated

    def message(self, gpu: int = 0) -> str:
        """Return PyTorch's own text (2.12, c10/cuda/CUDACachingAllocator.cpp), its double blanks included.

        Releases differ in the advice at the end: 2.10 names PYTORCH_ALLOC_CONF and another page of the manual.
        """
        allowed = "" if self.allowed is None else f"{format_size(self.allowed)} allowed; "
        return (
            f"CUDA out of memory. Tried to allocate {format_size(self.tried)}. "
            f"GPU {gpu} has a total capacity of {format_size(self.capacity)} "
            f"of which {format_size(self.free)} is free. "
            f"Including non-PyTorch memory, this process has {format_size(self.in_use)} memory in use. {allowed}"
            f"Of the allocated memory {format_size(self.allocated)} is allocated by PyTorch, "
            f"and {format_size(self.reserved_but_unallocated)} is reserved by PyTorch but unallocated. "
            "If reserved but unallocated memory is large try setting "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  "
            "See documentation for Memory Management  "
            "(https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
        )


class CudaOutOfMemoryError(LorafaProfError):
    """The model of the allocator could not meet a request; `figures` says how things stood."""

    def __init__(self, figures: OutOfMemory) -> None:
        self.figures = figures
        super().__init__(figures.message())


def format_size(size: int) -> str:
    """Return `size` bytes as PyTorch's messages write them: each unit up to and including 1024 of it."""
    if size <= KIB:
        return f"{size} bytes"
    for unit, scale in (("KiB", KIB), ("MiB", MIB)):
        if size <= KIB * scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / GIB:.2f} GiB"
