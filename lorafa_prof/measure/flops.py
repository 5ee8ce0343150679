"""Floating-point operations of a step, counted operator by operator while it runs on the device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lorafa_prof.measure.marks import ModuleMarks
from lorafa_prof.measure.timing import Work
from lorafa_prof.measure.trace import RECOMPUTE
from lorafa_prof.speed.work import AttentionProduct
from lorafa_prof.workload import Workload
from lorafa_prof.workload.arithmetic import Shape, attention_flops, beyond_torch
from lorafa_prof.workload.naming import counted_parameters, table_elements

aten = torch.ops.aten


def _attention_backward_needed(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Four products, two for each of the forward's: what the gradients need when the scores are kept."""
    del grad
    return 2 * attention_flops(query, key, value)


_FORWARDS = frozenset(
    {
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_cudnn_attention,
        aten._scaled_dot_product_flash_attention_for_cpu,
    }
)
_BACKWARDS = (
    aten._scaled_dot_product_efficient_attention_backward,
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


class _LeftOut(TorchDispatchMode):
    """Counts what causal kernels leave out of attention, which the other counters count in full."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.phase = ""
        self.needed = 0
        """Of what is no repetition."""
        self.executed = 0

    def tell(self, phase: str, module: str) -> None:
        """Say which phase the step is in."""
        del module
        self.phase = phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        packet = func._overloadpacket if hasattr(func, "_overloadpacket") else func
        if packet in _FORWARDS or packet in _BACKWARDS:
            self._see(func, args, kwargs, backward=packet in _BACKWARDS)
        return func(*args, **kwargs)

    def _see(self, func: Any, args: Any, kwargs: Any, *, backward: bool) -> None:
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key, value = given["query"], given["key"], given["value"]
        (batch, heads, queries, width), (_, key_heads, keys, _) = query.shape, key.shape
        product = AttentionProduct(
            batch=batch, heads=heads, key_heads=key_heads, queries=queries, keys=keys, width=width,
            value_width=value.shape[-1], causal=bool(given.get("is_causal", False)), backward=backward,
        )  # fmt: skip
        self.executed += product.flops - product.causal_flops
        if self.phase != RECOMPUTE:
            self.needed += product.needed_flops - product.needed_causal_flops


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
    again, left_out = _Share(needed), _LeftOut()

    def tell(phase: str, module: str) -> None:
        again.tell(phase, module)
        left_out.tell(phase, module)

    with beside or contextlib.nullcontext(), executed, needed, left_out, ModuleMarks(work.model, tell) as marks:
        loss = work.loss()
        marks.enter_phase("backward")
        loss.backward()
        marks.enter_phase("end")
    del loss
    work.optimizer.zero_grad(set_to_none=True)
    times = work.run.accumulation
    tokens = work.run.bs * work.run.seq * times
    model, all_ = int(needed.get_total_flops()) - again.flops, int(executed.get_total_flops())
    return Work(
        tokens=tokens,
        model_flops=model * times,
        executed_flops=all_ * times,
        model_flops_causal=(model - left_out.needed) * times,
        executed_flops_causal=(all_ - left_out.executed) * times,
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
