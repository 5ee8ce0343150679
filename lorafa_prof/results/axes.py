"""The axes along which one run becomes another: batch, sequence length, rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lorafa_prof.specs import RunSpec

Axis = Literal["bs", "seq", "rank"]


def along(run: RunSpec, axis: Axis, value: int) -> RunSpec:
    """Return the run with another batch, sequence length or rank.

    Raises:
        BadInputError: a value that no run can have.
    """
    if axis == "rank":
        return run.replace(method=replace(run.method, rank=value))
    return run.replace(**{axis: value})


def value_along(run: RunSpec, axis: Axis) -> int:
    """Return the run's own batch, sequence length or rank."""
    value: int = run.method.rank if axis == "rank" else getattr(run, axis)
    return value
