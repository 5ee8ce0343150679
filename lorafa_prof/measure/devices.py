"""Which device to measure on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lorafa_prof.errors import BadInputError
from lorafa_prof.measure.trace import Prepare, Reading, StepTrace, Tell, Tracer


class Clock(Protocol):
    """Times the phases of a step."""

    def tick(self) -> None:
        """Say that a phase begins, or the step ends."""
        ...

    def ready(self) -> bool:
        """Return whether `seconds` would not have to wait."""
        ...

    def seconds(self) -> list[float]:
        """Return the time between each two ticks; wait for the device where it is not that far."""
        ...


class Device(Protocol):
    """What measuring needs of a device."""

    type: str
    """"cuda" or "cpu"."""
    torch_name: str
    """What torch calls it."""
    name: str
    """What its maker calls it."""
    granule: int
    """Its allocator rounds up to a multiple of this."""
    forgets: bool
    """Whether a trace hears of the end of a block only where it, or a trace before it, has heard of its beginning."""
    cap_bytes: int | None
    """Memory of a smaller one that is emulated."""

    def environment(self) -> dict[str, Any]:
        """Return what decides the figures beside the libraries' versions."""
        ...

    def tracing_kernels(self) -> contextlib.AbstractContextManager[None]:
        """Return what stands around a traced step."""
        ...

    def trace(
        self, step: Callable[[Tell], None], storages: Mapping[int, int], prepare: Prepare | None = None
    ) -> StepTrace:
        """Run a step that tells of phases and modules, and return what the allocator did."""
        ...

    def begin_trace(self, storages: Mapping[int, int]) -> Tracer:
        """Begin to record what the allocator does, where a step cannot be called: see `trace`."""
        ...

    def clock(self) -> Clock:
        """Return a clock for the phases of a step."""
        ...

    def restart_peaks(self) -> None:
        """Begin anew to keep the peaks that `levels` tells."""
        ...

    def levels(self) -> Reading | None:
        """Return the memories now and their peaks, where the allocator keeps an account."""
        ...

    def counters(self) -> tuple[int | None, int | None]:
        """Return the allocator's retries and failures."""
        ...

    def context_bytes(self) -> int | None:
        """Return what the process takes of the device outside of the allocator."""
        ...


def open_device(name: str, cap_bytes: int | None = None, *, attached: bool = False) -> Device:
    """Return the device of that name: "cuda", "cuda:1", "cpu".

    Args:
        name: its name.
        cap_bytes: memory of a smaller one to emulate.
        attached: this process uses it already.

    Raises:
        BadInputError: another name, or a cap that the device cannot have.
        DeviceError: it is not there.
    """
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        from lorafa_prof.measure.cpu import CpuDevice

        return CpuDevice(cap_bytes)
    if kind == "cuda" and (index or "0").isdecimal():
        from lorafa_prof.measure.cuda import CudaDevice

        return CudaDevice(int(index or 0), cap_bytes, attached=attached)
    raise BadInputError(f"no device is called {name[:40]!r}: cuda, cuda:1 and cpu are")
