"""A device's profile from its measurements."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lorafa_prof.calibrate.bench import Bench, CpuBench, CudaBench
from lorafa_prof.calibrate.host import host_times, tiny_run
from lorafa_prof.calibrate.kernels import (
    CPU_ATTENTION,
    CPU_PRODUCTS,
    CPU_SIZES,
    CUDA_ATTENTION,
    CUDA_PRODUCTS,
    CUDA_SIZES,
    Deadline,
    TimedAttention,
    attention,
    bandwidth_curve,
    copies,
    curve,
    products,
    sustained,
)
from lorafa_prof.catalog import load_device
from lorafa_prof.errors import BadInputError, UnknownNameError
from lorafa_prof.measure.devices import open_device
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.on_cpu import works_on_cpu
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.works import step_works
from lorafa_prof.speed.profile import (
    HOST_PHASES,
    AttentionRates,
    Curve,
    DeviceProfile,
    HostTimes,
    MatmulRates,
    TimedProduct,
)
from lorafa_prof.speed.published import ON_CHIP_FLOPS_PER_BYTE
from lorafa_prof.speed.rates import Rates
from lorafa_prof.speed.work import MatrixProduct
from lorafa_prof.workload.versions import installed_versions

#: Shares of the time for each part; what one leaves, the next ones have.
SHARES = {"host": 0.2, "bandwidth": 0.15, "attention": 0.25, "products": 0.4}
MEASURED = "measured"

Tell = Callable[[str], None]


def calibrate(
    device: str, budget_s: float, tell: Tell = lambda text: None, clock: Callable[[], float] = time.perf_counter
) -> DeviceProfile:
    """Measure the profile of a device.

    Args:
        device: "cuda", "cuda:1" or "cpu".
        budget_s: seconds that measuring may take, the loading of libraries and models not counted.
        tell: told what is measured.
        clock: seconds of the host, of which differences count: those of its thread where others keep the CPU busy.

    Raises:
        DeviceError: it is not there.
        BadInputError: another name.
    """
    place: Any = open_device(device)
    is_cpu = place.type == "cpu"
    bench: Bench = CpuBench(clock) if is_cpu else CudaBench(place.index)
    dtypes = _dtypes(bench.torch_name)
    parts = _Parts(bench, is_cpu, budget_s, tell)
    tell("bandwidth")
    bandwidth = parts.bandwidth()
    by_attention = {dtype: parts.attention(dtype, len(dtypes)) for dtype in dtypes}
    timed = {dtype: parts.products(dtype, len(dtypes)) for dtype in dtypes}
    environment = place.environment()
    known = None if is_cpu else _known(place.name)
    profile = _assembled(
        name=_slug(place.name) if known is None else known.name,
        full_name=place.name,
        kind="cpu" if is_cpu else "cuda",
        peak_flops={} if known is None else dict(known.peak_flops),
        units=environment.get("multiprocessors"),
        parts=parts,
        bandwidth=bandwidth,
        attention=by_attention,
        timed=timed,
    )
    tell("host: seconds an operation")
    host = _host(profile, bench.torch_name, Deadline(budget_s * SHARES["host"]), clock)
    return replace(profile, host=host, environment=_environment(environment, budget_s))


def _host(profile: DeviceProfile, device: str, deadline: Deadline, clock: Callable[[], float]) -> HostTimes:
    """Return the host's times; on the CPU without what the operations themselves take."""
    run = tiny_run()
    if profile.kind == "cpu":
        works = works_on_cpu(run, torch.get_num_threads())
        return host_times(device, works, Rates(profile).seconds, deadline, clock)
    traits = DeviceTraits(torch.cuda.get_device_capability(device), profile.units)
    works = step_works(record(run, Cuda(traits, installed_versions()["torch"]), notes_all=True), traits)
    return host_times(device, works, lambda work: 0.0, deadline, clock)


class _Parts:
    """Measures part by part, within the time that each has."""

    def __init__(self, bench: Bench, is_cpu: bool, budget_s: float, tell: Tell) -> None:
        self._bench, self._is_cpu, self._budget, self._tell = bench, is_cpu, budget_s, tell
        self.kernel_s = bench.kernel_seconds()
        number = torch.zeros(1, device=bench.torch_name)
        #: What a timed operation takes without work, beyond what a kernel takes in a row.
        self.overhead_s = max(bench.seconds(lambda: torch.mul(number, 2.0, out=number), 0.5) - self.kernel_s, 0.0)

    @property
    def without_work_s(self) -> float:
        """What a timed operation takes without work."""
        return self.overhead_s + self.kernel_s

    def bandwidth(self) -> Curve:
        """Return the bandwidth over sizes."""
        timed = copies(self._bench, CPU_SIZES if self._is_cpu else CUDA_SIZES, self._deadline("bandwidth", 1))
        return bandwidth_curve(timed, self.without_work_s)

    def attention(self, dtype: str, among: int) -> AttentionRates:
        """Return the rates of attention of one dtype."""
        self._tell(f"attention in {dtype}")
        shapes = CPU_ATTENTION if self._is_cpu else CUDA_ATTENTION
        timed = attention(self._bench, dtype, shapes, self.without_work_s, self._deadline("attention", among))
        return attention_rates(timed)

    def products(self, dtype: str, among: int) -> list[tuple[MatrixProduct, float]]:
        """Return products of one dtype with their times, all that they take included."""
        self._tell(f"matrix products in {dtype}")
        shapes = CPU_PRODUCTS if self._is_cpu else CUDA_PRODUCTS
        return products(self._bench, dtype, shapes, self._deadline("products", among))

    def net(self, seconds: float) -> float:
        """Return a time without what an operation takes without work, of which a tenth is left in any case."""
        return max(seconds - self.without_work_s, seconds / 10)

    def _deadline(self, part: str, among: int) -> Deadline:
        return Deadline(self._budget * SHARES[part] / among)


def attention_rates(timed: Sequence[TimedAttention]) -> AttentionRates:
    """Return curves over the lengths; what was not timed for want of time is as what was."""

    def of(causal: bool, backward: bool) -> Curve:
        points = [(t.tokens, t.flops_per_s) for t in timed if (t.causal, t.backward) == (causal, backward)]
        return curve(points or [(t.tokens, t.flops_per_s) for t in timed if t.backward == backward])

    return AttentionRates(
        forward=of(False, False), backward=of(False, True), causal_forward=of(True, False),
        causal_backward=of(True, True),
    )  # fmt: skip


def _assembled(
    *,
    parts: _Parts,
    units: int | None,
    attention: Mapping[str, AttentionRates],
    timed: Mapping[str, Sequence[tuple[MatrixProduct, float]]],
    **fields: Any,
) -> DeviceProfile:
    best = {dtype: sustained(found) for dtype, found in timed.items()}
    wide = next((best[dtype] for dtype in ("bf16", "fp16") if dtype in best), None)
    bare = DeviceProfile(
        **fields,
        measured=True,
        matmul={dtype: MatmulRates(flops_per_s=rate) for dtype, rate in best.items()},
        attention=attention,
        units=units,
        on_chip_bytes_per_s=None if units is None or wide is None else wide / ON_CHIP_FLOPS_PER_BYTE,
        kernel_s=parts.kernel_s,
        latency_s=parts.overhead_s if units is not None else 0.0,
        host=HostTimes(op_s=dict.fromkeys(HOST_PHASES, 0.0), view_s=0.0, kernel_s=0.0),
        sources={
            **{f"matmul.{dtype}": MEASURED for dtype in best},
            **{f"attention.{dtype}": MEASURED for dtype in attention},
            **dict.fromkeys(("bandwidth", "host", "kernel_s", "latency_s"), MEASURED),
        },
    )  # fmt: skip
    net = {dtype: [(shape, parts.net(seconds)) for shape, seconds in found] for dtype, found in timed.items()}
    return replace(bare, matmul={dtype: _over_model(bare, dtype, found) for dtype, found in net.items()})


def _over_model(profile: DeviceProfile, dtype: str, timed: Sequence[tuple[MatrixProduct, float]]) -> MatmulRates:
    """Return the rates of one dtype with each timed product held against what tiles, waves and traffic give for it."""
    rates, size = Rates(profile), DTYPE_BYTES[dtype]
    entries = []
    for shape, seconds in timed:
        moved = size * shape.batch * (shape.m * shape.k + shape.k * shape.n + shape.m * shape.n)
        modelled = max(rates.product_seconds(shape, dtype), rates.traffic_seconds(moved))
        entries.append(
            TimedProduct(
                batch=shape.batch, m=shape.m, n=shape.n, k=shape.k, seconds=seconds,
                over_model=min(max(seconds / modelled, 1e-3), 1e3),
            )
        )  # fmt: skip
    return MatmulRates(flops_per_s=profile.matmul[dtype].flops_per_s, timed=tuple(entries))


DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def _dtypes(device: str) -> tuple[str, ...]:
    """Return the dtypes that products of the device have; on the CPU those that training there has."""
    if device == "cpu":
        return ("fp32", "bf16")
    # An emulated bf16 is not what anybody trains in.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return ("bf16", "fp16", "fp32") if has_bf16 else ("fp16", "fp32")


def _known(name: str) -> Any:
    """Return the catalog's entry of a card, by the name that torch gives it; None where there is none."""
    if "/" in name or name.lower().endswith(".json"):
        return None
    try:
        return load_device(name)
    except (UnknownNameError, BadInputError):
        return None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "device"


def _environment(found: Mapping[str, Any], budget_s: float) -> dict[str, str | int | float | None]:
    """Return what the figures were measured with, as plain values."""
    kept = ("device", "driver", "cuda", "threads", "total_bytes")
    environment: dict[str, str | int | float | None] = {key: found[key] for key in kept if found.get(key) is not None}
    environment.update(installed_versions())
    if found.get("device_type") == "cuda":
        with contextlib.suppress(ModuleNotFoundError, RuntimeError, OSError):  # no NVML
            environment["sm_clock_mhz"] = int(torch.cuda.clock_rate())
    environment["budget_s"] = budget_s
    environment["date"] = dt.datetime.now(dt.timezone.utc).date().isoformat()
    return environment
