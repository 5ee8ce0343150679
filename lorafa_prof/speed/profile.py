"""How fast one device is, as plain data: what its arithmetic, its memory, its kernels and its host achieve.

A profile is measured on a card (`lorafa-prof calibrate`) or made of the catalog's peaks and published micro-benchmarks
(`defaults`). Every figure has its source. Seconds, bytes, bytes per second, FLOP/s; no other units.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from lorafa_prof.errors import BadInputError
from lorafa_prof.results.plain import plain

#: Version of the file's layout; raised when a reader of the old one would misread the new one.
SCHEMA = 1
#: Dtypes that a profile may have rates of.
DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8")
#: Phases whose operations cost the host differently. Others cost what the first of these does.
HOST_PHASES = ("forward", "backward", "optimizer")

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Curve:
    """A rate as a function of a size: straight between its points on logarithmic axes, level beyond them."""

    points: tuple[tuple[float, float], ...]
    """(size, rate), sizes rising."""

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        if not sizes or sorted(set(sizes)) != sizes or min(min(point) for point in self.points) <= 0:
            raise BadInputError("a curve needs points of positive size and rate, the sizes rising")

    @classmethod
    def level(cls, rate: float) -> Curve:
        """Return a rate that is the same for all sizes."""
        return cls(((1.0, rate),))

    def at(self, size: float) -> float:
        """Return the rate for a size."""
        number = bisect_right(self._sizes, size)
        if number == 0 or number == len(self.points):
            return self.points[max(number - 1, 0)][1]
        (low, slow), (high, fast) = self.points[number - 1], self.points[number]
        share = math.log(size / low) / math.log(high / low)
        return slow * math.exp(share * math.log(fast / slow))

    @cached_property
    def _sizes(self) -> list[float]:
        return [size for size, _ in self.points]


@dataclass(frozen=True, kw_only=True)
class TimedProduct:
    """One matrix product that was timed: `batch` products of (m, k) by (k, n)."""

    batch: int
    m: int
    n: int
    k: int
    seconds: float
    over_model: float
    """That time over what the rates of the profile give without it."""


@dataclass(frozen=True, kw_only=True)
class MatmulRates:
    """What matrix products of one dtype achieve."""

    flops_per_s: float
    """FLOP/s that are sustained at the shapes which suit the device best: full tiles, full waves, long k."""
    timed: tuple[TimedProduct, ...] = ()
    """Products that were timed, for what tiles and waves do not explain."""


@dataclass(frozen=True, kw_only=True)
class AttentionRates:
    """What fused attention of one dtype achieves: FLOP/s by the number of keys, with which it rises.

    Of causal attention the operations that are not masked count, half of all.
    """

    forward: Curve
    backward: Curve
    causal_forward: Curve
    causal_backward: Curve

    def of(self, *, causal: bool, backward: bool) -> Curve:
        """Return the rates of one kernel."""
        if backward:
            return self.causal_backward if causal else self.backward
        return self.causal_forward if causal else self.forward


@dataclass(frozen=True, kw_only=True)
class HostTimes:
    """Seconds that the host takes to issue an operation."""

    op_s: Mapping[str, float]
    """An operation that launches one kernel, by phase, Python around it included: the keys are `HOST_PHASES`."""
    view_s: float
    """An operation that launches none."""
    kernel_s: float
    """Each further kernel of one operation."""

    def seconds(self, phase: str, kernels: int) -> float:
        """Return the time to issue one operation."""
        if kernels == 0:
            return self.view_s
        return self.op_s.get(phase, self.op_s[HOST_PHASES[0]]) + (kernels - 1) * self.kernel_s


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """The speed of one device."""

    name: str
    """As the catalog calls it, where it does: "a100-80gb"."""
    full_name: str
    kind: Kind
    """"cuda": host and device work at the same time. "cpu": the host does all itself."""
    measured: bool
    """Whether the rates were measured on such a device, or follow from its peaks and published benchmarks."""
    peak_flops: Mapping[str, float | None]
    """Dense peak FLOP/s per dtype, as printed: what utilisation is a share of; None where there is none."""
    matmul: Mapping[str, MatmulRates]
    """By dtype. One that is missing has no data, and no time is given for it."""
    attention: Mapping[str, AttentionRates]
    """By dtype; None of a dtype: as `matmul`."""
    bandwidth: Curve | None
    """Bytes per second between memory and processor, by the bytes that a kernel moves; None: not known."""
    units: int | None
    """Streaming multiprocessors over which tiles of a product are spread; None: products are not quantised."""
    on_chip_bytes_per_s: float | None
    """Bytes per second at which tiles reach all units together (from the L2 cache); None: no limit."""
    kernel_s: float
    """What a kernel takes at least, the gap to the next one included, seconds."""
    latency_s: float
    """From the launch on the host to the beginning on an idle device, seconds."""
    host: HostTimes
    interconnect_bytes_per_s: float | None = None
    """What a card sends to another one, one way; None: not known."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each figure comes from, by its key ("matmul.bf16", "bandwidth", "host", ...)."""
    environment: Mapping[str, str | int | float | None] = field(default_factory=dict)
    """What the figures were measured with: versions, clocks, date."""

    @property
    def label(self) -> str:
        """How it came about: "measured" or "default"."""
        return "measured" if self.measured else "default"

    def describe(self) -> str:
        """Return what a time that rests on it should say."""
        if not self.measured:
            return f"step time by the default profile of {self.name}: its peaks, and published micro-benchmarks"
        when = self.environment.get("date")
        return f"step time by a profile measured on {self.full_name}{f' on {when}' if when else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return plain data, which `profile_file.profile_from_json` reads."""
        return {"schema": SCHEMA, "device_profile": plain(self)}
