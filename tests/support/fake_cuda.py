"""A CUDA device that is not there: an allocator's account and history as `torch.cuda` tells them, and its events.

It rounds each request up to 512 bytes, and reserves segments of 2 MiB. `patch_cuda` puts it where
`lorafa_prof.measure.cuda` looks.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

GRANULE, SEGMENT = 512, 2 * 2**20
TOTAL = 80 * 2**30
#: What else is on the card: another process, and this one's context.
OTHERS, CONTEXT = 3 * 2**30, 500 * 2**20
_NAMES = ("requested", "allocated", "active", "reserved")


class FakeCuda:
    """One card."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int, int]] = {}
        self.history: list[dict[str, Any]] = []
        self.recording = False
        self.max_entries = 0
        self.current = dict.fromkeys(_NAMES, 0)
        self.peak = dict.fromkeys(_NAMES, 0)
        self.counted = {"allocated": 0, "freed": 0}
        self.fraction: float | None = None
        self.in_context = False
        self.now_ms = 0.0
        self._next = 0x7F00_0000_0000

    def new(self, size: int) -> int:
        """Hand out a block; return its address."""
        address, rounded = self._next, -(-size // GRANULE) * GRANULE
        self._next += rounded
        self.blocks[address] = (size, rounded)
        self._move(size, rounded, "alloc", address)
        return address

    def free(self, address: int) -> None:
        """Take it back."""
        size, rounded = self.blocks.pop(address)
        self._move(-size, -rounded, "free_requested", address)
        self._note("free_completed", address, size)

    def _move(self, size: int, rounded: int, action: str, address: int) -> None:
        self.counted["allocated" if size > 0 else "freed"] += 1
        for name, change in (("requested", size), ("allocated", rounded), ("active", rounded)):
            self.current[name] += change
        while self.current["reserved"] < self.current["allocated"]:
            self.current["reserved"] += SEGMENT
            self._note("segment_alloc", address, SEGMENT)
        for name in _NAMES:
            self.peak[name] = max(self.peak[name], self.current[name])
        self._note(action, address, abs(size))

    def _note(self, action: str, address: int, size: int) -> None:
        if self.recording:
            self.history = [*self.history, {"action": action, "addr": address, "size": size}][-self.max_entries :]

    def memory_stats_as_nested_dict(self, device: int) -> dict[str, Any]:
        assert device == 0
        found: dict[str, Any] = {
            f"{name}_bytes": {"all": {"current": self.current[name], "peak": self.peak[name]}} for name in _NAMES
        }
        return found | {"allocation": {"all": dict(self.counted)}, "num_alloc_retries": 2, "num_ooms": 1}

    def reset_peak_memory_stats(self, device: int) -> None:
        assert device == 0
        self.peak = dict(self.current)

    def record_memory_history(self, *, enabled: str | None, context: Any = "all", max_entries: int = 0) -> None:
        if enabled is not None:
            assert context is None  # stack traces would cost more than the step
            self.history = []
            self.max_entries = max_entries
        self.recording = enabled is not None

    def snapshot(self, device: int) -> dict[str, Any]:
        assert device == 0
        blocks = [
            {"address": address, "state": "active_allocated", "requested_size": size, "size": rounded}
            for address, (size, rounded) in self.blocks.items()
        ]
        free = {"address": 1, "state": "inactive", "requested_size": 0, "size": GRANULE}
        other = {"device": 1, "address": 5, "blocks": [blocks[0]] if blocks else []}
        segment = {"device": 0, "address": 1, "blocks": [free, *blocks]}
        return {"segments": [segment, other], "device_traces": [list(self.history)]}

    def mem_get_info(self, device: int) -> tuple[int, int]:
        assert device == 0
        return TOTAL - self.used(), TOTAL

    def used(self) -> int:
        return OTHERS + self.current["reserved"] + (CONTEXT if self.in_context else 0)

    def event(self) -> Any:
        """A `torch.cuda.Event`: it is reached when `now_ms` has come to where it was recorded."""
        return _Event(self)


class _Event:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.at = 0.0
        self.done = False

    def record(self) -> None:
        self.at = self._cuda.now_ms

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, other: _Event) -> float:
        assert other.done or self.done or other.at >= self.at
        return other.at - self.at


def patch_cuda(patch: pytest.MonkeyPatch, *, nvml: bool = True) -> FakeCuda:
    """Put a fake card in the place of the first one; with or without the driver's library."""
    card = FakeCuda()
    properties = types.SimpleNamespace(name="Fake 80GB", major=8, minor=0, multi_processor_count=108)

    def set_device(index: int) -> None:
        card.in_context = True

    def set_fraction(fraction: float, device: int) -> None:
        card.fraction = fraction

    def event(*, enable_timing: bool) -> Any:
        assert enable_timing
        return card.event()

    replaced: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "set_device": set_device,
        "get_device_properties": lambda index: properties, "mem_get_info": card.mem_get_info,
        "set_per_process_memory_fraction": set_fraction, "synchronize": lambda device: None,
        "reset_peak_memory_stats": card.reset_peak_memory_stats, "Event": event,
        "memory_reserved": lambda device: card.current["reserved"], "_get_nvml_device_index": lambda index: index,
    }  # fmt: skip
    for name, value in replaced.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.cuda.memory, "_record_memory_history", card.record_memory_history)
    patch.setattr(torch.cuda.memory, "_snapshot", card.snapshot)
    patch.setattr(torch.cuda.memory, "memory_stats_as_nested_dict", card.memory_stats_as_nested_dict)
    library: Any = None
    if nvml:
        library = types.ModuleType("pynvml")
        library.nvmlInit = lambda: None
        library.nvmlDeviceGetHandleByIndex = lambda index: index
        library.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(used=card.used())
        library.nvmlSystemGetDriverVersion = lambda: "555.42"
    patch.setitem(sys.modules, "pynvml", library)  # None: the import fails
    return card
