"""Optimizers that go through the parameters one by one: the operators of each, and what they read and write.

Numbers (norms of a tensor, a mean of means) have the bytes that they have. Views are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from lorafa_prof.analytic.optimizers import BLOCK_8BIT, SMALLEST_8BIT
from lorafa_prof.specs import ITEMSIZE
from lorafa_prof.speed.work import MatrixProduct, OpWork

_FP32, _NUMBER = ITEMSIZE["fp32"], ITEMSIZE["fp32"]
#: Bytes of the two tables of what a byte of a moment stands for.
_TABLES = 2 * 256 * _FP32


@dataclass(frozen=True)
class Tensor:
    """A parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trained: bool

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.numel * ITEMSIZE[self.dtype]


def eight_bit(tensors: Iterable[Tensor]) -> Iterator[OpWork]:
    """Yield the steps of bitsandbytes' AdamW8bit: a kernel a parameter, moments of small ones in fp32."""
    for t in tensors:
        if not t.trained:
            continue
        if t.numel < SMALLEST_8BIT:
            yield _in_fp32(t)
        else:
            both = t.nbytes + 2 * t.numel + 2 * _FP32 * -(-t.numel // BLOCK_8BIT)
            yield _work("bitsandbytes.optimizer_update_8bit_blockwise", t.dtype, t.nbytes + both + _TABLES, both)


def thirty_two_bit(tensors: Iterable[Tensor]) -> Iterator[OpWork]:
    """Yield the steps of bitsandbytes' PagedAdamW: a kernel a parameter, all moments in fp32."""
    for t in tensors:
        if t.trained:
            yield _in_fp32(t)


def _in_fp32(t: Tensor) -> OpWork:
    both = t.nbytes + 2 * _FP32 * t.numel
    return _work("bitsandbytes.optimizer_update_32bit", t.dtype, t.nbytes + both, both)


def adafactor(tensors: Iterable[Tensor]) -> Iterator[OpWork]:
    """Yield the steps of transformers' Adafactor with the options of its Trainer (`step` in optimization.py).

    GPT-2 keeps its weights the other way round, so that what is a row's here is a column's there.
    """
    for t in tensors:
        if t.trained:
            yield from _adafactor(t)


def _adafactor(t: Tensor) -> Iterator[OpWork]:
    n = t.numel * _FP32

    def work(op: str, read: int, written: int) -> OpWork:
        return _work(op, "fp32", read, written)

    wide = t.dtype != "fp32"
    if wide:  # gradient and weight
        yield from (work("aten._to_copy", t.nbytes, n) for _ in range(2))
    yield from (work("aten.linalg_vector_norm", n, _NUMBER), work("aten.div.Tensor", _NUMBER, _NUMBER))
    yield from (work("aten.pow.Tensor_Scalar", n, n), work("aten.add.Tensor", n, n))
    if len(t.shape) < 2:
        yield from (work("aten.mul_.Tensor", n, n), work("aten.add_.Tensor", 2 * n, n), work("aten.rsqrt", n, n))
    else:
        rows, columns = n // t.shape[-1], n // t.shape[-2]
        for one in (rows, columns):
            yield work("aten.mul_.Tensor", one, one)
            yield work("aten.mean.dim", n, one)
            yield work("aten.add_.Tensor", 2 * one, one)
        means = rows // t.shape[-2]
        yield work("aten.mean.dim", rows, means)
        yield work("aten.div.Tensor", rows + means, rows)
        yield from (work("aten.rsqrt_", rows, rows), work("aten.rsqrt", columns, columns))
        yield work("aten.mul.Tensor", rows + columns, n)
    yield work("aten.mul_.Tensor", 2 * n, n)
    yield work("aten.linalg_vector_norm", n, _NUMBER)
    yield from (work("aten.div.Tensor", _NUMBER, _NUMBER) for _ in range(2))
    yield work("aten.clamp_", _NUMBER, _NUMBER)
    yield from (work("aten.div_.Tensor", n + _NUMBER, n), work("aten.mul_.Tensor", n, n))
    yield from (work("aten.neg", n, n), work("aten.add_.Tensor", 2 * n, n))
    if wide:
        yield _work("aten.copy_", t.dtype, n, t.nbytes)


def lora_fa_peft(tensors: Iterable[Tensor]) -> Iterator[OpWork]:
    """Yield the steps of PEFT's LoRA-FA optimizer: B's gradient times the pseudo-inverse of A A^T, in bf16, then AdamW.

    Of the pseudo-inverse there are only the bytes that it is given and returns.
    """
    frozen: dict[str, Tensor] = {}
    for t in tensors:
        if "lora_A" in t.name:
            frozen[t.name.replace("lora_A", "lora_B")] = t
        elif t.trained:
            if t.name in frozen:
                yield from _projected(frozen[t.name], t)
            yield from _adamw_hf(t)


def _projected(a: Tensor, b: Tensor) -> Iterator[OpWork]:
    (rank, width), rows, square = a.shape, b.shape[0], a.shape[0] ** 2 * _FP32
    half = ITEMSIZE["bf16"]
    yield _product(a.dtype, rank, width, rank, read=2 * a.nbytes)
    yield _work("aten._to_copy", "fp32", 0, square)
    yield _work("aten.mul.Tensor", "fp32", square, square)
    yield _work("aten.add.Tensor", "fp32", rank**2 * ITEMSIZE[a.dtype] + square, square)
    yield _work("aten.linalg_pinv.atol_rtol_tensor", "fp32", square, square)
    narrow = b.numel * half
    if b.dtype != "bf16":
        yield _work("aten._to_copy", "bf16", b.nbytes, narrow)
    yield _work("aten._to_copy", "bf16", square, square // 2)
    yield _product("bf16", rows, rank, rank)
    yield _work("aten.mul.Tensor", "bf16", narrow, narrow)
    if b.dtype != "bf16":
        yield _work("aten._to_copy", b.dtype, narrow, b.nbytes)


def _adamw_hf(t: Tensor) -> Iterator[OpWork]:
    n = t.nbytes
    for op, read in (
        ("aten.mul_.Tensor", n), ("aten.add_.Tensor", 2 * n), ("aten.mul_.Tensor", n), ("aten.addcmul_", 3 * n),
        ("aten.sqrt", n), ("aten.add_.Tensor", n), ("aten.addcdiv_", 3 * n),
    ):  # fmt: skip
        yield _work(op, t.dtype, read, n)


#: The operators of AdaLoRA's importances of one matrix, and how many tensors each reads (`update_ipt` of PEFT's
#: RankAllocator).
_IMPORTANCES = (
    ("aten.mul.Tensor", 2), ("aten.abs", 1), ("aten.mul.Tensor", 1), ("aten.mul.Tensor", 1), ("aten.add.Tensor", 2),
    ("aten.mul.Tensor", 1), ("aten.sub.Tensor", 2), ("aten.abs", 1), ("aten.mul.Tensor", 1), ("aten.add.Tensor", 2),
)  # fmt: skip


def importances(tensors: Iterable[Tensor]) -> Iterator[OpWork]:
    """Yield what AdaLoRA does to each of its matrices after a step that leaves the ranks as they are."""
    for t in tensors:
        if "lora_" in t.name:
            for op, read in _IMPORTANCES:
                yield _work(op, t.dtype, read * t.nbytes, t.nbytes)


def _work(op: str, dtype: str, read: int, written: int) -> OpWork:
    return OpWork(
        op=op, kind="memory", phase="optimizer", module="", dtype=dtype, flops=0, read_bytes=read,
        written_bytes=written,
    )  # fmt: skip


def _product(dtype: str, m: int, k: int, n: int, read: int | None = None) -> OpWork:
    """Return a product of (m, k) by (k, n)."""
    size = ITEMSIZE[dtype]
    return OpWork(
        op="aten.mm", kind="matmul", phase="optimizer", module="", dtype=dtype, flops=2 * m * k * n,
        read_bytes=(m * k + k * n) * size if read is None else read, written_bytes=m * n * size,
        product=MatrixProduct(batch=1, m=m, n=n, k=k),
    )  # fmt: skip
