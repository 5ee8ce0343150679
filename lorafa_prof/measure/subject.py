"""What promises are held against: a model, its optimizer, and what has been seen of their step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lorafa_prof.measure.costs import Forward
from lorafa_prof.measure.look import Look
from lorafa_prof.measure.trace import RECOMPUTE, StepTrace
from lorafa_prof.results import Promise
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.naming import is_adapter

Named = dict[str, Any]
"""Tensors by their paths."""


@dataclass(frozen=True)
class Subject:
    """A model between two of its training steps."""

    model: Any
    """Out of whatever distributes it."""
    optimizer: Any
    """Out of whatever wraps it."""
    run: RunSpec | None
    """What was asked; None for a user's own script."""
    forward: Forward | None
    """Runs one forward, where one may be run to see what a violation costs."""
    trace: StepTrace | None
    look: Look | None

    @classmethod
    def of(
        cls, model: Any, optimizer: Any, run: RunSpec | None,
        forward: Forward | None, trace: StepTrace | None, look: Look | None,
    ) -> Subject:  # fmt: skip
        """Unwrap DistributedDataParallel's model, and accelerate's optimizer."""
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        return cls(model, getattr(optimizer, "optimizer", optimizer), run, forward, trace, look)

    @cached_property
    def tensors(self) -> Named:
        """Parameters and buffers; one that several modules share has the path that it comes by first."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @cached_property
    def adapters(self) -> Named:
        """Those of PEFT's adapters, trained or not."""
        return {path: tensor for path, tensor in self.tensors.items() if self._is_adapter(path)}

    @cached_property
    def base(self) -> Named:
        """Those of the model beneath; PEFT's copies of modules that are trained as a whole are not among them."""
        return {
            path: tensor
            for path, tensor in self.tensors.items()
            if path not in self.adapters and ".modules_to_save." not in path
        }

    def _is_adapter(self, path: str) -> bool:
        tuner = getattr(getattr(self.model, "base_model", None), "prefix", None)  # what the tuner's names begin with
        if ".modules_to_save." in path:  # a copy of a module of the base, in the base's dtype
            return False
        return is_adapter(path) or (isinstance(tuner, str) and bool(tuner) and f".{tuner}" in path)

    @property
    def recomputed(self) -> bool | None:
        """Whether a forward ran within the backward of the traced step, or of the one that was looked at."""
        if self.trace is not None:
            return any(mark.phase == RECOMPUTE for mark in self.trace.marks)
        return None if self.look is None else self.look.recomputed


Check = Callable[[Subject], Promise | None]
"""Returns None where there is nothing to keep, or it cannot be told yet."""


def short(dtype: torch.dtype) -> str:
    """Return a dtype's name: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
