"""The computed tables of the paper, laid out for people: formulas first, then the same in numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from lorafa_prof.analytic.paper import CERTAINTY, LETTERS, PRECISIONS, PaperCell, PaperTable
from lorafa_prof.reports.table import Cell, Table, figures, words
from lorafa_prof.units import format_bytes, format_gb, format_gib

Item = TypeVar("Item", bound=Hashable)

STATES = ("M_P", "M_G", "M_O", "sum")


def tables_of(paper: PaperTable) -> list[Table]:
    """Return the tables that show one table of the paper."""
    return {"1": _table_1, "6": _table_6, "7": _table_7, "c3": _table_c3, "text": _text}[paper.key](paper)


def _table_1(paper: PaperTable) -> list[Table]:
    layers = _distinct(cell.group for cell in paper.cells)
    methods = _distinct(cell.row for cell in paper.cells)
    columns = _distinct(cell.column for cell in paper.cells)
    formulas = Table(
        title="Table 1: memory of one linear layer, in bytes",
        columns=words("method", *columns),
        rows=tuple((m, *(str(paper.cell(m, column, layers[0]).formula) for column in columns)) for m in methods),
        notes=(*paper.remarks, _letters(paper), *_certainties(paper)),
    )
    numbers = Table(
        title=f"Table 1 in numbers: {paper.model} ({_assigned(paper, 'bsr')})",
        columns=(*words("layers", "method"), *figures(*columns)),
        rows=tuple(
            (layer, method, *(_amount(paper.cell(method, column, layer)) for column in columns))
            for layer in layers
            for method in methods
        ),
        sections=_starts([layer for layer in layers for _ in methods]),
        keys=2,
    )
    return [formulas, numbers]


def _table_6(paper: PaperTable) -> list[Table]:
    return [_parameter_counts(paper), _parameter_bytes(), _state_bytes(paper)]


def _parameter_counts(paper: PaperTable) -> Table:
    methods = _distinct(cell.row for cell in paper.cells)
    kinds = [kind for kind in ("square", "exact") for _ in methods]
    rows = []
    for kind, method in zip(kinds, methods * 2, strict=True):
        total, trained = (paper.cell(method, f"{name} {kind}") for name in ("#P", "#TP"))
        rows.append((kind, method, str(total.formula), total.value, str(trained.formula), trained.value))
    return Table(
        title=f"Table 6: parameters of {paper.model} ({_assigned(paper, 'rLldv')})",
        columns=(*words("count", "method", "#P"), *figures("parameters"), *words("#TP"), *figures("trainable")),
        rows=tuple(rows),
        sections=_starts(kinds),
        keys=2,
        notes=(
            *paper.remarks,
            _letters(paper),
            *_certainties(paper),
        ),
    )


def _parameter_bytes() -> Table:
    return Table(
        title="Table 6: bytes of one parameter",
        columns=(*words("precision"), *figures("base weight", "adapter weight", "gradient", "optimizer states")),
        rows=tuple((p.name, p.base, p.adapter, p.gradient, p.optimizer) for p in PRECISIONS),
    )


def _state_bytes(paper: PaperTable) -> Table:
    cells = [cell for cell in paper.cells if cell.column == STATES[0]]
    rows = ((c.group, c.row, [paper.cell(c.row, name, c.group).value for name in STATES]) for c in cells)
    return Table(
        title=f"Table 6 in GiB: exact counts of {paper.model} ({_assigned(paper, 'r')})",
        columns=(*words("precision", "method"), *figures(*STATES)),
        rows=tuple((precision, method, *map(format_gib, sizes)) for precision, method, sizes in rows),
        sections=_starts([cell.group for cell in cells]),
        keys=2,
    )


def _table_7(paper: PaperTable) -> list[Table]:
    types = _distinct(cell.column.rpartition(" ")[0] for cell in paper.cells)
    places = _distinct((cell.group, cell.row) for cell in paper.cells)
    formulas = Table(
        title="Table 7: what one GPT block keeps under full fine-tuning, in bytes (printed → corrected)",
        columns=words("part", "operation", *types),
        rows=tuple((part, row, *(_correction(paper, part, row, name) for name in types)) for part, row in places),
        sections=_starts([part for part, _ in places]),
        keys=2,
        notes=(*paper.remarks, _letters(paper), *_certainties(paper)),
    )
    sums = _distinct((cell.row, cell.column.rpartition(" ")[2]) for cell in paper.cells if cell.group == "sum")
    numbers = Table(
        title=f"Table 7 in numbers: a block as wide as {paper.model}'s ({_assigned(paper, 'bsdh')})",
        columns=(*words("one block"), *figures(*types)),
        rows=tuple(
            (
                f"{row}, {kind}" if row == "sum" else row,
                *(format_bytes(paper.cell(row, f"{name} {kind}").value) for name in types),
            )
            for row, kind in sums
        ),
    )
    return [formulas, numbers]


def _correction(paper: PaperTable, part: str, row: str, data_type: str) -> Cell:
    found = [c for c in paper.cells if (c.group, c.row) == (part, row) and c.column.startswith(data_type)]
    formulas = _distinct(str(cell.formula) for cell in found)
    text = " → ".join(formulas)
    return Cell(text=text, value=text, tone="bad" if len(formulas) > 1 else "plain")


def _table_c3(paper: PaperTable) -> list[Table]:
    rows = []
    for block in (cell for cell in paper.cells if cell.column == "per block"):
        total = paper.cell(block.row, "all blocks")
        sizes = (format_gib(block.value), format_gb(total.value), format_gib(total.value))
        rows.append((block.row, block.group, str(block.formula), *sizes, total.paper or None, block.certainty))
    return [
        Table(
            title=f"C.3: activations that LoRA-FA saves over LoRA, {paper.model} ({_assigned(paper, 'bsdfL')})",
            columns=(
                *words("inputs counted", "holds for", "formula"),
                *figures("one block, GiB", "all, GB", "all, GiB"),
                *words("paper", "certainty"),
            ),
            rows=tuple(rows),
            notes=(*paper.remarks, _letters(paper), *_certainties(paper)),
        )
    ]


def _text(paper: PaperTable) -> list[Table]:
    return [
        Table(
            title=f"{paper.title} ({_assigned(paper, 'r')})",
            columns=(
                *words("figure", "model", "formula"),
                *figures("bytes", "GB", "binary"),
                *words("paper"),
            ),
            rows=tuple(
                (c.row, c.group, str(c.formula), c.value, format_gb(c.value), format_bytes(c.value), c.paper or None)
                for c in paper.cells
            ),
            notes=(*paper.remarks, _letters(paper)),
        )
    ]


def _distinct(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))


def _starts(groups: Sequence[str]) -> tuple[int, ...]:
    """Return where a new group begins, the first one apart."""
    return tuple(i for i in range(1, len(groups)) if groups[i] != groups[i - 1])


def _amount(cell: PaperCell) -> str | int:
    return format_bytes(cell.value) if cell.unit == "bytes" else cell.value


def _assigned(paper: PaperTable, names: str) -> str:
    return ", ".join(f"{name} = {paper.symbols[name]}" for name in names if name in paper.symbols)


def _letters(paper: PaperTable) -> str:
    used = frozenset[str]().union(*(cell.formula.symbols() for cell in paper.cells))
    return "; ".join(f"{name}: {meaning}" for name, meaning in LETTERS.items() if name in used) + "."


def _certainties(paper: PaperTable) -> list[str]:
    met = {cell.certainty for cell in paper.cells}
    return [f"{certainty}: {meaning}." for certainty, meaning in CERTAINTY.items() if certainty in met]
