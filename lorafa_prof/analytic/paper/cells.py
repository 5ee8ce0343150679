"""What a table of the paper is here: cells that each hold a formula, its value, and how sure the formula is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lorafa_prof.analytic.paper.formula import Formula

Certainty = Literal["as printed", "reconstructed", "derived"]
#: What the three words mean; every rendering of the tables says so.
CERTAINTY: Mapping[Certainty, str] = {
    "as printed": "the paper prints this formula",
    "reconstructed": "the paper's formula was not available and is inferred from its text and from what it must count",
    "derived": "computed here from the tensors involved; the paper does not print it",
}
Unit = Literal["bytes", "parameters"]


@dataclass(frozen=True, kw_only=True)
class PaperCell:
    """One cell of one table."""

    row: str
    column: str
    formula: Formula
    values: Mapping[str, int] = field(repr=False)
    """A number for every symbol of the formula, and perhaps for others."""
    unit: Unit
    certainty: Certainty
    group: str = ""
    """What the row belongs to: a part of the block, a precision, a linear layer."""
    paper: str = ""
    """What the paper says about this figure, as text: "> 1 TB"."""

    @property
    def value(self) -> int:
        """The formula with the numbers in it, rounded up: nothing occupies a part of a byte."""
        return math.ceil(self.formula.evaluate(self.values))

    @property
    def symbols(self) -> Mapping[str, int]:
        """The symbols that the formula uses, with their numbers."""
        return {name: self.values[name] for name in sorted(self.formula.symbols())}


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of the paper, computed."""

    key: str
    """"1", "6", "7", "c3" or "text": what the command line calls it."""
    title: str
    model: str
    """The model whose sizes it was computed for."""
    symbols: Mapping[str, int]
    """The numbers that hold for the whole table."""
    cells: tuple[PaperCell, ...]
    remarks: tuple[str, ...] = ()
    """Each discrepancy and each assumption, a line each."""

    def cell(self, row: str, column: str, group: str | None = None) -> PaperCell:
        """Return the one cell of this row and column (and group, where a row's name repeats)."""
        found = [c for c in self.cells if (c.row, c.column) == (row, column) and group in (None, c.group)]
        if len(found) != 1:
            raise KeyError(f"{len(found)} cells at row {row!r}, column {column!r}, group {group!r} of table {self.key}")
        return found[0]
