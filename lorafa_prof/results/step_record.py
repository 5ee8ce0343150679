"""What the operations of one step allocate, in one environment: what two environments are told apart by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Category
from lorafa_prof.results.figures import SCHEMA, Memory, Throughput
from lorafa_prof.results.plain import build, plain, reading, require_schema, run_from_json, run_to_json
from lorafa_prof.specs import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """Storages that one operator makes in one place of the step, alike ones of all layers together."""

    phase: str
    """"load" for what is there before the first step, "forward", "loss", "backward", "recompute", "optimizer step"."""
    module: str
    """Path of the module that it belongs to, or that was at work; "*" stands for the layer's number."""
    operator: str
    """"mm", "add_.Scalar"; with a colon the name of a buffer inside its kernel."""
    name: str
    """What it is, where more is known than its operator: "gradient of weight"; empty otherwise."""
    category: str
    """Value of a `Category`."""
    shape: str
    dtype: str
    step_count: int
    """How many are allocated in a step after the first ones; 0 for what is there before."""
    step_bytes: int
    """Bytes of these, as the allocator rounds them."""
    peak_count: int
    """How many are alive at the peak of allocated memory."""
    peak_bytes: int
    """Bytes of these, as the allocator counts them."""

    def __post_init__(self) -> None:
        if self.category not in {category.value for category in Category}:
            raise BadInputError(f"not a category of memory: {self.category[:40]!r}")


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A run's step as one environment takes it."""

    run: RunSpec
    versions: Mapping[str, str]
    device: str | None
    """The card whose kernels were simulated; None: one before Hopper."""
    settings: str
    """Of the caching allocator, in words."""
    memory: Memory
    throughput: Throughput
    parameters: Mapping[str, int]
    operations: tuple[Operation, ...]
    source: str = field(default="", compare=False)
    """The file that it was read from, or the interpreter that it was made with; empty: this one."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        data: dict[str, Any] = {"schema": SCHEMA, "kind": "step record"} | plain(self)
        del data["source"]
        return data | {"run": run_to_json(self.run)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = "") -> StepRecord:
        """Read what `to_json` wrote.

        Raises:
            BadInputError: a newer schema, a missing key, or a value of the wrong type.
        """
        require_schema(data, "kind", "step record", "step records")
        with reading("step record"):
            fields = {key: value for key, value in data.items() if key not in ("schema", "kind")}
            fields |= {
                "run": run_from_json(data["run"]),
                "memory": build(Memory, data["memory"]),
                "throughput": build(Throughput, data["throughput"]),
                "operations": tuple(build(Operation, each) for each in data["operations"]),
                "source": source,
            }
            return build(cls, fields)


def step_records_to_json(records: Sequence[StepRecord]) -> dict[str, Any]:
    """Return the document that `diff --record` writes."""
    return {"step_records": [record.to_json() for record in records]}
