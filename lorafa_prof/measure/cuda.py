"""A CUDA device to measure: the caching allocator's own account and history, and events on its stream for time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from lorafa_prof.errors import BadInputError, DeviceError
from lorafa_prof.measure.trace import BaseBlock, Event, Levels, Mark, Prepare, Reading, StepTrace, Tell, traced

#: Events that the allocator keeps: a step of a 70B model with checkpointing has less than a tenth of these.
MOST_EVENTS = 4_000_000
_ALLOC_CONF = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class CudaDevice:
    """Measures on one CUDA device.

    Args:
        index: which one.
        attached: this process uses it already, so that its context cannot be told from other processes' any more;
            which device is the current one is left as it is.
        cap_bytes: memory that the allocator is refused beyond, to emulate a smaller card; None: all there is.

    Raises:
        DeviceError: there is no such device.
        BadInputError: the cap is beyond the card.
    """

    type = "cuda"
    #: The caching allocator rounds up to a multiple of this (kMinBlockSize).
    granule = 512
    forgets = False

    def __init__(self, index: int = 0, cap_bytes: int | None = None, *, attached: bool = False) -> None:
        if not torch.cuda.is_available():
            raise DeviceError("torch finds no CUDA device; --device cpu measures on the processor")
        if index >= torch.cuda.device_count():
            raise DeviceError(f"there is no CUDA device {index}: torch sees {torch.cuda.device_count()}")
        self.index = index
        self.torch_name = f"cuda:{index}"
        self._nvml = _Nvml(index)
        self._used_before_context = None if attached else self._nvml.used()
        if not attached:
            torch.cuda.set_device(index)
        properties: Any = torch.cuda.get_device_properties(index)
        self.name = str(properties.name)
        self.capability = (int(properties.major), int(properties.minor))
        self.total_bytes = int(torch.cuda.mem_get_info(index)[1])
        self.cap_bytes = cap_bytes
        if cap_bytes is not None:
            if cap_bytes > self.total_bytes:
                raise BadInputError(f"--cap is beyond the {self.total_bytes} bytes of {self.name}")
            torch.cuda.set_per_process_memory_fraction(cap_bytes / self.total_bytes, index)

    def environment(self) -> dict[str, Any]:
        """Return what decides the figures beside the libraries' versions."""
        conf = next((os.environ[name] for name in _ALLOC_CONF if os.environ.get(name)), None)
        return {
            "device": self.name,
            "device_type": "cuda",
            "total_bytes": self.total_bytes,
            "cap_bytes": self.cap_bytes,
            "compute_capability": list(self.capability),
            "multiprocessors": int(torch.cuda.get_device_properties(self.index).multi_processor_count),
            "driver": self._nvml.driver(),
            "cuda": torch.version.cuda,
            "alloc_conf": conf,
        }

    @contextlib.contextmanager
    def tracing_kernels(self) -> Iterator[None]:
        """Tracing changes no kernel here."""
        yield

    def trace(
        self, step: Callable[[Tell], None], storages: Mapping[int, int], prepare: Prepare | None = None
    ) -> StepTrace:
        """Run a step that tells of phases and modules, and return what the allocator did.

        Args:
            step: runs one step; it is given the function to tell.
            storages: of no use here: the allocator knows what is there.
            prepare: of no use here: the allocator tells every end.

        Raises:
            DeviceError: the allocator's history does not hold all events of the step.
        """
        del prepare
        return traced(self.begin_trace(storages), step)

    def begin_trace(self, storages: Mapping[int, int]) -> CudaTracer:
        """Begin to record what the allocator does; see `trace`."""
        del storages
        return CudaTracer(self)

    def clock(self) -> CudaClock:
        """Return a clock for the phases of a step, which runs on the device."""
        return CudaClock()

    def restart_peaks(self) -> None:
        """Begin anew to keep the peaks that `levels` tells."""
        torch.cuda.reset_peak_memory_stats(self.index)

    def levels(self) -> Reading:
        """Return the four memories now, and their peaks since `restart_peaks`."""
        stats = self.stats()
        return Reading(_levels(stats, "peak"), _levels(stats, "current", self.used()))

    def counters(self) -> tuple[int | None, int | None]:
        """Return how often the allocator freed its cache and asked again, and how often that did not help."""
        stats = self.stats()
        return int(stats["num_alloc_retries"]), int(stats["num_ooms"])

    def used(self) -> int:
        """Return the bytes in use on the whole card."""
        free, total = torch.cuda.mem_get_info(self.index)
        return int(total) - int(free)

    def context_bytes(self) -> int | None:
        """Return what this process takes outside of the allocator; None where nothing tells it apart from others."""
        used, before = self._nvml.used(), self._used_before_context
        if used is None or before is None:
            return None
        return used - before - int(torch.cuda.memory_reserved(self.index))

    def stats(self) -> dict[str, Any]:
        """Return the allocator's account."""
        stats: dict[str, Any] = torch.cuda.memory.memory_stats_as_nested_dict(self.index)
        return stats

    def blocks(self) -> dict[int, BaseBlock]:
        """Return the blocks that are in use, by address."""
        segments = torch.cuda.memory._snapshot(self.index)["segments"]
        found: dict[int, BaseBlock] = {}
        for segment in segments:
            if segment["device"] != self.index:
                continue
            address = segment["address"]
            for block in segment["blocks"]:
                if block["state"] == "active_allocated":
                    found[block.get("address", address)] = BaseBlock(block["requested_size"], block["size"])
                address += block["size"]
        return found


class CudaTracer:
    """Records what the allocator does from now on; see `Tracer`.

    It reads the allocator's account at each mark, and restarts its peaks: so each stretch has its own.
    """

    def __init__(self, device: CudaDevice) -> None:
        torch.cuda.synchronize(device.index)
        self._device = device
        self._base = device.blocks()
        self._marks: list[Mark] = []
        self._readings: list[Reading] = []
        self._position = 0
        self._began = _count(device.stats())
        device.restart_peaks()
        torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=MOST_EVENTS)

    def tell(self, phase: str, module: str) -> None:
        """Say which module is at work from now on."""
        self._read(new_phase=bool(self._marks) and self._marks[-1].phase != phase)
        self._marks.append(Mark(self._position, phase, module))

    def restart(self, storages: Mapping[int, int]) -> None:
        """Of no use here: nothing is forgotten."""

    def finish(self, departures: Mapping[int, Sequence[int]] | None = None) -> StepTrace:
        """End the record, and return it.

        Args:
            departures: of no use here: the allocator knows what has gone.

        Raises:
            DeviceError: the allocator's history does not hold all events of the step.
        """
        del departures
        try:
            self._read(new_phase=True)
            history = torch.cuda.memory._snapshot(self._device.index)["device_traces"][self._device.index]
        finally:
            self.abandon()
        events = list(_events(history))
        if len(events) != self._position:
            raise DeviceError(
                f"the allocator's history holds {len(events)} events where {self._position} were counted: another "
                "thread allocates, or the history is too short"
            )
        return StepTrace(self._base, events, self._marks, self._readings)

    def abandon(self) -> None:
        """End the record without a result."""
        torch.cuda.memory._record_memory_history(enabled=None)

    def _read(self, *, new_phase: bool) -> None:
        stats = self._device.stats()
        self._position = _count(stats) - self._began
        if self._marks:
            used = self._device.used() if new_phase else None
            self._readings.append(Reading(_levels(stats, "peak"), _levels(stats, "current", used)))
        self._device.restart_peaks()


class CudaClock:
    """Records an event on the device's stream at the beginning of each phase; nothing waits for it within the step."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def tick(self) -> None:
        """Record an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def ready(self) -> bool:
        """Return whether the device has come to the last event."""
        return bool(self._events[-1].query())

    def seconds(self) -> list[float]:
        """Wait until the device has come to the last event, and return the time between each two."""
        self._events[-1].synchronize()
        pairs = zip(self._events, self._events[1:], strict=False)
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


class _Nvml:
    """What the driver knows of the card; None for each figure where its library is not there."""

    def __init__(self, index: int) -> None:
        self._library: Any = None
        self._handle: Any = None
        with contextlib.suppress(Exception):  # no library, no driver, a card that torch numbers otherwise
            import pynvml

            pynvml.nvmlInit()
            # torch tells which card of all that is without making a context, whose cost is to be seen
            number = torch.cuda._get_nvml_device_index(index)
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            self._library = pynvml

    def used(self) -> int | None:
        """Bytes in use on the card, by all processes and the driver."""
        return None if self._library is None else int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used)

    def driver(self) -> str | None:
        """The driver's version."""
        return None if self._library is None else str(self._library.nvmlSystemGetDriverVersion())


def _levels(stats: dict[str, Any], what: str, device: int | None = None) -> Levels:
    requested, allocated, active, reserved = (
        int(stats[f"{name}_bytes"]["all"][what]) for name in ("requested", "allocated", "active", "reserved")
    )
    return Levels(requested, allocated, active, reserved, device)


def _count(stats: dict[str, Any]) -> int:
    """Return the number of blocks handed out and taken back since the process began."""
    counted = stats["allocation"]["all"]
    return int(counted["allocated"]) + int(counted["freed"])


def _events(history: list[dict[str, Any]]) -> Iterator[Event]:
    # A block is counted as allocated until it is freed, even where the device is not done with it ("free_completed").
    signs = {"alloc": 1, "free_requested": -1}
    for entry in history:
        sign = signs.get(entry["action"])
        if sign is not None:
            yield Event(sign * int(entry["size"]), int(entry["addr"]))
