"""Settings of PyTorch's CUDA caching allocator, and the text they are written in (PYTORCH_CUDA_ALLOC_CONF).

The keys, their limits and their defaults are those of PyTorch 2.13 (c10/core/AllocatorConfig.h and .cpp,
c10/cuda/CUDAAllocatorConfig.h and .cpp). PyTorch 2.9 made PYTORCH_ALLOC_CONF the variable's name; the older
PYTORCH_CUDA_ALLOC_CONF is still read, and wins where both are set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from lorafa_prof.errors import BadInputError, UnknownNameError, UnsupportedError
from lorafa_prof.units import MIB

#: Requests are rounded per interval of their size: below 2 MiB, [2, 4) MiB, ..., from 32 GiB on.
INTERVALS = 16
#: Requests of more than 1 and less than 10 MiB share segments of `large_segment_size_mb`, which must hold them.
MIN_LARGE_ALLOC_MB = 10
#: The driver maps physical memory in pages of 2 MiB.
PAGE_MB = 2


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """What decides how the allocator rounds, splits, keeps and returns memory; the defaults are PyTorch's."""

    expandable_segments: bool = False
    """One growing range of addresses for each pool and stream, in place of one segment for each cudaMalloc."""
    max_split_size_mb: int | None = None
    """Blocks from this size (MiB) on are never split; None: all may be."""
    max_non_split_rounding_mb: int | None = None
    """How much larger (MiB) than a request a block may be that is too large to be split; None: one large segment."""
    roundup_power2_divisions: int | tuple[int, ...] = 0
    """Steps between two powers of two to which a request is rounded up; 0 and 1: multiples of 512 bytes.

    One number for all sizes, or sixteen: requests below 2 MiB, [2, 4) MiB, ..., from 32 GiB on.
    """
    garbage_collection_threshold: float = 0.0
    """Share of the allowed memory above which cached blocks that idle longest are freed; 0: never.

    It acts only together with `per_process_memory_fraction` below 1, in PyTorch as here.
    """
    per_process_memory_fraction: float = 1.0
    """Share of the device's memory that the allocator may reserve."""
    large_segment_size_mb: int = 20
    """Size (MiB) of the segments for requests of more than 1 and less than 10 MiB, and of the pages of expandable
    segments in the large pool. A constant of 20 in older releases (2.4 among them)."""

    written: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The values of settings that were read from a text, as they stood there."""

    def __post_init__(self) -> None:
        """Check what PyTorch checks.

        Raises:
            BadInputError: a value that PyTorch, or the driver behind it, refuses.
        """
        self._check_sizes()
        if not 0.0 <= self.garbage_collection_threshold < 1.0:
            raise BadInputError("garbage_collection_threshold must be between 0 and 1, both excluded (or 0: off)")
        if not 0.0 <= self.per_process_memory_fraction <= 1.0:
            raise BadInputError("per_process_memory_fraction must be in [0, 1]")
        divisions = self.divisions
        if len(divisions) != INTERVALS:
            raise BadInputError(f"roundup_power2_divisions takes one number or {INTERVALS}, not {len(divisions)}")
        for steps in divisions:
            if steps < 0 or steps & (steps - 1):
                raise BadInputError(f"roundup_power2_divisions must be powers of two or 0, not {steps}")

    def _check_sizes(self) -> None:
        large = self.large_segment_size_mb
        if large <= MIN_LARGE_ALLOC_MB:
            raise BadInputError(f"large_segment_size_mb must be more than {MIN_LARGE_ALLOC_MB}, not {large}")
        if self.expandable_segments and large % PAGE_MB:
            raise BadInputError(
                f"large_segment_size_mb must be even with expandable_segments, not {large}: "
                f"the driver maps pages of {PAGE_MB} MiB"
            )
        for name in ("max_split_size_mb", "max_non_split_rounding_mb"):
            value = getattr(self, name)
            if value is not None and value < large:
                raise BadInputError(f"{name} must be at least {large} (large_segment_size_mb), not {value}")

    def describe(self) -> str:
        """Return in words what differs from PyTorch's defaults, each value as it was written."""
        values = ((f.name, getattr(self, f.name), f.default) for f in fields(self) if f.compare)
        changed = {name: self.written.get(name, value) for name, value, default in values if value != default}
        return ", ".join(f"{name}={value}" for name, value in changed.items()) or "as they are by default"

    @property
    def divisions(self) -> tuple[int, ...]:
        """Return `roundup_power2_divisions` for each of the sixteen intervals."""
        given = self.roundup_power2_divisions
        return (given,) * INTERVALS if isinstance(given, int) else given

    @property
    def max_split_size(self) -> int | None:
        """Return `max_split_size_mb` in bytes; None: no limit."""
        return None if self.max_split_size_mb is None else self.max_split_size_mb * MIB

    @property
    def max_non_split_rounding(self) -> int:
        """Return `max_non_split_rounding_mb`, or its default, in bytes."""
        given = self.max_non_split_rounding_mb
        return (self.large_segment_size_mb if given is None else given) * MIB

    @property
    def large_segment_size(self) -> int:
        """Return `large_segment_size_mb` in bytes."""
        return self.large_segment_size_mb * MIB

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """Read settings as PYTORCH_CUDA_ALLOC_CONF holds them: "expandable_segments:True,max_split_size_mb:128".

        Blanks do not count, a key that comes twice counts as it comes last, and a comma may end the text. Keys that
        only concern pinned host memory, locks or CUDA graphs are accepted: they do not change device memory.

        Raises:
            UnknownNameError: no such key; the text names the nearest ones.
            UnsupportedError: `backend:cudaMallocAsync` and `throw_on_cudamalloc_oom:True`, which are not modelled.
            BadInputError: a value that PyTorch refuses, or text that is no list of settings.
        """
        values: dict[str, object] = {}
        written: dict[str, str] = {}
        for key, value in _pairs(text):
            if key in _READERS:
                values[key] = _READERS[key](key, value)
                written[key] = value
            elif key in _NOT_COUNTED:
                _NOT_COUNTED[key](key, value)
            else:
                raise UnknownNameError("allocator setting", key, [*_READERS, *_NOT_COUNTED])
        if values.get("garbage_collection_threshold") == 0.0:
            raise BadInputError("garbage_collection_threshold must be between 0 and 1, both excluded; leave it out")
        return cls(**values, written=written)  # type: ignore[arg-type]  # each reader returns its field's type


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split at the commas that are not inside brackets, then at the first colon."""
    items = re.split(r",(?![^\[]*\])", re.sub(r"\s", "", text))
    if not items[-1]:
        del items[-1]
    pairs = []
    for item in items:
        key, colon, value = item.partition(":")
        if not (key and colon and value) or "[" in key:
            raise BadInputError(f"not an allocator setting: {item[:60]!r} (write key:value,key:value)")
        pairs.append((key, value))
    return pairs


def _flag(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise BadInputError(f"{key} must be True or False, not {value[:40]!r}")
    return value == "True"


def _whole(key: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise BadInputError(f"{key} must be a whole number, not {value[:40]!r}")
    return int(value)


def _fraction(key: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{0,18}\.?[0-9]{1,18}(?:[eE]-?[0-9]{1,2})?", value):
        raise BadInputError(f"{key} must be a number, not {value[:40]!r}")
    return float(value)


def _power_of_two(key: str, value: str) -> int:
    number = _whole(key, value)
    if number < 1 or number & (number - 1):
        raise BadInputError(f"{key} must be a power of two, not {value}")
    return number


def _divisions(key: str, value: str) -> int | tuple[int, ...]:
    """Read one number, or a list such as [256:1,512:2,>:4] whose boundaries are in MiB.

    A boundary of 2^i MiB names the interval [2^i, 2^(i+1)) MiB; intervals below the first boundary get its value, and
    ">" gives all intervals above the last boundary theirs. Intervals between two boundaries keep 0. (In older
    releases, 2.4 among them, ">" overwrote the last boundary's own interval too.)
    """
    if not value.startswith("["):
        return _power_of_two(key, value)
    if not value.endswith("]"):
        raise BadInputError(f"{key}: the list lacks its closing bracket: {value[:60]!r}")
    divisions = [0] * INTERVALS
    last: int | None = None
    for entry in filter(None, value[1:-1].split(",")):
        boundary, colon, steps = entry.partition(":")
        if not (boundary and colon):
            raise BadInputError(f"{key}: not an interval: {entry[:40]!r} (write for example [256:1,512:2,>:4])")
        count = _whole(key, steps)
        if boundary == ">":
            above = (0 if last is None else last) + 1
            divisions[above:] = [count] * (INTERVALS - above)
            continue
        index = min(_power_of_two(f"{key}: a boundary", boundary).bit_length() - 1, INTERVALS - 1)
        if last is None:
            divisions[:index] = [count] * index
        divisions[index] = count
        last = index
    return tuple(divisions)


def _native_only(key: str, value: str) -> None:
    if value != "native":
        raise UnsupportedError(f"{key}:{value[:40]} is not modelled: only PyTorch's own allocator is ({key}:native)")


def _false_only(key: str, value: str) -> None:
    if _flag(key, value):
        raise UnsupportedError(f"{key}:True is not modelled: leave it out to see what the allocator itself does")


_READERS: dict[str, Callable[[str, str], object]] = {
    "expandable_segments": _flag,
    "max_split_size_mb": _whole,
    "max_non_split_rounding_mb": _whole,
    "roundup_power2_divisions": _divisions,
    "garbage_collection_threshold": _fraction,
    "per_process_memory_fraction": _fraction,
    "large_segment_size_mb": _whole,
}

#: Keys of PyTorch 2.13 that are no part of the model: each is checked, and refused where it would change a figure.
_NOT_COUNTED: dict[str, Callable[[str, str], object]] = {
    "backend": _native_only,
    "throw_on_cudamalloc_oom": _false_only,
    "release_lock_on_cudamalloc": _flag,
    "release_lock_on_hipmalloc": _flag,
    # Streams inside a CUDA graph's capture; captures are not replayed here.
    "graph_capture_record_stream_reuse": _flag,
    # Pinned host memory: none of it is device memory.
    "pinned_use_cuda_host_register": _flag,
    "pinned_use_hip_host_register": _flag,
    "pinned_use_background_threads": _flag,
    "pinned_free_catch_all": _flag,
    "pinned_num_register_threads": _power_of_two,
    "pinned_reserve_segment_size_mb": _whole,
    "pinned_max_round_threshold_mb": _whole,
    "pinned_max_cached_size_mb": _whole,
}
