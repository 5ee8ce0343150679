"""`lorafa-prof paper`: the LoRA-FA paper's own tables, computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from lorafa_prof.analytic.paper import (
    CERTAINTY, LETTERS, PRECISIONS, TABLES, PaperCell, PaperTable, dims_of, paper_table,
)  # fmt: skip
from lorafa_prof.catalog import load_model
from lorafa_prof.cli.emit import emit, output_options
from lorafa_prof.specs import require_int
from lorafa_prof.units import format_bytes, format_gib, parse_bytes

if TYPE_CHECKING:
    from lorafa_prof.reports.table import Table

ALL = "all"


@click.command(short_help="Compute the LoRA-FA paper's own tables.")
@click.option("--table", type=click.Choice([*TABLES, ALL]), default=ALL, show_default=True, help="Which table.")
@click.option("--model", default="llama2-7b", show_default=True, help="Alias, hub id, or path of a config.json.")
@click.option("--bs", "--batch-size", default=8, show_default=True, help="Sequences in a batch (b).")
@click.option("--seq", "--seq-len", default=1024, show_default=True, help="Tokens of each sequence (s).")
@click.option("--rank", default=64, show_default=True, help="Inner width of the adapters (r).")
@output_options
def command(
    table: str, model: str, bs: int, seq: int, rank: int, format: str | None, output: str | None
) -> None:
    """Compute the memory tables of the LoRA-FA paper (arXiv 2308.03303) from their formulas.

    Table 1 is one linear layer under each method, 6 a model's parameters, gradients and optimizer states, 7 the
    activations of a GPT block, as printed and as corrected, c3 what LoRA-FA saves over LoRA, and text the figures of
    the running text. Each cell says whether its formula is as printed, reconstructed or derived.
    """
    require_int("batch size", bs, 1, 2**24)
    require_int("sequence length", seq, 1, 2**30)
    require_int("rank", rank, 1, 2**16)
    dims = dims_of(load_model(model))
    keys = TABLES if table == ALL else (table,)
    papers = [paper_table(key, dims, bs=bs, seq=seq, rank=rank) for key in keys]
    asked: Mapping[str, str | int] = {"model": dims.name, "bs": bs, "seq": seq, "rank": rank}
    emit(
        tables=lambda: [view for paper in papers for view in _VIEWS[paper.key](paper)],
        records=lambda: _records(papers, asked),
        document=lambda: {**asked, "certainty": dict(CERTAINTY), "tables": [_as_json(paper) for paper in papers]},
        format=format,
        output=output,
    )


def _as_json(paper: PaperTable) -> dict[str, object]:
    return {
        "table": paper.key,
        "title": paper.title,
        "cells": [
            {
                "group": cell.group, "row": cell.row, "column": cell.column, "formula": str(cell.formula),
                "symbols": dict(cell.symbols), "value": cell.value, "unit": cell.unit, "certainty": cell.certainty,
                "paper": cell.paper or None,
            }
            for cell in paper.cells
        ],
        "remarks": list(paper.remarks),
    }  # fmt: skip


def _records(papers: list[PaperTable], asked: Mapping[str, str | int]) -> Table:
    """Return one row for each cell."""
    from lorafa_prof.reports.table import Column, Table

    names = ("table", "group", "row", "column", "formula", "value", "unit", "certainty", "paper", *asked)
    return Table(
        title="cells",
        columns=tuple(Column(name=name) for name in names),
        rows=tuple(
            (
                paper.key, cell.group, cell.row, cell.column, str(cell.formula), cell.value, cell.unit, cell.certainty,
                cell.paper or None, *asked.values(),
            )
            for paper in papers
            for cell in paper.cells
        ),
    )  # fmt: skip


# Tables for people


def _table_1(paper: PaperTable) -> list[Table]:
    from lorafa_prof.reports.table import Column, Table, figures

    groups = _distinct(cell.group for cell in paper.cells)
    names = _distinct(cell.column for cell in paper.cells)
    rows = _distinct(cell.row for cell in paper.cells)
    formulas = Table(
        title="Table 1: memory of one linear layer, formulas",
        columns=(Column(name="method"), *(Column(name=name) for name in names)),
        rows=tuple((row, *(str(paper.cell(row, name, groups[0]).formula) for name in names)) for row in rows),
        notes=(*paper.remarks, _letters("bsmkr"), *_certainties(paper)),
    )
    numbers = Table(
        title=f"Table 1 in numbers: {paper.title.partition(': ')[2]} ({_assigned(paper)})",
        columns=(Column(name="layers"), Column(name="method"), *figures(*names)),
        rows=tuple(
            (group, row, *(_amount(paper.cell(row, name, group)) for name in names)) for group in groups for row in rows
        ),
        sections=tuple(range(len(rows), len(rows) * len(groups), len(rows))),
        keys=2,
    )
    return [formulas, numbers]


def _table_6(paper: PaperTable) -> list[Table]:
    from lorafa_prof.reports.table import Column, Table, figures

    methods = _distinct(cell.row for cell in paper.cells)
    counts = Table(
        title=f"{paper.title} ({_assigned(paper, 'rLlvd')})",
        columns=(
            Column(name="count"), Column(name="method"), Column(name="#P"), *figures("parameters"),
            Column(name="#TP"), *figures("trainable"),
        ),
        rows=tuple(
            (kind, method, *(part for name in ("#P", "#TP") for part in _both(paper.cell(method, f"{name} {kind}"))))
            for kind in ("square", "exact")
            for method in methods
        ),
        sections=(len(methods),),
        keys=2,
        notes=(*paper.remarks[:2], _letters([s for s in LETTERS if s in "rLlvdMKPΣmΣk" or s == "Σmk"]),
               *_certainties(paper)),
    )  # fmt: skip
    weights = Table(
        title="Table 6: bytes of a parameter",
        columns=(Column(name="precision"), *figures("base weight", "adapter weight", "gradient", "optimizer states")),
        rows=tuple((p.name, p.base, p.adapter, p.gradient, p.optimizer) for p in PRECISIONS),
    )
    names = ("M_P", "M_G", "M_O", "sum")
    states = [cell for cell in paper.cells if cell.column == "M_P"]
    first = [number for number, cell in enumerate(states) if number and cell.group != states[number - 1].group]
    totals = Table(
        title=f"Table 6 in GiB: exact counts, r = {paper.symbols['r']}",
        columns=(Column(name="precision"), Column(name="method"), *figures(*names)),
        rows=tuple(
            (c.group, c.row, *(format_gib(paper.cell(c.row, name, c.group).value) for name in names)) for c in states
        ),
        sections=tuple(first),
        keys=2,
        notes=paper.remarks[2:],
    )
    return [counts, weights, totals]


def _table_7(paper: PaperTable) -> list[Table]:
    from lorafa_prof.reports.table import Column, Table, figures

    types = [column.removesuffix(" printed") for column in _distinct(c.column for c in paper.cells if "printed" in c.column)]
    rows = _distinct((c.group, c.row) for c in paper.cells)
    cells = [row for row in rows if row[0] != "sum"]
    sums = [row for row in rows if row[0] == "sum"]
    parts = [number for number, (part, _) in enumerate(cells) if number and part != cells[number - 1][0]]

    def shown(part: str, row: str, data_type: str) -> str:
        kinds = [c for c in paper.cells if (c.group, c.row) == (part, row) and c.column.startswith(data_type)]
        return " → ".join(_distinct(str(c.formula) for c in kinds))

    formulas = Table(
        title="Table 7: activations that one GPT block keeps, full fine-tuning; printed → corrected",
        columns=(Column(name="part"), Column(name="operation"), *(Column(name=name) for name in types)),
        rows=tuple(
            ("" if part == "sum" else part, row, *(shown(part, row, name) for name in types)) for part, row in (*cells, *sums)
        ),
        sections=(*parts, len(cells)),
        keys=2,
        notes=(*paper.remarks, _letters("bsdh"), *_certainties(paper)),
    )
    kinds = (("sum as printed", "sum", "printed"), ("sum of the printed cells", "sum of the printed cells", "printed"),
             ("sum of the corrected cells", "sum", "corrected"), ("with a fused GELU", "sum with a fused GELU", "corrected"))  # fmt: skip
    numbers = Table(
        title=f"Table 7 in numbers: {paper.title.partition(': ')[2]} ({_assigned(paper)})",
        columns=(Column(name="bytes of one block"), *figures(*types)),
        rows=tuple(
            (label, *(format_bytes(paper.cell(row, f"{name} {kind}").value) for name in types)) for label, row, kind in kinds
        ),
    )
    return [formulas, numbers]


def _table_c3(paper: PaperTable) -> list[Table]:
    from lorafa_prof.reports.table import Column, Table, figures

    blocks = [cell for cell in paper.cells if cell.column == "per block"]
    totals = {cell.row: cell for cell in paper.cells if cell.column == "all blocks"}
    return [
        Table(
            title=f"{paper.title} ({_assigned(paper)})",
            columns=(
                Column(name="inputs counted"), Column(name="holds for"), Column(name="one block"),
                *figures("GiB a block", "GB in all", "GiB in all"), Column(name="paper"), Column(name="certainty"),
            ),
            rows=tuple(
                (
                    cell.row, cell.group, str(cell.formula), format_gib(cell.value), _gb(totals[cell.row].value),
                    format_gib(totals[cell.row].value), totals[cell.row].paper or None, cell.certainty,
                )
                for cell in blocks
            ),
            notes=(*paper.remarks, _letters(paper.symbols), *_certainties(paper)),
        )
    ]  # fmt: skip


def _text(paper: PaperTable) -> list[Table]:
    from lorafa_prof.reports.table import Column, Table, figures

    return [
        Table(
            title=f"{paper.title} ({_assigned(paper)})",
            columns=(
                Column(name="figure"), Column(name="model"), Column(name="formula"), *figures("bytes", "binary units"),
                Column(name="paper"),
            ),
            rows=tuple(
                (cell.row, cell.group, str(cell.formula), cell.value, format_bytes(cell.value), cell.paper or None)
                for cell in paper.cells
            ),
            notes=(*paper.remarks, _letters("PrLl")),
        )
    ]  # fmt: skip


_VIEWS: Mapping[str, Callable[[PaperTable], list[Table]]] = {
    "1": _table_1, "6": _table_6, "7": _table_7, "c3": _table_c3, "text": _text,
}  # fmt: skip
