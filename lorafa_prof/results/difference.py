"""What differs between two records of a step, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorafa_prof.results.figures import SCHEMA
from lorafa_prof.results.plain import plain, run_to_json
from lorafa_prof.results.step_record import StepRecord

Kind = Literal["added", "removed", "changed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Storages:
    """What an operation makes on one side."""

    what: str
    """Shapes and dtypes with how many there are: "32 x (8, 1024, 4096) bf16; 1 x () fp32"."""
    categories: tuple[str, ...]
    count: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OperationChange:
    """An operation whose storages differ."""

    kind: Kind
    phase: str
    module: str
    operation: str
    """Operator, or what the storage is where more is known."""
    before: Storages | None
    """None for an added one."""
    after: Storages | None

    @property
    def change_bytes(self) -> int:
        """Bytes after, less those before."""
        return (self.after.nbytes if self.after else 0) - (self.before.nbytes if self.before else 0)


@dataclass(frozen=True, kw_only=True)
class View:
    """Operations compared in one respect; the changes add up to that of the total."""

    before_bytes: int
    after_bytes: int
    changes: tuple[OperationChange, ...]
    """The largest change of bytes first."""
    moved_bytes: int
    """Bytes that the same operators make on both sides, in another module or phase."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two records of a step, and which operations tell them apart."""

    before: StepRecord
    after: StepRecord
    peak: View
    """What is alive at the peak of allocated memory of each."""
    step: View
    """All that one step allocates, whether or not it is freed in it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data: both records without their operations, and the changes."""
        return {
            "schema": SCHEMA,
            "kind": "difference",
            "before": _without_operations(self.before),
            "after": _without_operations(self.after),
            "peak": _view(self.peak),
            "step": _view(self.step),
        }


def _without_operations(record: StepRecord) -> dict[str, Any]:
    names = ("source", "versions", "device", "settings", "memory", "throughput", "parameters")
    return {"run": run_to_json(record.run)} | {name: plain(getattr(record, name)) for name in names}


def _view(view: View) -> dict[str, Any]:
    data: dict[str, Any] = plain(view)
    for change, entry in zip(view.changes, data["changes"], strict=True):
        entry["change_bytes"] = change.change_bytes
    return data
