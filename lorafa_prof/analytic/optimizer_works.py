"""The work of an optimizer's step in closed form: what its operators read and write, in their order.

Of AdamW, with foreach kernels or fused, and of SGD the operators on lists of tensors, after those that clip gradients
and before AdaLoRA's importances; of our LoRA-FA those on stacks of gradients; of bitsandbytes' AdamW, of Adafactor and
of PEFT's LoRA-FA those of one parameter after the other. For other optimizers there is none. Where several GPUs share
parameters out, the lists are those of what one of them updates (`sharing.Alone.updated`), and of the others there is
none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from lorafa_prof.analytic import lora_fa
from lorafa_prof.analytic.builder import BUFFERS, Held
from lorafa_prof.analytic.optimizer_tensors import (
    Tensor,
    adafactor,
    eight_bit,
    importances,
    lora_fa_peft,
    thirty_two_bit,
)
from lorafa_prof.specs import ITEMSIZE, RunSpec
from lorafa_prof.speed.launches import launches
from lorafa_prof.speed.work import MatrixProduct, OpWork


class _Pass(NamedTuple):
    """One operator over all tensors: how many lists it reads, writes and is given, and whether with numbers."""

    op: str
    read: int
    written: int
    lists: int
    scalars: bool = False


#: The operators of a step, in order (torch/optim/adamw.py, adam.py and sgd.py of PyTorch 2.13). A list that is given
#: twice, as the gradient is to addcmul, counts twice.
_STEPS: dict[str, tuple[_Pass, ...]] = {
    "adamw": (
        _Pass("aten._foreach_mul_.Scalar", 1, 1, 1),
        _Pass("aten._foreach_lerp_.Scalar", 2, 1, 2),
        _Pass("aten._foreach_mul_.Scalar", 1, 1, 1),
        _Pass("aten._foreach_addcmul_.Scalar", 3, 1, 3),
        _Pass("aten._foreach_sqrt", 1, 1, 2),
        _Pass("aten._foreach_div_.ScalarList", 1, 1, 1, scalars=True),
        _Pass("aten._foreach_add_.Scalar", 1, 1, 1),
        _Pass("aten._foreach_addcdiv_.ScalarList", 3, 1, 3, scalars=True),
    ),
    "adamw-fused": (_Pass("aten._fused_adamw_", 4, 3, 4),),
    "sgd": (_Pass("aten._foreach_add_.List", 2, 1, 2),),
}  # fmt: skip
#: Those that go through the parameters one by one.
_ONE_BY_ONE = {
    "adamw-8bit": eight_bit, "paged-adamw": thirty_two_bit, "paged-adamw-8bit": eight_bit, "adafactor": adafactor,
    "lorafa-peft": lora_fa_peft,
}  # fmt: skip


def is_listed(run: RunSpec) -> bool:
    """Say whether the work of the run's optimizer is known here."""
    if run.shard in ("none", "ddp"):
        return run.resolved_optimizer in {*_STEPS, *_ONE_BY_ONE, "lorafa"}
    extras = run.method.name == "adalora" or run.clip
    return run.resolved_optimizer in _STEPS and not extras


def optimizer_works(run: RunSpec, held: Sequence[Held]) -> list[OpWork]:
    """Return the work of the optimizer's step, the parameters of one dtype after those of another; none if not known.

    Args:
        run: the configuration.
        held: parameters and buffers, each with the number of those that are alike.
    """
    if not is_listed(run):
        return []
    trained = [h for h in held if h.parameter.requires_grad and h.parameter.kind != BUFFERS]
    groups = _groups(run, trained)
    clipped = [work for group in groups for work in _clipping(group)] if run.clip else []
    if run.resolved_optimizer == "lorafa":
        stepped = [work for group in lora_fa.groups(trained) for work in _lora_fa(group)]
    elif run.resolved_optimizer in _STEPS:
        stepped = [work for group in groups for work in _listed(run, group)]
    else:
        stepped = list(_ONE_BY_ONE[run.resolved_optimizer](_tensors(held)))
    kept = importances(_tensors(trained)) if run.method.name == "adalora" else ()
    return [*clipped, *stepped, *kept]


def _listed(run: RunSpec, group: Sequence[Held]) -> list[OpWork]:
    elements = _elements(group)
    dtype = group[0].parameter.dtype
    nbytes = sum(elements) * ITEMSIZE[dtype]
    return [
        OpWork(
            op=one.op, kind="memory", phase="optimizer", module="", dtype=dtype, flops=0,
            read_bytes=one.read * nbytes, written_bytes=one.written * nbytes,
            kernels=launches(elements, one.lists, scalars=one.scalars),
        )
        for one in _STEPS[run.resolved_optimizer]
    ]  # fmt: skip


def _clipping(group: Sequence[Held]) -> list[OpWork]:
    """Return torch.nn.utils.clip_grad_norm_'s passes over the gradients of one dtype; single numbers are left out."""
    elements = _elements(group)
    dtype = group[0].parameter.dtype
    nbytes, norms = sum(elements) * ITEMSIZE[dtype], len(elements) * ITEMSIZE[dtype]

    def work(op: str, read: int, written: int, kernels: int) -> OpWork:
        return OpWork(
            op=op, kind="memory", phase="optimizer", module="", dtype=dtype, flops=0, read_bytes=read,
            written_bytes=written, kernels=kernels,
        )  # fmt: skip

    return [
        work("aten._foreach_norm.Scalar", nbytes, norms, launches(elements, 2, scalars=False)),
        work("aten._foreach_mul_.Tensor", nbytes + ITEMSIZE[dtype], nbytes, launches(elements, 1, scalars=False)),
    ]


def _elements(group: Sequence[Held]) -> list[int]:
    return [h.parameter.numel for h in group for _ in range(h.count)]


def _tensors(held: Sequence[Held]) -> Iterator[Tensor]:
    """Yield what optimizers look at, the trained and the adapters' frozen, those that are alike one by one."""
    for h in held:
        one = h.parameter
        if one.kind != BUFFERS and (one.requires_grad or "lora_" in one.name):
            shape = tuple(int(dim) for dim in one.shape)
            yield from [Tensor(one.name, shape, one.dtype, trained=one.requires_grad)] * h.count


def _lora_fa(group: lora_fa.Group) -> Iterator[OpWork]:
    """Yield what LoRA-FA's step does with one group, call by call."""
    numbers = [h.parameter.numel for h in group.held for _ in range(h.count)]
    own, wide = ITEMSIZE[group.dtype], ITEMSIZE[lora_fa.WIDE]
    square = group.rank**2
    begin = 0
    for number in group.chunks():
        elements = numbers[begin : begin + number]
        begin, total = begin + number, sum(elements)
        several = bool(group.rank) and number > 1
        if several:
            yield _moved("aten.stack", group.dtype, total * own, total * own)
        if group.dtype != lora_fa.WIDE:
            casts = [total] if group.rank else elements
            yield from (_moved("aten._to_copy", lora_fa.WIDE, n * own, n * wide) for n in casts)
        if several:
            yield _moved("aten.stack", lora_fa.WIDE, number * square * wide, number * square * wide)
        if group.rank:
            yield _product(number, int(group.shape[0]), group.rank)
        (fused,) = _STEPS["adamw-fused"]
        kernels = launches(elements, fused.lists, scalars=False)
        yield _moved(fused.op, lora_fa.WIDE, fused.read * total * wide, fused.written * total * wide, kernels)
        if group.dtype != lora_fa.WIDE:
            yield _moved("aten._foreach_copy_", group.dtype, total * wide, total * own, len(elements))


def _moved(op: str, dtype: str, read: int, written: int, kernels: int = 1) -> OpWork:
    return OpWork(
        op=op, kind="memory", phase="optimizer", module="", dtype=dtype, flops=0, read_bytes=read,
        written_bytes=written, kernels=kernels,
    )  # fmt: skip


def _product(number: int, rows: int, rank: int) -> OpWork:
    """The gradients (rows, rank) of so many modules by their corrections."""
    wide = ITEMSIZE[lora_fa.WIDE]
    return OpWork(
        op="aten.bmm" if number > 1 else "aten.mm", kind="matmul", phase="optimizer", module="", dtype=lora_fa.WIDE,
        flops=2 * number * rows * rank**2, read_bytes=number * (rows * rank + rank**2) * wide,
        written_bytes=number * rows * rank * wide, product=MatrixProduct(batch=number, m=rows, n=rank, k=rank),
    )  # fmt: skip


def _groups(run: RunSpec, trained: Sequence[Held]) -> list[list[Held]]:
    """Return the parameters that go into one list: of one dtype, and for LoRA+ A and B apart."""

    def key(h: Held) -> tuple[bool, str]:
        return run.method.name == "lora-plus" and "lora_B" in h.parameter.name, h.parameter.dtype

    return [list(group) for _, group in groupby(sorted(trained, key=key), key)]
