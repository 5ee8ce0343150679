"""Whether a run saves what its method promises: checked on the real model, not on what was asked of it.

A run can be set up as it should and not stay so: PEFT turns a frozen A on again when `disable_adapter()` ends, and
LoRA-FA silently costs as much as LoRA. What such a violation costs is observed (`measure.costs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorafa_prof.measure import promised_optimizer, promised_options, promised_training
from lorafa_prof.measure.costs import Forward
from lorafa_prof.measure.look import Look
from lorafa_prof.measure.subject import Check, Subject
from lorafa_prof.measure.trace import StepTrace
from lorafa_prof.results import Promise
from lorafa_prof.specs import RunSpec

CHECKS: tuple[Check, ...] = (
    promised_training.frozen_matrices,
    promised_training.base_weights,
    promised_training.adapted_layers,
    promised_training.adapter_dtype,
    promised_optimizer.optimizer,
    promised_options.quantised_weights,
    promised_options.checkpointing,
    promised_options.attention,
    promised_options.autocast,
    promised_options.no_cache,
    promised_options.dropout,
    promised_options.training_mode,
)


def check_promises(
    model: Any,
    optimizer: Any,
    run: RunSpec | None = None,
    *,
    forward: Forward | None = None,
    trace: StepTrace | None = None,
    look: Look | None = None,
) -> tuple[Promise, ...]:
    """Return each promise that can be judged, kept or violated.

    To be called between two steps, after the first: an optimizer makes its states in its first step.

    Args:
        model: transformers' model, wrapped by PEFT or not.
        optimizer: of its trained parameters.
        run: what was asked for; None for a user's own script, of which less can be told.
        forward: runs one forward and returns the loss; without it no violation's cost in activations is known. It is
            called only where there is one.
        trace: a traced step: tells of recomputation.
        look: at a step: tells of attention kernels, autocast and recomputation.
    """
    subject = Subject.of(model, optimizer, run, forward, trace, look)
    found = (check(subject) for check in CHECKS)
    return tuple(promise for promise in found if promise is not None)


def checked_twice(before: Sequence[Promise], after: Sequence[Promise]) -> tuple[Promise, ...]:
    """Return what was found later, but for promises that were violated before: those stay so."""
    violated = {promise.name: promise for promise in before if not promise.kept}
    return tuple(violated.get(promise.name, promise) for promise in after)
