"""The work of an optimizer's step in closed form: what its operators on lists of tensors read and write.

Of AdamW, with foreach kernels or fused, and of SGD; for other optimizers there is none. Where several GPUs share a step
they are those of what one of them updates (`sharing.Alone.updated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from lorafa_prof.analytic.builder import BUFFERS, Held
from lorafa_prof.specs import ITEMSIZE, RunSpec
from lorafa_prof.speed.launches import launches
from lorafa_prof.speed.work import OpWork


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


def is_listed(run: RunSpec) -> bool:
    """Say whether the work of the run's optimizer is known here."""
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
    found = []
    for group in _groups(run, trained):
        elements = [h.parameter.numel for h in group for _ in range(h.count)]
        dtype = group[0].parameter.dtype
        nbytes = sum(elements) * ITEMSIZE[dtype]
        found += [
            OpWork(
                op=one.op, kind="memory", phase="optimizer", module="", dtype=dtype, flops=0,
                read_bytes=one.read * nbytes, written_bytes=one.written * nbytes,
                kernels=launches(elements, one.lists, scalars=one.scalars),
            )
            for one in _STEPS[run.resolved_optimizer]
        ]  # fmt: skip
    return found


def _groups(run: RunSpec, trained: Sequence[Held]) -> list[list[Held]]:
    """Return the parameters that go into one list: of one dtype, and for LoRA+ A and B apart."""

    def key(h: Held) -> tuple[bool, str]:
        return run.method.name == "lora-plus" and "lora_B" in h.parameter.name, h.parameter.dtype

    return [list(group) for _, group in groupby(sorted(trained, key=key), key)]
