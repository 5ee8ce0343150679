"""Published micro-benchmarks: what share of its peaks a card achieves, each with its source.

Nothing here is fitted to the step times of any training run. A share that was measured on one card is taken for others
of its architecture, and says so in the profile; a peak or a bandwidth never is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A share of a peak that was measured."""

    value: float
    card: str
    """On which card."""
    source: str


_MLI = "mli/transformers-benchmarks, README: matrix multiplication, n = 8192"
_MAMF = "stas00/ml-engineering, compute/accelerator: maximum achievable matmul FLOPS"
#: The best of thousands of shapes is not what a model's shape achieves. The author of that search says of its quick
#: run, m up to 20480 with n = k = 4096, that it gives 80 to 90 % of the maximum. (On the A100: 85 % of 271.2 TFLOP/s is
#: 230.5, and 230 is what others measured at n = 8192.)
_USUAL = 0.85
_QUICK = "; 0.85 of it, as its README has it for a quick run (80 to 90 %)"
_SGEMM = "Yinghan-Li/YHs_Sample issue 4: cuBLAS SGEMM, 5120 x 4096 x 4096"
_CCCL = "NVIDIA/cccl, cub::DeviceTransform babelstream"

#: A large matrix product over the peak, by architecture and dtype. "geforce" is GA102 with half the rate of its matrix
#: units, which power does not limit.
MATMUL: Mapping[tuple[str, str], Share] = {
    ("ampere 8.0", "bf16"): Share(230 / 312, "A100 80GB", f"{_MLI}: 230 of 312, fp16"),
    ("ampere 8.0", "tf32"): Share(116 / 156, "A100 80GB", f"{_MLI}: 116 of 156"),
    ("ampere 8.0", "fp32"): Share(18.88 / 19.49, "A100 PCIe", f"{_SGEMM}: 18.88 of 19.49"),
    ("hopper", "bf16"): Share(_USUAL * 794.5 / 989, "H100 SXM", f"{_MAMF}: 794.5 of 989, torch 2.7{_QUICK}"),
    ("hopper", "fp8"): Share(_USUAL * 1402.6 / 1979, "H100 SXM", f"{_MAMF}: 1402.6 of 1979, torch 2.7{_QUICK}"),
    ("cdna3", "bf16"): Share(_USUAL * 668.4 / 1300, "MI300X", f"{_MAMF}: 668.4 of 1300, ROCm 6.3{_QUICK}"),
    ("ampere 8.6", "bf16"): Share(95 / 150, "RTX A6000", f"{_MLI}: 95 of 150"),
    ("ampere 8.6", "tf32"): Share(60 / 75, "RTX A6000", f"{_MLI}: 60 of 75"),
    ("geforce", "bf16"): Share(1.0, "RTX 3090 Ti", f"{_MLI}: 81 of 80, above the boost clock that the peak is for"),
    ("ada", "bf16"): Share(161 / 165.2, "RTX 4090", f"{_MLI}: 161 of 165.2"),
    ("ada", "tf32"): Share(54 / 82.6, "RTX 4090", f"{_MLI}: 54 of 82.6"),
    ("ada", "fp32"): Share(29.17 / 35.48, "RTX 4070 Ti", f"{_SGEMM}: 29.17 of 35.48"),
    ("volta", "fp16"): Share(95 / 125, "V100", f"{_MLI}: 95 of 125"),
    ("volta", "fp32"): Share(14 / 15.7, "V100", f"{_MLI}: 14 of 15.7"),
    ("turing", "fp16"): Share(
        24 / 65, "T4", "NVIDIA developer forum, topic 264462: 24 of 65 at 4096 x 4096 x 4096, held back by its 70 W"
    ),
}

#: Bandwidth over the peak at large sizes, by architecture.
BANDWIDTH: Mapping[str, Share] = {
    "ampere 8.0": Share(0.888, "A100 80GB", f"{_CCCL} triad, issue 2714: 47.2 MB more in 26.07 us, of 2.039 TB/s"),
    "hopper": Share(0.924, "H200", f"{_CCCL} add, pull request 2086: 12.88 GB in 2.907 ms, 4.43 of 4.8 TB/s"),
    "blackwell 10.0": Share(0.874, "B200", f"{_CCCL}, pull request 7391: 87.39 % at 2^28 fp32 elements"),
    "blackwell 12.0": Share(0.877, "RTX 5090", f"{_CCCL}, pull request 9881: 87.7 % at 2^28 elements of 16 bytes"),
    "ampere 8.6": Share(0.853, "RTX 3090 Ti", "mli/transformers-benchmarks, micro_bench: 860 of 1008 GB/s, 4 Mi fp32"),
    "ada": Share(0.799, "L4", "rtferraz/cuda-kernel-engineering, vector add of 50 M fp32: 239.6 of 300 GB/s"),
    "volta": Share(0.876, "V100 PCIe", "te42kyfo/gpu-benches, cuda-stream scale at full occupancy: 788 of 900 GB/s"),
    "turing": Share(0.749, "T4", "router-gao/cuda-demo, CUDA bandwidthTest, device to device: 239.6 of 320 GB/s"),
}  # fmt: skip

#: A small kernel, its gap to the next included, and the time from launch to beginning on an idle card, seconds.
KERNEL_S = Share(2.0e-6, "B200", f"{_CCCL} add, pull request 7391: 2^16 fp16 elements, batched, 2.00 us a kernel")
LATENCY_S = Share(
    3.5e-6, "A100 80GB", f"{_CCCL} triad, issue 2714: 5.54 us alone for 2^16 elements, less a kernel in a row"
)

#: FLOP/s at which tiles reach the multiprocessors from the L2 cache, per byte: the A100's 312 TFLOP/s of bf16 over
#: 5120 bytes a clock at 1.41 GHz.
ON_CHIP_FLOPS_PER_BYTE = 312e12 / (5120 * 1.41e9)
ON_CHIP_SOURCE = "NVIDIA A100 whitepaper: L2 reads of 5120 bytes a clock; other cards as many for their peak"

_FA2_BY_LENGTH = "Dao-AILab/flash-attention pull request 2688 (head size 64, 512 to 8192 tokens, not causal)"

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class AttentionShares:
    """Shares of the peak of bf16 or fp16 that FlashAttention-2 achieves, by the length of the sequence in tokens.

    Of causal attention half the operations count, as its kernels leave the other half out.
    """

    forward: Points
    backward: Points
    causal_forward: Points
    causal_backward: Points
    card: str
    source: str


def _of(peak: float, *points: tuple[float, float], causal: float = 1.0) -> Points:
    """Return (tokens, TFLOP/s) as shares of a peak; `causal` scales rates of attention that is not."""
    return tuple((tokens, rate * causal / peak) for tokens, rate in points)


#: Rate of causal attention over that of full attention at 2048 tokens, where it was not measured: the RTX 4090's.
_CAUSAL_FORWARD, _CAUSAL_BACKWARD = 151.19 / 169.28, 99.23 / 124.57
_CAUSAL_SOURCE = "causal where not measured as on the RTX 4090 (apache/tvm tl_doc/flash_perf.md)"
#: Rate of the backward over its best one by the length of the sequence, on Hopper.
_BY_LENGTH = (
    (512, 189.86 / 299.23),
    (1024, 238.75 / 299.23),
    (2048, 263.71 / 299.23),
    (4096, 279.8 / 299.23),
    (8192, 1),
)
#: The A100's best backward, TFLOP/s: 63 % of its peak.
_A100_BEST = 0.63 * 312

ATTENTION: Mapping[str, AttentionShares] = {
    "ampere 8.0": AttentionShares(
        forward=_of(312, (1024, 179.11), (4096, 184.04)),
        causal_forward=_of(312, (1024, 143.7), (4096, 156.27)),
        backward=_of(312, *((tokens, share * _A100_BEST) for tokens, share in _BY_LENGTH)),
        # at 8192 tokens as on Hopper: 287.1 of 290.6
        causal_backward=(
            *_of(312, *((t, share * _A100_BEST) for t, share in _BY_LENGTH[:3]), causal=_CAUSAL_BACKWARD),
            *_of(312, (8192, _A100_BEST * 287.1 / 290.6)),
        ),
        card="A100",
        source="forward: liangan1/GPU_travel, performance/flash-attn, head size 128, 1024 and 4096 tokens; backward: "
        f"FlashAttention-2 (arXiv 2307.08691), at best 63 % of the peak, by length as in {_FA2_BY_LENGTH}; "
        f"{_CAUSAL_SOURCE}",
    ),
    "hopper": AttentionShares(
        forward=_of(989, (512, 252.49), (1024, 294.78), (2048, 308.09), (4096, 311.97), (8192, 369.9)),
        causal_forward=_of(989, (1024, 197.91), (2048, 259.23), (8192, 284.1)),
        backward=_of(989, (512, 189.86), (1024, 238.75), (2048, 263.71), (4096, 279.8), (8192, 290.6)),
        causal_backward=(
            *_of(989, (512, 189.86), (1024, 238.75), (2048, 263.71), causal=_CAUSAL_BACKWARD),
            *_of(989, (8192, 287.1)),
        ),
        card="H100",
        source="8192 tokens: Dao-AILab/flash-attention pull request 1791, head size 128; forward, causal: "
        f"triton-lang/triton pull request 2459, head size 64; else {_FA2_BY_LENGTH}; {_CAUSAL_SOURCE}",
    ),
    "ada": AttentionShares(
        forward=((2048, 1.0),),
        causal_forward=_of(165.2, (2048, 151.19)),
        backward=_of(165.2, (2048, 124.57)),
        causal_backward=_of(165.2, (2048, 99.23)),
        card="RTX 4090",
        source="apache/tvm tl_doc/flash_perf.md, flash_attn, 2048 tokens, head size 128",
    ),
    "ampere 8.6": AttentionShares(
        forward=_of(111.1, (512, 84.08), (1024, 81.02), (2048, 81.31), (4096, 81.69), (8192, 81.86)),
        causal_forward=_of(111.1, (512, 84.08), (8192, 81.86), causal=_CAUSAL_FORWARD),
        backward=_of(111.1, (512, 52.88), (1024, 62.54), (2048, 70.07), (4096, 74.8), (8192, 77.42)),
        causal_backward=_of(
            111.1, (512, 52.88), (1024, 62.54), (2048, 70.07), (4096, 74.8), (8192, 77.42), causal=_CAUSAL_BACKWARD
        ),
        card="RTX A5000",
        source="gpu-mode/ring-attention issue 10, head size 64, 512 to 8192 tokens, not causal, of 111.1; "
        f"{_CAUSAL_SOURCE}",
    ),
    "blackwell 10.0": AttentionShares(
        forward=_of(2250, (512, 308.4), (1024, 359.3), (2048, 380.99)),
        causal_forward=_of(2250, (512, 308.4), (1024, 359.3), (2048, 380.99), causal=_CAUSAL_FORWARD),
        backward=_of(2250, (512, 243.05), (1024, 280.64), (2048, 301.61), (4096, 314.71), (8192, 329.09)),
        causal_backward=_of(
            2250, (512, 243.05), (1024, 280.64), (2048, 301.61), (4096, 314.71), (8192, 329.09), causal=_CAUSAL_BACKWARD
        ),
        card="B200",
        source="Dao-AILab/flash-attention issue 1589, head size 64, 512 to 8192 tokens, not causal; "
        f"{_CAUSAL_SOURCE}",
    ),
}  # fmt: skip

#: Seconds of the host an operation, by phase: from Python with autograd, from C++ in the backward, from Python without
#: autograd in the optimizer; and a launch each. A view launches nothing.
_WITH_AUTOGRAD, _WITHOUT, _LAUNCH = 6.8e-6, 5e-6, LATENCY_S.value
HOST_OP_S: Mapping[str, float] = {
    "forward": _WITH_AUTOGRAD + _LAUNCH,
    "backward": _WITH_AUTOGRAD / 2 + _LAUNCH,
    "optimizer": _WITHOUT + _LAUNCH,
}
HOST_VIEW_S, HOST_KERNEL_S = _WITHOUT / 2, _LAUNCH
HOST_SOURCE = (
    "pytorch/pytorch issue 41383: 6.8 us an operation from Python with autograd, 5 us without, about half of it "
    "Python's; 3.5 us for a launch as in latency_s"
)
