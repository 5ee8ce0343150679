"""The only place where bytes are scaled, parsed or formatted.

Inside the project a size is an integer of bytes. People are shown GiB (2**30 bytes), labelled.
"""

from __future__ import annotations

import re

from lorafa_prof.errors import BadInputError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

#: The CUDA caching allocator hands out blocks in multiples of this many bytes
#: (kMinBlockSize in PyTorch's c10/cuda/CUDACachingAllocator).
ALLOCATION_GRANULE = 512

_SCALES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-zA-Z]*)\s*")


def allocated(requested: int) -> int:
    """Return the bytes that the caching allocator counts for a request: rounded up to 512 B, nothing for nothing."""
    return -(-requested // ALLOCATION_GRANULE) * ALLOCATION_GRANULE


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` names: "24GiB", "80 GB" (decimal), "512MiB" or a plain number of bytes.

    Raises:
        BadInputError: not a size, or an unknown unit.
    """
    match = _SIZE.fullmatch(text)
    scale = _SCALES.get(match.group(2).lower()) if match else None
    if match is None or scale is None:
        raise BadInputError(f"not a size in bytes: {text[:40]!r} (write for example 24GiB, 512MiB, 80GB or 1048576)")
    return round(float(match.group(1)) * scale) if "." in match.group(1) else int(match.group(1)) * scale


def gib(size: float) -> float:
    """Return `size` bytes in GiB."""
    return size / GIB


def format_gib(size: int | None, digits: int = 2) -> str:
    """Return `size` bytes as a bare number of GiB for a table whose header says GiB; "-" for an unknown figure.

    A size that is there but would round to zero is shown as "<0.01", so that it is not taken for none.
    """
    if size is None:
        return "-"
    smallest = 10**-digits
    if 0 < abs(gib(size)) < smallest / 2:
        return f"<{smallest:.{digits}f}"
    return f"{gib(size):,.{digits}f}"


def format_gb(size: int, digits: int = 2) -> str:
    """Return `size` bytes as a bare number of decimal GB (10**9 bytes), for figures whose source gives them so."""
    amount, smallest = size / 10**9, 10**-digits
    return f"{amount:,.{digits}f}" if amount >= smallest / 2 or not size else f"<{smallest:.{digits}f}"


def format_bytes(size: int | None) -> str:
    """Return `size` bytes with the binary unit that fits: "17.38 GiB", "8.13 MiB", "512 B"; "-" for unknown."""
    if size is None:
        return "-"
    for unit, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size} B"


def format_count(number: float | None) -> str:
    """Return a plain count (parameters, FLOPs) with a decimal prefix: "6.74 B" for billions; "-" for unknown."""
    if number is None:
        return "-"
    for unit, scale in (("Q", 10**15), ("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(number) >= scale:
            return f"{number / scale:,.2f} {unit}"
    return f"{number:g}"
