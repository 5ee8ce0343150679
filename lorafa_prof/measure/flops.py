"""Floating-point operations of a step, counted operator by operator while it runs on the device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lorafa_prof.measure.marks import ModuleMarks
from lorafa_prof.measure.timing import Work
from lorafa_prof.measure.trace import RECOMPUTE
from lorafa_prof.workload import Workload
from lorafa_prof.workload.arithmetic import Shape, attention_flops, beyond_torch
from lorafa_prof.workload.naming import counted_parameters, table_elements

aten = torch.ops.aten


def _attention_backward_needed(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Four products, two for each of the forward's: what the gradients need when the scores are kept."""
    del grad
    return 2 * attention_flops(query, key, value)


_BACKWARDS = (
    aten._scaled_dot_product_efficient_attention_backward,
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


def count_work(work: Workload, beside: contextlib.AbstractContextManager[Any] | None = None) -> Work:
    """Run forward and backward once more, and return the operations and tokens of a step.

    Args:
        work: whose step it is.
        beside: stands around it, to see more of the same step.
    """
    beyond = beyond_torch()
    executed = FlopCounterMode(display=False, custom_mapping=beyond)
    needed = FlopCounterMode(
        display=False, custom_mapping={**beyond, **dict.fromkeys(_BACKWARDS, _attention_backward_needed)}
    )
    again = _Share(needed)
    with beside or contextlib.nullcontext(), executed, needed, ModuleMarks(work.model, again.tell) as marks:
        loss = work.loss()
        marks.enter_phase("backward")
        loss.backward()
        marks.enter_phase("end")
    del loss
    work.optimizer.zero_grad(set_to_none=True)
    times = work.run.accumulation
    tokens = work.run.bs * work.run.seq * times
    return Work(
        tokens=tokens,
        model_flops=(int(needed.get_total_flops()) - again.flops) * times,
        executed_flops=int(executed.get_total_flops()) * times,
        model_flops_6n=6 * (counted_parameters(work.model)["total"] - table_elements(work.model)) * tokens,
    )


class _Share:
    """Counts what runs in a recomputation."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self._counter = counter
        self._phase = ""
        self._before = 0
        self.flops = 0

    def tell(self, phase: str, module: str) -> None:
        """Say which phase the step is in."""
        del module
        now = int(self._counter.get_total_flops())
        if self._phase == RECOMPUTE:
            self.flops += now - self._before
        self._phase, self._before = phase, now
