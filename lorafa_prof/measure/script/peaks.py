"""The peaks that a CUDA allocator keeps for a script, kept for it where a traced step has restarted them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from lorafa_prof.measure.trace import Levels

_MEMORIES = ("requested", "allocated", "active", "reserved")


class KeptPeaks:
    """Lets `torch.cuda.max_memory_allocated` and its like tell of the time before and within a traced step too.

    Made before the traced step, it knows the peaks until then. Once the script restarts them itself, it adds nothing.

    Args:
        index: which device.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        stats = torch.cuda.memory.memory_stats_as_nested_dict(index)
        self._peaks: dict[str, int] = {name: stats[f"{name}_bytes"]["all"]["peak"] for name in _MEMORIES}
        self._open = contextlib.ExitStack()

    def keep(self, traced: Levels) -> None:
        """Add the peaks of the traced step, which is over, and tell of them from now on."""
        for name in _MEMORIES:
            self._peaks[name] = max(self._peaks[name], getattr(traced, name) or 0)
        memory = torch.cuda.memory
        told, restart = memory.memory_stats_as_nested_dict, memory.reset_peak_memory_stats
        for owner, name, value in (
            (memory, "memory_stats_as_nested_dict", self._raised(told)),
            (torch.cuda, "memory_stats_as_nested_dict", self._raised(told)),
            (memory, "reset_peak_memory_stats", self._forgetting(restart)),
            (torch.cuda, "reset_peak_memory_stats", self._forgetting(restart)),
        ):
            self._open.enter_context(mock.patch.object(owner, name, value))

    def close(self) -> None:
        """Leave torch as it was."""
        self._open.close()

    def _raised(self, told: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def tell(device: Any = None) -> dict[str, Any]:
            stats = told(device)
            if self._is_ours(device):
                for name, peak in self._peaks.items():
                    figures = stats[f"{name}_bytes"]["all"]
                    figures["peak"] = max(figures["peak"], peak)
            return stats

        return tell

    def _forgetting(self, restart: Callable[..., None]) -> Callable[..., None]:
        def forget(device: Any = None) -> None:
            if self._is_ours(device):
                self._peaks.clear()
            restart(device)

        return forget

    def _is_ours(self, device: Any) -> bool:
        return bool(torch.cuda._utils._get_device_index(device, optional=True) == self._index)
