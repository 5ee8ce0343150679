"""The profile of a card that nobody has measured: the catalog's peaks, at the shares of them that others achieved."""

from __future__ import annotations

from lorafa_prof.specs import DeviceSpec
from lorafa_prof.speed.profile import AttentionRates, Curve, DeviceProfile, HostTimes, MatmulRates
from lorafa_prof.speed.published import (
    ATTENTION,
    BANDWIDTH,
    HOST_KERNEL_S,
    HOST_OP_S,
    HOST_SOURCE,
    HOST_VIEW_S,
    KERNEL_S,
    LATENCY_S,
    MATMUL,
    ON_CHIP_FLOPS_PER_BYTE,
    ON_CHIP_SOURCE,
    Points,
    Share,
)

#: Architectures in whose place another's shares are taken where nobody has published their own: the nearest kin.
_KIN = {
    "geforce": ("ampere 8.6", "ampere 8.0"),
    "ampere 8.6": ("ampere 8.0",),
    "ada": ("ampere 8.6", "ampere 8.0"),
    "hopper": ("ampere 8.0",),
    "blackwell 10.0": ("hopper", "ampere 8.0"),
    "blackwell 12.0": ("ada", "ampere 8.6", "ampere 8.0"),
    "volta": ("ampere 8.0",),
    "turing": ("volta", "ampere 8.0"),
    "cdna3": ("hopper", "ampere 8.0"),
}
#: Dtypes of one rate in the matrix units.
_SAME = {"fp16": "bf16", "bf16": "fp16", "int8": "fp8"}


def default_profile(device: DeviceSpec) -> DeviceProfile:
    """Return the profile of a card by its peaks and published micro-benchmarks.

    A dtype without a peak has no rates, and a card without a bandwidth none: no other card's are taken.
    """
    sources: dict[str, str] = {}
    matmul = {}
    for dtype, peak in device.peak_flops.items():
        if peak is not None:
            share = _matmul_share(device, dtype)
            matmul[dtype] = MatmulRates(flops_per_s=share.value * peak)
            sources[f"matmul.{dtype}"] = _said(share, device.sources.get(f"peak_flops.{dtype}", "the catalog's peak"))
    wide = next((p for p in map(device.peak_flops.get, ("bf16", "fp16", "fp32")) if p is not None), None)
    sources["kernel_s"], sources["latency_s"] = _said(KERNEL_S), _said(LATENCY_S)
    sources["host"] = HOST_SOURCE
    if wide is not None:
        sources["on_chip_bytes_per_s"] = ON_CHIP_SOURCE
    return DeviceProfile(
        name=device.name,
        full_name=device.full_name,
        kind="cuda",
        measured=False,
        peak_flops=dict(device.peak_flops),
        matmul=matmul,
        attention=_attention(device, sources),
        bandwidth=_bandwidth(device, sources),
        units=device.multiprocessors,
        on_chip_bytes_per_s=None if wide is None else wide / ON_CHIP_FLOPS_PER_BYTE,
        kernel_s=KERNEL_S.value,
        latency_s=LATENCY_S.value,
        host=HostTimes(op_s=dict(HOST_OP_S), view_s=HOST_VIEW_S, kernel_s=HOST_KERNEL_S),
        sources=sources,
    )


def _bandwidth(device: DeviceSpec, sources: dict[str, str]) -> Curve | None:
    if device.bandwidth is None:
        return None
    share = next(BANDWIDTH[each] for each in _architectures(device) if each in BANDWIDTH)
    sources["bandwidth"] = _said(share, device.sources.get("bandwidth", "the catalog's peak"))
    return Curve.level(share.value * device.bandwidth)


def _attention(device: DeviceSpec, sources: dict[str, str]) -> dict[str, AttentionRates]:
    """Return the rates of fused kernels; in fp32 the memory-efficient one has the products' rate."""
    shares = next(ATTENTION[each] for each in _architectures(device) if each in ATTENTION)
    found = {}
    for dtype in ("bf16", "fp16", "fp32"):
        peak = device.peak_flops.get(dtype)
        if peak is not None:
            found[dtype] = AttentionRates(
                forward=_curve(shares.forward, peak),
                backward=_curve(shares.backward, peak),
                causal_forward=_curve(shares.causal_forward, peak),
                causal_backward=_curve(shares.causal_backward, peak),
            )
            sources[f"attention.{dtype}"] = f"share of the peak on {shares.card}: {shares.source}"
    return found


def _curve(shares: Points, peak: float) -> Curve:
    return Curve(tuple((size, share * peak) for size, share in shares))


def _matmul_share(device: DeviceSpec, dtype: str) -> Share:
    for architecture in _architectures(device):
        for name in (dtype, _SAME.get(dtype, dtype)):
            if (architecture, name) in MATMUL:
                return MATMUL[architecture, name]
    return MATMUL["ampere 8.0", "bf16"]


def _architectures(device: DeviceSpec) -> tuple[str, ...]:
    """Return the keys under which shares of a card are looked for, its own first, the A100's last."""
    own = device.architecture
    if own in ("ampere", "blackwell") and device.compute_capability is not None:
        own = f"{own} {device.compute_capability[0]}.{device.compute_capability[1]}"
    bf16, fp32 = device.peak_flops.get("bf16"), device.peak_flops.get("fp32")
    if own == "ampere 8.6" and bf16 and fp32 and bf16 < 3 * fp32:
        own = "geforce"
    return (own, *_KIN.get(own, ("ampere 8.0",)))


def _said(share: Share, peak: str | None = None) -> str:
    of_peak = "" if peak is None else f" of the peak ({peak})"
    return f"{share.value:.3g}{of_peak}, measured on {share.card}: {share.source}"
