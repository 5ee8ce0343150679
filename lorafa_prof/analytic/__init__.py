"""Closed forms of one training step: instant, explained term by term, evaluated on arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafa_prof.analytic.plan import StepPlan, plan
    from lorafa_prof.analytic.engine import predict

__all__ = ["StepPlan", "plan", "predict"]

_HOMES = {"StepPlan": "plan", "plan": "plan", "predict": "engine"}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: the paper's tables need none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
