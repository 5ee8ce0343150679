"""The operations that are timed: matrix products over shapes, copies over sizes, attention over lengths."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from lorafa_prof.calibrate.bench import Bench
from lorafa_prof.speed.profile import Curve
from lorafa_prof.speed.work import AttentionProduct, MatrixProduct

#: (batch, m, n, k): layers of models over few and many tokens, adapters' ranks, gradients of weights.
CUDA_PRODUCTS = (
    (1, 4096, 4096, 4096), (1, 64, 4096, 4096), (1, 512, 4096, 4096), (1, 16384, 4096, 4096), (1, 4096, 11008, 4096),
    (1, 4096, 4096, 11008), (1, 4096, 1024, 4096), (1, 4096, 64, 4096), (1, 4096, 16, 4096), (1, 4096, 4096, 64),
    (1, 4096, 4096, 16), (1, 64, 4096, 4096), (1, 4096, 64, 8192), (1, 16384, 64, 4096), (1, 512, 1024, 1024),
    (1, 2048, 2048, 2048), (1, 8192, 8192, 8192), (1, 128, 32000, 4096), (1, 4096, 32000, 4096), (1, 1024, 1024, 1024),
    (64, 1024, 1024, 128), (64, 1024, 128, 1024),
)  # fmt: skip
CPU_PRODUCTS = (
    (1, 256, 256, 256), (1, 16, 64, 64), (1, 64, 64, 64), (1, 64, 256, 256), (1, 256, 1024, 256), (1, 256, 256, 1024),
    (1, 256, 8, 256), (1, 256, 256, 8), (1, 64, 8, 64), (1, 8, 256, 256), (1, 1024, 256, 256), (1, 512, 1024, 1024),
    (1, 256, 4096, 256), (1, 64, 1024, 64), (8, 64, 64, 16), (8, 256, 256, 64), (8, 256, 64, 256), (1, 512, 2048, 2048),
)  # fmt: skip
#: Bytes that a copy moves.
CUDA_SIZES, CPU_SIZES = tuple(2**n for n in range(16, 32)), tuple(2**n for n in range(13, 28))
#: (batch, heads, tokens, width): the same number of tokens in all.
CUDA_ATTENTION = tuple((8192 // tokens, 16, tokens, 128) for tokens in (1024, 4096, 512, 2048, 8192))
CPU_ATTENTION = ((4, 4, 64, 32), (2, 4, 256, 32), (1, 4, 1024, 32))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Item = TypeVar("Item")


@dataclass
class Deadline:
    """A span of time that is shared by what there is to do.

    Args:
        seconds: how long it is.
        clock: seconds, of which differences count.
    """

    seconds: float
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self._ends = self.clock() + self.seconds

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self.clock() >= self._ends

    def share(self, items: Sequence[Item]) -> Iterator[tuple[Item, float]]:
        """Yield the items with the seconds that each may take, until the time is over; the first in any case."""
        for number, item in enumerate(items):
            left = self._ends - self.clock()
            if left <= 0 and number:
                return
            yield item, max(left, 0.0) / (len(items) - number)


def products(
    bench: Bench, dtype: str, shapes: Sequence[tuple[int, int, int, int]], deadline: Deadline
) -> list[tuple[MatrixProduct, float]]:
    """Return matrix products of one dtype and what each takes, as many as there is time for.

    The factors lie in the three ways that training has them, of which the mean is taken.
    """
    found = []
    for (batch, m, n, k), limit in deadline.share(shapes):
        with contextlib.suppress(torch.OutOfMemoryError):
            runs = _product(bench.torch_name, DTYPES[dtype], batch, m, n, k)
            times = [bench.seconds(run, limit / len(runs)) for run in runs]
            found.append((MatrixProduct(batch=batch, m=m, n=n, k=k), statistics.mean(times)))
    return found


def _product(device: str, dtype: torch.dtype, batch: int, m: int, n: int, k: int) -> list[Callable[[], object]]:
    """Return runs of it as a linear layer has them, factors lying as they do or transposed.

    In the forward the weight lies transposed, in the input's gradient nothing does, in the weight's the gradient.
    """
    if batch == 1:
        left, right = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
        left_t, right_t = left.t().contiguous(), right.t().contiguous()
        return [
            lambda: torch.mm(left, right_t.t()), lambda: torch.mm(left, right), lambda: torch.mm(left_t.t(), right)
        ]  # fmt: skip
    first, second = torch.randn(batch, m, k, device=device), torch.randn(batch, k, n, device=device)
    first, second = first.to(dtype), second.to(dtype)
    return [lambda: torch.bmm(first, second)]


def copies(bench: Bench, sizes: Sequence[int], deadline: Deadline) -> list[tuple[int, float]]:
    """Return bytes moved and what that takes: one fp32 tensor read, scaled, and another written."""
    found = []
    for size, limit in deadline.share(sizes):
        with contextlib.suppress(torch.OutOfMemoryError):
            found.append((size, bench.seconds(_copy(bench.torch_name, size), limit)))
    return found


def _copy(device: str, size: int) -> Callable[[], object]:
    source = torch.ones(size // 8, device=device)
    target = torch.empty_like(source)
    return lambda: torch.mul(source, 2.0, out=target)


@dataclass(frozen=True)
class TimedAttention:
    """Attention of one shape: FLOP/s of what is not masked."""

    tokens: int
    causal: bool
    backward: bool
    flops_per_s: float


def attention(
    bench: Bench, dtype: str, shapes: Sequence[tuple[int, int, int, int]], overhead_s: float, deadline: Deadline
) -> list[TimedAttention]:
    """Return the rates of attention of one dtype, forward and backward, causal and not.

    Args:
        bench: of the device.
        dtype: of queries, keys and values.
        shapes: (batch, heads, tokens, width).
        overhead_s: what a timed operation takes without work.
        deadline: how long all may take.
    """
    found = []
    cases = [(shape, causal) for shape in shapes for causal in (True, False)]
    for ((batch, heads, tokens, width), causal), limit in deadline.share(cases):
        with contextlib.suppress(torch.OutOfMemoryError):
            forward, backward = _attention(bench.torch_name, DTYPES[dtype], (batch, heads, tokens, width), causal)
            for run, is_backward in ((forward, False), (backward, True)):
                shape = AttentionProduct(
                    batch=batch, heads=heads, key_heads=heads, queries=tokens, keys=tokens, width=width,
                    value_width=width, causal=causal, backward=is_backward,
                )  # fmt: skip
                seconds = max(bench.seconds(run, limit / 2) - overhead_s, 1e-9)
                found.append(TimedAttention(tokens, causal, is_backward, shape.causal_flops / seconds))
    return found


def _attention(
    device: str, dtype: torch.dtype, shape: tuple[int, int, int, int], causal: bool
) -> tuple[Callable[[], object], Callable[[], object]]:
    query, key, value = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3))
    out = scaled_dot_product_attention(query, key, value, is_causal=causal)
    grad = torch.ones_like(out)

    def forward() -> object:
        with torch.no_grad():
            return scaled_dot_product_attention(query, key, value, is_causal=causal)

    def backward() -> object:
        return torch.autograd.grad(out, (query, key, value), grad, retain_graph=True)

    return forward, backward


def curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Return a curve through (size, rate), sizes in any order."""
    return Curve(tuple(sorted(points)))


def bandwidth_curve(timed: Sequence[tuple[int, float]], overhead_s: float) -> Curve:
    """Return the bandwidth by the bytes moved, without what an operation takes without work.

    Sizes whose time is hardly more than that say nothing, all but the largest. No size may take less than a smaller
    one: what a clock says beyond that is noise.
    """
    points: list[tuple[float, float]] = []
    longest = 0.0
    for size, seconds in timed:
        net = seconds - overhead_s
        if net > overhead_s / 4 or size == timed[-1][0]:
            longest = max(longest, net, 1e-9)
            points.append((float(size), size / longest))
    return curve(points)


def sustained(timed: Sequence[tuple[MatrixProduct, float]]) -> float:
    """Return the highest rate of all products, FLOP/s."""
    return max(flops(shape) / seconds for shape, seconds in timed)


def flops(product: MatrixProduct) -> int:
    """Return the operations of a product."""
    return 2 * product.batch * product.m * product.n * product.k
