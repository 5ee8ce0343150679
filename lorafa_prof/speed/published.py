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


_MAMF = "stas00/ml-engineering, compute/accelerator: maximum achievable matmul FLOPS, bf16, mean of 100 iterations"
_MLI = "mli/transformers-benchmarks, README: matrix multiplication, best of n = 128 to 8192"
_SGEMM = "Yinghan-Li/YHs_Sample issue 4: cuBLAS SGEMM, 5120 x 4096 x 4096"
_CCCL = "NVIDIA/cccl, cub::DeviceTransform babelstream"

#: Best matrix product over the peak, by architecture and dtype. "geforce" is GA102 with half the rate of its matrix
#: units, which power does not limit.
MATMUL: Mapping[tuple[str, str], Share] = {
    ("ampere 8.0", "bf16"): Share(271.2 / 312, "A100 SXM", f"{_MAMF}: 271.2 of 312, torch 2.6, CUDA 12.6"),
    ("ampere 8.0", "tf32"): Share(116 / 156, "A100 80GB", f"{_MLI}: 116 of 156"),
    ("ampere 8.0", "fp32"): Share(18.88 / 19.49, "A100 PCIe", f"{_SGEMM}: 18.88 of 19.49"),
    ("hopper", "bf16"): Share(794.5 / 989, "H100 SXM", f"{_MAMF}: 794.5 of 989, torch 2.7, CUDA 12.6"),
    ("hopper", "fp8"): Share(1402.6 / 1979, "H100 SXM", f"{_MAMF.replace('bf16', 'fp8')}: 1402.6 of 1979"),
    ("cdna3", "bf16"): Share(668.4 / 1300, "MI300X", f"{_MAMF}: 668.4 of 1300, torch 2.5, ROCm 6.3, TunableOp"),
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

_FA2_H100 = "Dao-AILab/flash-attention pull request 1791 (FlashAttention-2 on Hopper), head size 128, 8192 tokens"
_FA2_BY_LENGTH = "pull request 2688 (head size 64, 512 to 8192 tokens, not causal)"


@dataclass(frozen=True)
class AttentionShares:
    """Shares of the peak of bf16 or fp16 that fused attention achieves, by FLOPs per byte that it has to move."""

    forward: tuple[tuple[float, float], ...]
    backward: tuple[tuple[float, float], ...]
    card: str
    source: str


#: FLOPs per byte of s tokens, heads alike: s / 2 in the forward (4 s^2 d over q, k, v, o), 5 s / 8 in the backward
#: (10 s^2 d over q, k, v, o, their gradients and the output's); half of that where it is causal.
ATTENTION: Mapping[str, AttentionShares] = {
    # Forward: causal, 1024 and 4096 tokens. Backward: its best, 63 % in the paper, falls with shorter sequences as on
    # Hopper: 190, 239, 264, 280, 299 TFLOP/s at 512, 1024, 2048, 4096, 8192 tokens.
    "ampere 8.0": AttentionShares(
        ((256, 143.7 / 312), (1024, 156.3 / 312)),
        ((320, 0.63 * 190 / 299), (640, 0.63 * 239 / 299), (1280, 0.63 * 264 / 299), (2560, 0.63 * 280 / 299),
         (5120, 0.63)),
        "A100",
        "forward: liangan1/GPU_travel, performance/flash-attn, FlashAttention-2, causal, head size 128: 143.7, 156.3 "
        "TFLOP/s; backward: FlashAttention-2 (arXiv 2307.08691), at best 63 % of the peak, by length as in "
        f"Dao-AILab/flash-attention {_FA2_BY_LENGTH}",
    ),
    "hopper": AttentionShares(
        ((256, 252.5 / 989), (512, 284.1 / 989), (2048, 284.1 / 989)),
        ((320, 189.9 / 989), (640, 238.8 / 989), (1280, 263.7 / 989), (2560, 287.1 / 989)),
        "H100",
        f"{_FA2_H100}, causal: 284.1 forward, 287.1 backward; by length as in {_FA2_BY_LENGTH}",
    ),
    "ada": AttentionShares(
        ((512, 151.2 / 165.2), (1024, 1.0)),
        ((640, 99.2 / 165.2), (1280, 124.6 / 165.2)),
        "RTX 4090",
        "apache/tvm tl_doc/flash_perf.md, flash_attn, 2048 tokens, head size 128: forward 151.2 causal, 169.3 not; "
        "backward 99.2 and 124.6 TFLOP/s",
    ),
    "ampere 8.6": AttentionShares(
        ((256, 84.1 / 111.1), (2048, 81.7 / 111.1)),
        ((320, 52.9 / 111.1), (640, 62.5 / 111.1), (1280, 70.1 / 111.1), (2560, 74.8 / 111.1), (5120, 77.4 / 111.1)),
        "RTX A5000",
        "gpu-mode/ring-attention issue 10, FlashAttention-2, head size 64, 512 to 8192 tokens, not causal, of 111.1",
    ),
    "blackwell 10.0": AttentionShares(
        ((256, 308.4 / 2250), (512, 359.3 / 2250), (1024, 381.0 / 2250)),
        ((320, 243.1 / 2250), (640, 280.6 / 2250), (1280, 301.6 / 2250), (2560, 314.7 / 2250), (5120, 329.1 / 2250)),
        "B200",
        "Dao-AILab/flash-attention issue 1589, FlashAttention-2, head size 64, 512 to 8192 tokens, not causal",
    ),
}  # fmt: skip

#: Seconds of the host an operation, by phase.
HOST_OP_S: Mapping[str, float] = {"forward": 10e-6, "backward": 6e-6, "optimizer": 6e-6}
HOST_VIEW_S, HOST_KERNEL_S = 3e-6, 2.5e-6
HOST_SOURCE = "pytorch/pytorch issue 41383: 5 to 7 us an operation from Python, with and without autograd"
