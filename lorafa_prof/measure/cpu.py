"""The CPU as a device to measure: its allocator's reports come from torch's profiler.

The CPU's allocator keeps no account of its own. While it profiles, torch hears of every block that comes and goes; of
what was there before it hears nothing, so that the storages of model, optimizer and batch are counted by themselves.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lorafa_prof.measure.cpu_trace import CpuTracer
from lorafa_prof.measure.trace import Prepare, Reading, StepTrace, Tell, traced
from lorafa_prof.workload.conditions import without_onednn


class CpuDevice:
    """Measures on the CPU.

    Args:
        cap_bytes: memory of the device that is emulated. The CPU's allocator cannot be refused any, so that a step is
            held against it when it is over.
    """

    type = "cpu"
    torch_name = "cpu"
    #: Sizes are counted as they are requested.
    granule = 1
    forgets = True

    def __init__(self, cap_bytes: int | None = None) -> None:
        self.name = _processor()
        self.cap_bytes = cap_bytes

    def environment(self) -> dict[str, Any]:
        """Return what decides the figures beside the libraries' versions."""
        return {
            "device": self.name,
            "device_type": "cpu",
            "total_bytes": _physical_bytes(),
            "cap_bytes": self.cap_bytes,
            "threads": torch.get_num_threads(),
            "onednn_in_trace": False,
        }

    def tracing_kernels(self) -> contextlib.AbstractContextManager[None]:
        """Run PyTorch's own kernels: the scratch memory of oneDNN differs from processor to processor."""
        return without_onednn()

    def trace(
        self, step: Callable[[Tell], None], storages: Mapping[int, int], prepare: Prepare | None = None
    ) -> StepTrace:
        """Run a step that tells of phases and modules, and return what the allocator did.

        Args:
            step: runs one step; it is given the function to tell.
            storages: bytes of what is there before it, by address.
            prepare: runs first, where the step ends what is not made in it: of that the profiler hears only what was
                made under it.
        """
        return traced(CpuTracer(storages), step, prepare)

    def begin_trace(self, storages: Mapping[int, int]) -> CpuTracer:
        """Begin to record all that the allocator does; `trace` leaves out what would not be on a device."""
        return CpuTracer(storages, host_too=True)

    def clock(self) -> CpuClock:
        """Return a clock for the phases of a step."""
        return CpuClock()

    def restart_peaks(self) -> None:
        """The CPU's allocator keeps no account."""

    def levels(self) -> Reading | None:
        """The CPU's allocator keeps no account."""
        return None

    def counters(self) -> tuple[int | None, int | None]:
        """Nothing is retried here."""
        return None, None

    def context_bytes(self) -> int | None:
        """There is no context."""
        return None


class CpuClock:
    """Notes the time at the beginning of each phase."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def tick(self) -> None:
        """Note the time."""
        self._times.append(time.perf_counter())

    def ready(self) -> bool:
        """See `Clock.ready`."""
        return True

    def seconds(self) -> list[float]:
        """Return the time between each two ticks."""
        return [after - before for before, after in zip(self._times, self._times[1:], strict=False)]


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _physical_bytes() -> int | None:
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="utf-8") as lines:
        facts: Mapping[str, str] = dict(line.split(":", 1) for line in lines)
        return int(facts["MemTotal"].split()[0]) * 1024
    return None
