"""Devices and operations of round numbers."""

from __future__ import annotations

from typing import Any

from lorafa_prof.speed.profile import AttentionRates, Curve, DeviceProfile, HostTimes, MatmulRates
from lorafa_prof.speed.work import AttentionProduct, MatrixProduct, OpWork


def attention_rates(forward: Curve, backward: Curve) -> AttentionRates:
    """Rates at which causal attention runs like any other."""
    return AttentionRates(forward=forward, backward=backward, causal_forward=forward, causal_backward=backward)


def profile(**changes: Any) -> DeviceProfile:
    """A card of 100 units, 100 TFLOP/s in bf16 and 1 TB/s, with a host that takes 10 us an operation."""
    fields: dict[str, Any] = {
        "name": "round",
        "full_name": "A round card",
        "kind": "cuda",
        "measured": False,
        "peak_flops": {"bf16": 125e12, "fp32": None},
        "matmul": {"bf16": MatmulRates(flops_per_s=100e12)},
        "attention": {"bf16": attention_rates(Curve.level(50e12), Curve.level(25e12))},
        "bandwidth": Curve.level(1e12),
        "units": 100,
        "on_chip_bytes_per_s": None,
        "kernel_s": 2e-6,
        "latency_s": 0.0,
        "host": HostTimes(
            op_s={"forward": 10e-6, "backward": 5e-6, "optimizer": 5e-6}, view_s=1e-6, kernel_s=1e-6
        ),
    }  # fmt: skip
    return DeviceProfile(**{**fields, **changes})


def memory(moved: int, **changes: Any) -> OpWork:
    """An operation that moves so many bytes."""
    fields: dict[str, Any] = {
        "op": "aten.mul", "kind": "memory", "phase": "forward", "module": "", "dtype": "bf16", "flops": 0,
        "read_bytes": moved, "written_bytes": 0,
    }  # fmt: skip
    return OpWork(**{**fields, **changes})


def product(m: int, n: int, k: int, batch: int = 1, **changes: Any) -> OpWork:
    """A product of (m, k) by (k, n) in bf16."""
    fields: dict[str, Any] = {
        "op": "aten.mm", "kind": "matmul", "phase": "forward", "module": "model.layers.0.mlp", "dtype": "bf16",
        "flops": 2 * batch * m * n * k, "read_bytes": 2 * batch * (m * k + k * n), "written_bytes": 2 * batch * m * n,
        "product": MatrixProduct(batch=batch, m=m, n=n, k=k),
    }  # fmt: skip
    return OpWork(**{**fields, **changes})


def attention(tokens: int, *, causal: bool = False, backward: bool = False, **changes: Any) -> OpWork:
    """Attention of one head of width 100 over so many tokens, in bf16."""
    shape = AttentionProduct(
        batch=1, heads=1, key_heads=1, queries=tokens, keys=tokens, width=100, value_width=100, causal=causal,
        backward=backward,
    )  # fmt: skip
    name = f"aten._scaled_dot_product_flash_attention{'_backward' if backward else ''}"
    return memory(0, op=name, kind="attention", flops=shape.flops, attention=shape, **changes)
