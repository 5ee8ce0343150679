"""`lorafa-prof paper`: the LoRA-FA paper's own tables, computed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from lorafa_prof.analytic.paper import CERTAINTY, TABLES, PaperTable, dims_of, paper_table
from lorafa_prof.catalog import load_model
from lorafa_prof.cli.emit import FORMATS, check_output, emit
from lorafa_prof.cli.paper_page import ENGINES, write_page
from lorafa_prof.cli.paper_view import tables_of
from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.folder import require_folder
from lorafa_prof.reports.table import Column, Table
from lorafa_prof.specs import require_int

ALL = "all"


def _is_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or Path(output).is_dir()


def _check_output(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse what cannot be written, a file or a folder; a click callback."""
    if value is None or ctx.resilient_parsing or not _is_folder(value):
        return check_output(ctx, param, value)
    require_folder(value)
    return value


@click.command()
@click.option("--table", type=click.Choice([*TABLES, ALL]), default=ALL, show_default=True, help="Which table.")
@click.option("--model", default="llama2-7b", show_default=True, help="Alias, hub id, or path of a config.json.")
@click.option("--bs", "--batch-size", default=8, show_default=True, help="Sequences in a batch (b).")
@click.option("--seq", "--seq-len", default=1024, show_default=True, help="Tokens of each sequence (s).")
@click.option("--rank", default=64, show_default=True, help="Inner width of the adapters (r).")
@click.option(
    "--engine", "engines", type=click.Choice(ENGINES), multiple=True,
    help="Whom the page in DIR asks; may be repeated.  [default: both]",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(FORMATS),
    help="How to write the tables. By default FILE's suffix decides (.json, .csv, .md), else table.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FILE|DIR", callback=_check_output,
    help="Write the tables to FILE instead of stdout, or into DIR (a folder, or a name that ends in a slash) the page "
    "with the paper's figures and claims.",
)  # fmt: skip
def command(
    table: str,
    model: str,
    bs: int,
    seq: int,
    rank: int,
    engines: tuple[str, ...],
    format: str | None,
    output: str | None,
) -> None:
    """Compute the memory tables of the LoRA-FA paper (arXiv 2308.03303) from their formulas.

    With -o DIR, write a page (paper.md, figures in figures/) on which the paper's figures and claims stand beside
    what both engines say of the same runs, with the tables below; the simulation takes some minutes.

    Table 1 is one linear layer under each method, 6 a model's parameters, gradients and optimizer states, 7 the
    activations of a GPT block, as printed and as corrected, c3 what LoRA-FA saves over LoRA, and text the figures of
    the running text. Each cell says whether its formula is as printed, reconstructed or derived.

    \b
    Examples:
      lorafa-prof paper --table 7
      lorafa-prof paper --model llama3-8b --bs 4 --seq 2048 --format csv
      lorafa-prof paper -o docs/ --engine analytic
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    require_int("batch size", bs, 1, 2**24)
    require_int("sequence length", seq, 1, 2**30)
    require_int("rank", rank, 1, 2**16)
    dims = dims_of(load_model(model))
    keys = TABLES if table == ALL else (table,)
    papers = [paper_table(key, dims, bs=bs, seq=seq, rank=rank) for key in keys]
    if output is not None and _is_folder(output):
        if format is not None:
            raise BadInputError("--format goes with a FILE: into a folder the page is written as Markdown")
        write_page(output, engines or ENGINES, [shown for paper in papers for shown in tables_of(paper)])
        return
    if engines:
        raise BadInputError("--engine goes with -o DIR: the tables are formulas")
    asked: dict[str, str | int] = {"model": dims.name, "bs": bs, "seq": seq, "rank": rank}
    emit(
        tables=lambda: [shown for paper in papers for shown in tables_of(paper)],
        records=lambda: _records(papers, asked),
        document=lambda: {**asked, "certainty": dict(CERTAINTY), "tables": [_as_json(paper) for paper in papers]},
        format=format,
        output=output,
    )


def _as_json(paper: PaperTable) -> dict[str, object]:
    cells = [
        {
            "group": cell.group,
            "row": cell.row,
            "column": cell.column,
            "formula": str(cell.formula),
            "symbols": dict(cell.symbols),
            "value": cell.value,
            "unit": cell.unit,
            "certainty": cell.certainty,
            "paper": cell.paper or None,
        }
        for cell in paper.cells
    ]
    return {"table": paper.key, "title": paper.title, "cells": cells, "remarks": list(paper.remarks)}


def _records(papers: Sequence[PaperTable], asked: Mapping[str, str | int]) -> Table:
    """Return one row for each cell, with what was asked for in the last columns."""
    names = ("table", "group", "row", "column", "formula", "value", "unit", "certainty", "paper", *asked)
    rows = tuple(
        (
            paper.key, cell.group, cell.row, cell.column, str(cell.formula), cell.value, cell.unit, cell.certainty,
            cell.paper or None, *asked.values(),
        )
        for paper in papers
        for cell in paper.cells
    )  # fmt: skip
    return Table(title="cells", columns=tuple(Column(name=name) for name in names), rows=rows)
