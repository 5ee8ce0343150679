"""How long a step takes: the host issues operations at its own rate, the device executes them in their order.

Two clocks. The device begins an operation when it has finished the one before, and the host has issued this one. Where
operations are long, the host runs ahead and the device is never idle; where they are short, the device waits for the
host, and the step takes as long as the issuing. The step begins with both idle, and ends when the later one has
finished. Every moment of it is accounted for: by the kind of operation that the device was busy with, or as waiting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.rates import Rates, missing
from lorafa_prof.speed.work import MatrixProduct, OpWork

#: Kinds of operations, and what is left.
KINDS = ("matmul", "attention", "memory", "waiting")
#: The phase and the kind of the time in which the device waits for other cards.
COMMUNICATION = "communication"
#: Operations that are told of as the ones that take most.
TOP = 10
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, kw_only=True)
class TopOperation:
    """Operations of one kind, shape and phase together."""

    op: str
    phase: str
    module: str
    """Where the first of them is, layers' numbers left out; "" for what is outside of all."""
    dtype: str
    shape: str
    """"16384 x 4096 x 4096" (m, n, k) of a product; "" for all else."""
    count: int
    seconds: float
    """That the device is busy with all of them."""


@dataclass(frozen=True, kw_only=True)
class StepTimeline:
    """The time of one step, and what it goes into."""

    step_s: float
    device_s: float
    """That the device is busy."""
    host_s: float
    """That the host takes to issue all operations."""
    by_phase: Mapping[str, float]
    """Seconds of the step in each phase, in the order of the phases; they add up to `step_s`."""
    by_kind: Mapping[str, float]
    """Seconds of the step by `KINDS`, and of several cards `COMMUNICATION`; they add up to `step_s`."""
    top: tuple[TopOperation, ...]

    @property
    def launch_bound(self) -> float:
        """Share of the step in which the device waits for the host."""
        return self.by_kind["waiting"] / self.step_s if self.step_s else 0.0

    def with_communication(self, seconds: float) -> StepTimeline:
        """Return the timeline of a step that waits so long for what other cards send."""
        return replace(
            self, step_s=self.step_s + seconds, by_phase={**self.by_phase, COMMUNICATION: seconds},
            by_kind={**self.by_kind, COMMUNICATION: seconds},
        )  # fmt: skip


def timeline(works: Sequence[OpWork], profile: DeviceProfile) -> StepTimeline:
    """Return the timeline of a step.

    Args:
        works: its operations, in the order in which they are issued.
        profile: of the device.

    Raises:
        UnsupportedError: the profile lacks a figure that is needed; the text says which.
    """
    lacking = missing(works, profile)
    if lacking:
        raise UnsupportedError("; ".join(lacking))
    clocks = _Clocks(profile)
    for work in works:
        clocks.issue(work)
    return clocks.result()


class _Clocks:
    """Host and device, while a step goes on."""

    def __init__(self, profile: DeviceProfile) -> None:
        self._rates = Rates(profile)
        self._host_times = profile.host
        self._latency = profile.latency_s
        self._alone = profile.kind == "cpu"
        self._host = self._device = self._busy = self._issuing = 0.0
        self._by_phase: dict[str, float] = {}
        self._by_kind = dict.fromkeys(KINDS, 0.0)
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._known: dict[int, _Issued] = {}

    @property
    def _now(self) -> float:
        return max(self._host, self._device)

    def issue(self, work: OpWork) -> None:
        """Let the host issue one operation and the device execute it."""
        before = self._now if self._alone else self._device
        known = self._known.get(id(work))  # one object stands in the list as often as its layer is run
        if known is None:
            known = self._known[id(work)] = self._look_up(work)
        busy = known.busy
        self._issuing += known.issuing
        self._host += known.issuing
        if work.kernels:
            self._device = max(self._device, self._host + (0.0 if self._alone else self._latency)) + busy
            if self._alone or work.waits:
                self._host = max(self._host, self._device)
        passed = (self._now if self._alone else self._device) - before
        self._by_phase[work.phase] = self._by_phase.get(work.phase, 0.0) + passed
        self._by_kind[work.kind] += busy
        self._by_kind["waiting"] += passed - busy
        self._busy += busy
        known.group.count += 1
        known.group.seconds += busy

    def _look_up(self, work: OpWork) -> _Issued:
        group = self._groups.setdefault((work.op, work.phase, work.dtype, work.product), _Group(work))
        issuing = self._host_times.seconds(work.phase, work.kernels)
        return _Issued(work, issuing, self._rates.seconds(work), group)

    def result(self) -> StepTimeline:
        """Return what has come of it; the last phase ends with whichever of the two is later."""
        step = self._now
        rest = step - (step if self._alone else self._device)
        if self._by_phase:
            self._by_phase[next(reversed(self._by_phase))] += rest
        self._by_kind["waiting"] = max(self._by_kind["waiting"] + rest, 0.0)
        return StepTimeline(
            step_s=step, device_s=self._busy, host_s=self._issuing, by_phase=self._by_phase, by_kind=self._by_kind,
            top=self._top(),
        )  # fmt: skip

    def _top(self) -> tuple[TopOperation, ...]:
        return tuple(group.told() for group in sorted(self._groups.values(), key=lambda g: -g.seconds)[:TOP])


@dataclass(slots=True)
class _Group:
    """Operations that are alike."""

    first: OpWork
    count: int = 0
    seconds: float = 0.0

    def told(self) -> TopOperation:
        """Return what is told of them."""
        work, product = self.first, self.first.product
        shape = "" if product is None else _shape(product)
        return TopOperation(
            op=work.op, phase=work.phase, module=_NUMBER.sub("*", work.module), dtype=work.dtype, shape=shape,
            count=self.count, seconds=self.seconds,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Issued:
    """What each issuing of one operation takes."""

    work: OpWork
    """Held, so that nothing else is found at its address."""
    issuing: float
    busy: float
    group: _Group


def _shape(product: MatrixProduct) -> str:
    several = f"{product.batch} of " if product.batch > 1 else ""
    return f"{several}{product.m} x {product.n} x {product.k}"
