"""From a run to its plan."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from lorafa_prof.analytic.families.common import window_binds
from lorafa_prof.analytic.lora_ga import plan_after_pass
from lorafa_prof.analytic.step_plan import OPTIMIZER_STEP, ParameterCount, Peak, StepPlan, counted
from lorafa_prof.analytic.trace import build_model, trace_step
from lorafa_prof.analytic.zero import as_deepspeed_casts
from lorafa_prof.specs import RunSpec

__all__ = ["OPTIMIZER_STEP", "ParameterCount", "Peak", "StepPlan", "count_parameters", "plan", "regime", "traced_alike"]


def count_parameters(run: RunSpec) -> ParameterCount:
    """Count the parameters of `run`'s model with its adapters; its step need not be one that this engine models.

    Raises:
        UnsupportedError: an architecture or method that this engine does not know.
    """
    builder, _ = build_model(run)
    return counted(builder.held)


def regime(run: RunSpec) -> RunSpec:
    """Return the run that stands for all whose step is the same but for batch and sequence length.

    A single sequence takes other copies than several, and from the sliding window on windowed layers have a mask.
    """
    return run.replace(bs=1 if run.bs == 1 else 2, seq=run.spec.sliding_window if window_binds(run) else 1)


def traced_alike(run: RunSpec) -> RunSpec:
    """Return the run that stands for all with the same forward and backward: the optimizer has its turn after them.

    Where cards share the step, and for LoRA-GA's pass before it, the optimizer has a say in what is held.
    """
    return run if run.shard != "none" or run.method.name == "lora-ga" else run.replace(optimizer="auto")


def plan(run: RunSpec) -> StepPlan:
    """Trace one step of `run` and return its plan.

    Raises:
        UnsupportedError: an architecture, method or option that this engine does not model.
    """
    with _collector_paused():
        if run.method.name == "lora-ga":
            return plan_after_pass(run)
        return StepPlan(run, trace_step(as_deepspeed_casts(run)))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from looking through tens of thousands of new objects, a sixth of a plan's time.

    A trace has no cycles: all of it goes when its last reference does.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
