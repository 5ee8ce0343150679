"""Profiling from within a program: two lines around a training loop."""

from __future__ import annotations

import sys
from typing import Any

import torch

from lorafa_prof.measure.endings import outcome_of, said
from lorafa_prof.measure.script.observer import Observer
from lorafa_prof.measure.script.plan import Plan
from lorafa_prof.results import Measurement


class profile:  # noqa: N801 - used like a function, as torch's is
    """Profiles the training loop in its `with` block.

    Example:
        with lorafa_prof.profile(model, optimizer) as p:
            train()
        p.measurement.memory.peak_allocated_bytes

    Args:
        model: what is trained; found by itself where it is not given.
        optimizer: what steps it; likewise.
        warmup: steps before the first that is timed.
        steps: steps that are timed.
        trace: whether the memory of one more step is recorded.

    Raises:
        BadInputError: a number of steps that is none.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        optimizer: Any = None,
        *,
        warmup: int = 3,
        steps: int = 10,
        trace: bool = True,
    ) -> None:
        plan = Plan(warmup=warmup, steps=steps, trace=trace)
        self._observer = Observer(plan, sys.argv, model=model, optimizer=optimizer)
        self._measurement: Measurement | None = None

    @property
    def measurement(self) -> Measurement:
        """What was observed; within the block, what is known so far."""
        return self._observer.seen if self._measurement is None else self._measurement

    def __enter__(self) -> profile:
        self._observer.begin()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._measurement = self._observer.finish()
        elif isinstance(error, KeyboardInterrupt):
            self._measurement = self._observer.finish("interrupted", "interrupted")
        else:
            self._measurement = self._observer.finish(outcome_of(error), said(error))
