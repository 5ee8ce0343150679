"""Closed forms of one training step: instant, explained term by term, evaluated on arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafa_prof.analytic.engine import predict

__all__ = ["predict"]


def __getattr__(name: str) -> Any:
    """Import the engine when it is first asked for: the paper's tables do without it."""
    if name != "predict":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorafa_prof.analytic.engine import predict

    return predict
