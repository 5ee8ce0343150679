"""How much is in use at each moment: by the caching allocator's counters, or by what the profiler hears."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class CudaMeter:
    """The caching allocator's counters, read at each moment."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda
        self.phases: dict[str, int] = {}
        self.steps: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Nothing has to be switched on."""
        yield

    def phase(self, name: str) -> None:
        """Note what is allocated before the first step."""
        self.phases[name] = self.cuda.memory_allocated()

    def begin(self) -> None:
        """Begin a step."""
        self.cuda.reset_peak_memory_stats()
        self.steps.append({"start": self.cuda.memory_allocated()})

    def moment(self, name: str) -> None:
        """Note what is allocated now, and the most since the step began."""
        self.steps[-1][f"after_{name}"] = self.cuda.memory_allocated()
        self.steps[-1][f"peak_{name}"] = self.cuda.max_memory_allocated()

    def end(self) -> None:
        """End a step."""
        stats = self.cuda.memory_stats()
        self.steps[-1] |= {
            "end": self.cuda.memory_allocated(), "peak": self.cuda.max_memory_allocated(),
            "peak_requested": stats.get("requested_bytes.all.peak"), "peak_active": stats["active_bytes.all.peak"],
            "peak_reserved": self.cuda.max_memory_reserved(), "retries": stats["num_alloc_retries"],
            "ooms": stats["num_ooms"],
        }  # fmt: skip


class CpuMeter:
    """The same from what PyTorch's profiler hears from the CPU's allocator, worked out when all is over."""

    _MARK = "mark: "

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.steps: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Listen to the allocator, then fill `phases` and `steps`."""
        import torch

        with torch.backends.mkldnn.flags(enabled=False):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
                yield
        results: Any = prof.profiler.kineto_results  # type: ignore[union-attr]
        events: list[tuple[int, str, int, int]] = []
        for root in results.experimental_event_tree():
            events += self._events(root, inside=False)
        self._work_out(sorted(events, key=lambda event: event[0]))

    def _mark(self, name: str) -> None:
        import torch

        with torch.profiler.record_function(self._MARK + name):
            pass

    def phase(self, name: str) -> None:
        """Note what is allocated before the first step."""
        self._mark(f"phase {name}")

    def begin(self) -> None:
        """Begin a step."""
        self._mark("begin step")

    def moment(self, name: str) -> None:
        """Note what is allocated now, and the most since the step began."""
        self._mark(f"moment {name}")

    def end(self) -> None:
        """End a step."""
        self._mark("end step")

    def _events(self, event: Any, *, inside: bool) -> Iterator[tuple[int, str, int, int]]:
        """Walk the tree: (time, mark, 0, 0), or (time, "", bytes, address) of what operators make and anyone frees."""
        from torch._C._profiler import _EventType

        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            if inside or fields.alloc_size < 0:
                yield event.start_time_ns, "", fields.alloc_size, fields.ptr
        elif event.tag == _EventType.TorchOp:
            if event.name.startswith(self._MARK):
                yield event.start_time_ns, event.name.removeprefix(self._MARK), 0, 0
            inside = inside or ("::" in event.name and not event.name.startswith("autograd::"))
        for child in event.children:
            yield from self._events(child, inside=inside)

    def _work_out(self, events: list[tuple[int, str, int, int]]) -> None:
        live: set[int] = set()
        used = peak = 0
        for _, mark, nbytes, address in events:
            what, _, name = mark.partition(" ")
            if what == "phase":
                self.phases[name] = used
            elif what == "begin":
                self.steps.append({"start": used})
                peak = used
            elif what == "moment":
                self.steps[-1] |= {f"after_{name}": used, f"peak_{name}": peak}
            elif what == "end":
                self.steps[-1] |= {"end": used, "peak": peak}
            elif nbytes > 0:
                live.add(address)
                used += nbytes
                peak = max(peak, used)
            elif address in live:  # what no operator allocated is not counted when it goes either
                live.remove(address)
                used += nbytes
