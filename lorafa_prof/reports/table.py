"""A table as data, and its renderers for Markdown and for spreadsheets, which are pure. `text` has the terminal's.

A cell is a plain value, or a `Cell` whose text is for people ("17.38 GiB") and whose value is for machines
(18658361344). Text and Markdown show the text, CSV holds the value. `None` is an unknown figure: "-" to people, an
empty field to machines, never 0.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Justify = Literal["left", "right"]
Tone = Literal["plain", "good", "bad", "faint", "strong"]
Scalar = str | int | float | bool | None

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?%?")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell that is written differently for people and for machines."""

    text: str
    """What people read."""
    value: Scalar = None
    """What CSV holds."""
    tone: Tone = "plain"
    """How it is coloured where colour is wanted; never the only carrier of a meaning."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    """Header for people; it may be wrapped at its spaces."""
    justify: Justify = "left"
    """left for words, which may be wrapped; right for figures, which never are."""
    key: str = ""
    """Header in CSV, for example "peak_bytes"; the name where empty."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns, with a title above and notes below."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell | Scalar, ...], ...]
    sections: tuple[int, ...] = ()
    """Indices of the rows that begin a new section: a rule is drawn above each."""
    notes: tuple[str, ...] = ()
    keys: int = 1
    """Leading columns that name a row; every block repeats them where the table is split to fit the width."""

    def __post_init__(self) -> None:
        wrong = [number for number, row in enumerate(self.rows) if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.title}: row {wrong[0]} does not have {len(self.columns)} cells")


def words(*names: str) -> tuple[Column, ...]:
    """Return left-justified columns of these names."""
    return tuple(Column(name=name) for name in names)


def figures(*names: str) -> tuple[Column, ...]:
    """Return right-justified columns of these names."""
    return tuple(Column(name=name, justify="right") for name in names)


def cell_text(cell: Cell | Scalar) -> str:
    """Return what people read in a cell, on one line and free of control characters."""
    value = cell.text if isinstance(cell, Cell) else cell
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return clean(value)


def clean(text: str) -> str:
    """Return `text` on one line, with what could steer a terminal or cannot be encoded replaced by U+FFFD."""
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
        for character in " ".join(text.split())
    )


# Markdown


def render_markdown(table: Table) -> str:
    """Return the table as GitHub-flavoured Markdown: a heading, a pipe table, and the notes as a list."""
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    lines = [
        f"### {_markdown(table.title)}",
        "",
        _pipes([_markdown(column.name) for column in table.columns]),
        _pipes(rules),
        *(_pipes([_markdown(cell_text(cell)) for cell in row]) for row in table.rows),
    ]
    if table.notes:
        lines += ["", *(f"- {_markdown(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Return `text` with what Markdown or HTML would take for markup escaped."""
    escaped = re.sub(r"([\\`*\[\]|~])", r"\\\1", clean(text))
    escaped = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)  # inside a word GitHub leaves underscores alone
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# CSV


def render_csv(table: Table) -> str:
    """Return the table's values as RFC 4180 text: a header line, CRLF line ends, quotes where they are needed."""
    lines = [csv_line([column.key or column.name for column in table.columns])]
    lines += [csv_line([cell.value if isinstance(cell, Cell) else cell for cell in row]) for row in table.rows]
    return "".join(lines)


def csv_line(values: Sequence[Scalar]) -> str:
    """Return values as one line of RFC 4180 text."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerow([_csv_field(value) for value in values])
    return stream.getvalue()


def _csv_field(value: Scalar) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    text = value.encode("utf-8", "replace").decode("utf-8")
    # A spreadsheet runs text that begins like this as a formula; the apostrophe makes it text again.
    if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(text):
        return "'" + text
    return text
