"""Timing of single operations on a device: medians, with what a device needs for an honest time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

#: Repetitions of one operation at most, and such as a median needs at least.
MOST, FEWEST = 30, 5
#: Seconds that a repetition on the CPU should take at least, for the clock not to count.
LEAST_S = 200e-6
#: Bytes that are written to clear the caches of a card: more than any L2 cache has.
FLUSH_BYTES = 2**28
#: Clock ticks for which a card is kept busy while the host queues an operation and its events: about 100 us.
AHEAD_TICKS = 200_000
#: Kernels of a graph by which a kernel without work is timed.
IN_A_ROW = 200

Run = Callable[[], object]


class Bench(Protocol):
    """Times operations on one device."""

    torch_name: str
    """What torch calls the device."""

    def seconds(self, run: Run, limit_s: float) -> float:
        """Return the median time of a run, repeated within a limit; once at least."""
        ...

    def kernel_seconds(self) -> float:
        """Return the time of a kernel without work among others, the gap to the next one included."""
        ...


class CpuBench:
    """Times on the CPU, where the host does all itself.

    Args:
        clock: seconds, of which differences count.
    """

    torch_name = "cpu"

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def seconds(self, run: Run, limit_s: float) -> float:
        """See `Bench.seconds`; short runs are timed several at a time."""
        began = self._clock()
        run()
        first = self._clock() - began
        if first >= limit_s:
            return first
        together = max(1, min(1000, int(LEAST_S / max(first, 1e-9))))
        times: list[float] = []
        while len(times) < MOST and (len(times) < FEWEST or self._clock() - began < limit_s / 2):
            start = self._clock()
            for _ in range(together):
                run()
            times.append((self._clock() - start) / together)
            if self._clock() - began > limit_s:
                break
        return statistics.median(times)

    def kernel_seconds(self) -> float:
        """Nothing is launched: what an operation takes without work is the host's."""
        return 0.0


class CudaBench:
    """Times on a CUDA device by events on its stream, each run with empty caches.

    Args:
        index: which device.
    """

    def __init__(self, index: int = 0) -> None:
        self.torch_name = f"cuda:{index}"
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.torch_name)

    def seconds(self, run: Run, limit_s: float) -> float:
        """See `Bench.seconds`. While the host queues a run the card is kept busy, and waits for nothing."""
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times: list[float] = []
        while len(times) < MOST and (not times or time.perf_counter() - began < limit_s):
            self._flush.zero_()
            torch.cuda._sleep(AHEAD_TICKS)
            times.append(_between_events(run))
        return statistics.median(times)

    def kernel_seconds(self) -> float:
        """Replay a graph of additions to one number."""
        number = torch.zeros(1, device=self.torch_name)
        graph: Any = torch.cuda.CUDAGraph()
        number.add_(1)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for _ in range(IN_A_ROW):
                number.add_(1)
        return statistics.median(_between_events(graph.replay) for _ in range(FEWEST)) / IN_A_ROW


def _between_events(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3
