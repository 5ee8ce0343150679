"""One self-contained page of results: no script, no network, everything that comes from a file escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from lorafa_prof import __version__
from lorafa_prof.reports.figures import Drawing, rendered
from lorafa_prof.reports.summary import (
    Told,
    asked_lines,
    environments,
    headline,
    result_tables,
    statements,
    verdict_table,
)
from lorafa_prof.reports.table import Cell, Column, Scalar, Table, cell_text, clean
from lorafa_prof.reports.templates import page_of, text_of
from lorafa_prof.results.collection import Collection

#: Pixels of a point, matplotlib's unit.
PIXELS = 4 / 3
#: A figure is shown no smaller than this share of its own size; a narrower page scrolls it.
SMALLEST = 0.62


@dataclass(frozen=True, kw_only=True)
class _Section:
    name: str
    """Of its anchor."""
    heading: str
    body: str


def render_page(found: Collection, drawings: Sequence[Drawing], title: str, sources: Sequence[str] = ()) -> str:
    """Return the page as HTML.

    Args:
        found: what it is about.
        drawings: figures of it, drawn in the order in which they come.
        title: of the page.
        sources: names of the files that the results were read from.
    """
    tables = result_tables(found)
    figures = "".join(_figure(drawing, number) for number, drawing in enumerate(drawings, start=1))
    notes = _list([drawing.note for drawing in drawings if drawing.note], "notes")
    sections = [
        _Section(name="summary", heading="Summary", body=_summary(found, sources)),
        _Section(name="figures", heading="Figures", body=figures + notes),
        _Section(name="tables", heading="Tables", body="".join(map(html_table, tables))),
        _Section(name="environment", heading="Environment and versions", body=_definitions(environments(found))),
        _Section(name="assumptions", heading="Assumptions", body=_statements(statements(found, "assumptions"))),
        _Section(
            name="unmodelled", heading="Not modelled, not observed", body=_statements(statements(found, "unmodelled"))
        ),
    ]
    sections = [section for section in sections if section.body]
    slots = {
        "contents": "\n".join(f'<li><a href="#{section.name}">{section.heading}</a></li>' for section in sections),
        "sections": "\n".join(map(_section, sections)),
    }
    return page_of(
        "page", title=_text(title), style=text_of("page", "page.css"), policy="style-src 'unsafe-inline'",
        version=_text(__version__), slots=slots,
    )  # fmt: skip


def _text(text: str) -> str:
    """Return text as HTML, on one line and without control characters."""
    return escape(clean(text))


def _section(section: _Section) -> str:
    head = f'<section id="{section.name}" aria-labelledby="{section.name}-heading">'
    return f'{head}\n<h2 id="{section.name}-heading">{section.heading}</h2>\n{section.body}</section>'


def _summary(found: Collection, sources: Sequence[str]) -> str:
    verdicts = html_table(verdict_table(found), is_prose=True)
    asked = _list(asked_lines(found), "lines")
    files = f'<p class="faint">Read from {", ".join(map(_text, sources))}.</p>\n' if sources else ""
    words = headline(found)
    counts = f"<p>In all: {_text(words)}.</p>\n" if words else ""
    return f"{counts}{verdicts}<h3>What was asked</h3>\n{asked}{files}"


def _list(lines: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{_text(line)}</li>\n" for line in lines)
    return f'<ul class="{kind}">\n{items}</ul>\n' if items else ""


def _definitions(blocks: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    return "".join(
        f"<h3>{_text(name)}</h3>\n<dl>\n"
        + "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>\n" for key, value in entries.items())
        + "</dl>\n"
        for name, entries in blocks
    )


def _statements(told: Sequence[Told]) -> str:
    return _list([f"{each.text} ({each.whose})" if each.whose else each.text for each in told], "lines")


# -- tables ----------------------------------------------------------------------------------------------------------


#: What a notebook, which has no style of ours, needs to set figures in columns; of our tables alone.
_NOTEBOOK = """<style>
.lorafa-prof table { border-collapse: collapse; margin: 0.5em 0; }
.lorafa-prof caption { text-align: left; font-weight: bold; padding: 0.3em 0; }
.lorafa-prof th, .lorafa-prof td { text-align: left; vertical-align: top; padding: 0.1em 0.6em; }
.lorafa-prof th.number, .lorafa-prof td.number { text-align: right; white-space: nowrap; }
.lorafa-prof tbody + tbody tr:first-child > * { border-top: 1px solid currentColor; }
.lorafa-prof tbody th { font-weight: normal; }
.lorafa-prof .strong { font-weight: bold; }
.lorafa-prof .indented { padding-left: 1.6em; }
</style>
"""


def notebook_html(tables: Sequence[Table], remarks: Sequence[str] = ()) -> str:
    """Return tables and remarks for a notebook's cell, with a style that reaches no further; everything is escaped."""
    said = "".join(f"<p>{escape(remark)}</p>\n" for remark in remarks)
    return f'{_NOTEBOOK}<div class="lorafa-prof">\n{"".join(map(html_table, tables))}{said}</div>\n'


def html_table(table: Table, *, is_prose: bool = False) -> str:
    """Return a table with its title as caption and its notes below; the exact value of a cell is in its markup.

    Args:
        table: without rows it is nothing.
        is_prose: cells are words, so that each row becomes a paragraph where the page is narrow.
    """
    if not table.rows:
        return ""
    head = "".join(f'<th scope="col"{_kind(column, None)}>{_text(column.name)}</th>' for column in table.columns)
    starts = [0, *(number for number in table.sections if number), len(table.rows)]
    bodies = "".join(
        "<tbody>\n" + "".join(_row(table, row) for row in table.rows[start:stop]) + "</tbody>\n"
        for start, stop in pairwise(starts)
    )
    caption = f"<caption>{_text(table.title)}</caption>\n"
    kind = ' class="prose"' if is_prose else ""
    drawn = f"<table{kind}>\n{caption}<thead><tr>{head}</tr></thead>\n{bodies}</table>\n"
    scroll = f'<div class="wide" tabindex="0" role="region" aria-label="{_text(table.title)}">\n'
    return f"{scroll}{drawn}</div>\n{_list(table.notes, 'notes')}"


def _row(table: Table, row: Sequence[Cell | Scalar]) -> str:
    cells = []
    for number, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
        tag, scope = ("th", ' scope="row"') if number < table.keys else ("td", "")
        cells.append(f"<{tag}{scope}{_kind(column, cell)}>{_content(cell)}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>\n"


def _kind(column: Column, cell: Cell | Scalar) -> str:
    kinds = ["number"] if column.justify == "right" else []
    if isinstance(cell, Cell) and cell.tone in ("good", "bad", "strong"):
        kinds.append(cell.tone)
    if isinstance(cell, str) and cell.startswith("  "):
        kinds.append("indented")
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _content(cell: Cell | Scalar) -> str:
    text = escape(cell_text(cell))
    value = cell.value if isinstance(cell, Cell) else cell
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text
    return f'<data value="{value!r}">{text}</data>'


# -- figures ---------------------------------------------------------------------------------------------------------


def _figure(drawing: Drawing, number: int) -> str:
    label = f"Figure {number}: {drawing.name}"
    return (
        f'<figure id="figure-{number}">\n<div class="wide" tabindex="0" role="region" aria-label="{_text(label)}">\n'
        f"{inline_svg(rendered(drawing.figure, 'svg'), f'f{number}', drawing.caption)}\n</div>\n"
        f"<figcaption>Figure {number}. {_text(drawing.caption)}</figcaption>\n</figure>\n"
    )


_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_OPENING = re.compile(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', re.DOTALL)
_LEFT_OUT = (
    re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL),
    re.compile(r'<style type="text/css">.*?</style>\s*', re.DOTALL),
    re.compile(r"<!--.*?-->\s*", re.DOTALL),
)
_IDS = re.compile(r'(\bid="|url\(#|href="#)')


def inline_svg(svg: bytes, prefix: str, label: str) -> str:
    """Return an SVG file as an element of a page.

    Its names are made its own by a prefix, as two figures use the same; the one rule of its style sheet would hold for
    the whole page, whose own has it. It shrinks with the page, as far as its text can still be read.
    """
    text = _PROLOGUE.sub("", svg.decode("utf-8"), count=1)
    for pattern in _LEFT_OUT:
        text = pattern.sub("", text)
    text = _OPENING.sub(lambda match: _opening(match.group(1), label), text, count=1)
    return _IDS.sub(rf"\g<1>{prefix}-", text).replace("xlink:href", "href").strip()


def _opening(view: str, label: str) -> str:
    width = float(view.split()[2]) * PIXELS
    size = f"width:{width:.0f}px;min-width:{width * SMALLEST:.0f}px"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" style="{size}"'
    return f'{head} role="img" aria-label="{_text(label)}">'
