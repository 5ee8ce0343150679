"""What is said of a measurement under way, and of an exception that ends it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from lorafa_prof.results import Measurement, Outcome

#: What PyTorch and the CUDA libraries say when memory is full, where the exception's class does not.
_FULL = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")
#: Lines and characters that are kept of a traceback, from its end.
_LINES, _CHARACTERS = 24, 4000


def stage_of(seen: Measurement, options: Mapping[str, Any]) -> str:
    """Return how far a measurement has come, in words."""
    if seen.ledger is not None or seen.phases:
        return "traced step"
    if seen.steps:
        return f"step {len(seen.steps)} of {options.get('steps', len(seen.steps))}"
    return "start" if seen.parameters is None else "model built"


def outcome_of(error: BaseException) -> Outcome:
    """Return how a run ended that ended by an exception."""
    return "oom" if is_out_of_memory(error) else "error"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception, or the one that it was raised from, says that memory is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    if isinstance(error, (RuntimeError, OSError)) and any(sign in text for sign in _FULL):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def said(error: BaseException) -> str:
    """Return the exception's class and text, and for one that is no matter of memory where it was raised."""
    text = f"{type(error).__name__}: {error}"[:_CHARACTERS].rstrip()
    if is_out_of_memory(error):
        return text
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()[-_LINES:]
    return text + "\n" + "\n".join(lines)[-_CHARACTERS:]
