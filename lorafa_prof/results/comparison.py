"""What was observed beside what engines predicted, figure by figure, as plain data.

An error is the prediction less the observation: above zero, the engine says too much. A figure that either side lacks
has no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Category
from lorafa_prof.results.figures import SCHEMA
from lorafa_prof.results.measurement import Outcome
from lorafa_prof.results.plain import build, plain, reading, require_schema, run_from_json, run_to_json
from lorafa_prof.specs import RunSpec

Section = Literal["parts", "memories", "phases", "sizes", "time"]
"""Parts of the peak; the peaks of each memory; the most of each phase; what does not depend on the peak; time and
arithmetic."""
Unit = Literal["bytes", "elements", "flops", "seconds", "tokens/s", "share"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: observed, and as each engine has it."""

    name: str
    """The field of `Memory`, `Throughput` or `parameters`; of a phase its name."""
    section: Section
    unit: Unit
    observed: float | None
    predicted: tuple[float | None, ...]
    """In the order of the comparison's `sides`; integers stay integers."""

    def error(self, side: int) -> float | None:
        """Return the prediction less the observation, in the figure's unit; None where either is lacking."""
        said = self.predicted[side]
        return None if said is None or self.observed is None else said - self.observed

    def relative_error(self, side: int) -> float | None:
        """Return the error as a share of what was observed; None where that is 0 and the prediction is not."""
        error = self.error(side)
        if not error:
            return error
        return error / self.observed if self.observed else None


@dataclass(frozen=True, kw_only=True)
class ItemDifference:
    """What the two ledgers of the peak say of one tensor, alike ones of all layers together."""

    category: str
    """Value of a `Category`."""
    module: str
    tensor: str
    """Empty for all tensors of the module, where the two sides call them differently."""
    observed_bytes: int
    predicted_bytes: int

    def __post_init__(self) -> None:
        if self.category not in {category.value for category in Category}:
            raise BadInputError(f"not a category of memory: {self.category[:40]!r}")

    @property
    def error_bytes(self) -> int:
        """The prediction less the observation."""
        return self.predicted_bytes - self.observed_bytes


@dataclass(frozen=True, kw_only=True)
class VersionDifference:
    """A library whose release is another one on the two sides."""

    name: str
    observed: str
    predicted: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an engine says that the run fits where it was measured."""

    capacity_bytes: int
    """The card with its CUDA context, as far as the run was allowed to use it."""
    fits: bool | None
    """None where the engine's figures do not decide it."""
    agrees: bool | None
    """With what was observed; None where one of the two is not known."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One engine's prediction, as it stands against the observation."""

    engine: str
    versions: Mapping[str, str]
    peak_moment: str
    same_phase: bool | None
    """Whether the peak is in the phase in which it was observed: parts of other moments cannot be compared one by one.
    None where the observed moment is not known."""
    unexplained_bytes: int | None
    """The error of peak allocated less the errors of all parts that both sides have."""
    version_differences: tuple[VersionDifference, ...] = ()
    items: tuple[ItemDifference, ...] = ()
    """Where the ledgers differ most, largest difference first."""
    items_left_out: int = 0
    """How many more differ."""
    verdict: Verdict | None = None
    assumptions: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measurement and the predictions of its run."""

    outcome: Outcome
    versions: Mapping[str, str]
    environment: Mapping[str, Any]
    run: RunSpec | None = None
    """None for a user's own script, for which nothing can be predicted."""
    command: tuple[str, ...] = ()
    error: str | None = None
    rank: int = 0
    world_size: int = 1
    peak_moment: str | None = None
    """As observed."""
    rows: tuple[Row, ...] = ()
    sides: tuple[Side, ...] = ()
    assumptions: tuple[str, ...] = ()
    """Of the measurement."""
    unmodelled: tuple[str, ...] = ()
    """What was not observed."""
    remarks: tuple[str, ...] = ()
    """Why an engine is missing, and whatever else the reader has to know."""
    source: str = field(default="", compare=False)
    """The file that the measurement was read from."""

    def __post_init__(self) -> None:
        if any(len(row.predicted) != len(self.sides) for row in self.rows):
            raise BadInputError("a row of the comparison has not as many predictions as there are engines")

    def row(self, name: str, section: Section | None = None) -> Row | None:
        """Return the row of a figure, or None."""
        return next((r for r in self.rows if r.name == name and section in (None, r.section)), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; each row has its errors beside it."""
        data: dict[str, Any] = {"schema": SCHEMA, "kind": "comparison"} | plain(self)
        data["run"] = None if self.run is None else run_to_json(self.run)
        for row, entry in zip(self.rows, data["rows"], strict=True):
            sides = range(len(self.sides))
            entry["errors"] = [row.error(side) for side in sides]
            entry["relative_errors"] = [row.relative_error(side) for side in sides]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Read what `to_json` wrote.

        Raises:
            BadInputError: a newer schema, a missing key, or a value of the wrong type.
        """
        require_schema(data, "kind", "comparison", "comparisons")
        with reading("comparison"):
            fields = {key: value for key, value in data.items() if key not in ("schema", "kind")}
            fields["run"] = None if data["run"] is None else run_from_json(data["run"])
            fields |= {name: tuple(data[name]) for name in ("command", "assumptions", "unmodelled", "remarks")}
            fields["rows"] = tuple(_row(row) for row in data["rows"])
            fields["sides"] = tuple(_side(side) for side in data["sides"])
            return build(cls, fields)


def _row(data: Mapping[str, Any]) -> Row:
    fields = {key: value for key, value in data.items() if key not in ("errors", "relative_errors")}
    return build(Row, fields | {"predicted": tuple(data["predicted"])})


def _side(data: Mapping[str, Any]) -> Side:
    lists = {"version_differences": VersionDifference, "items": ItemDifference}
    fields = dict(data) | {name: tuple(build(kind, item) for item in data[name]) for name, kind in lists.items()}
    fields |= {name: tuple(data[name]) for name in ("assumptions", "unmodelled")}
    verdict = data["verdict"]
    return build(Side, fields | {"verdict": None if verdict is None else build(Verdict, verdict)})


def comparisons_to_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the document that `compare --format json` writes."""
    return {"comparisons": [comparison.to_json() for comparison in comparisons]}
