"""A table as data, and its renderers for a terminal, for Markdown and for spreadsheets. All of them are pure.

A cell is a plain value, or a `Cell` whose text is for people ("17.38 GiB") and whose value is for machines
(18658361344). Text and Markdown show the text, CSV holds the value. `None` is an unknown figure: "-" to people, an
empty field to machines, never 0.

`rich` is imported when a text table is rendered and not before: the other forms do not need it.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

Justify = Literal["left", "right"]
Tone = Literal["plain", "good", "bad", "faint", "strong"]
Scalar = str | int | float | bool | None

#: Spaces between two columns: the padding of one cell and rich's divider.
GAP = 2
#: A column of words is wrapped down to this width before columns move into a block of their own.
NARROWEST_WORDS = 16
#: No table is drawn narrower than this; a terminal that is has to wrap the lines itself.
NARROWEST_TABLE = 20
#: Notes are prose: lines beyond this width are hard to read, however wide the terminal is.
WIDEST_NOTE = 110

_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "faint": "dim", "strong": "bold"}
#: Rules under the header and between sections, and nothing else.
_RULES = "    \n    \n ── \n    \n ── \n ── \n    \n    \n"
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


# Text


def render_text(table: Table, width: int = 100, color: bool = False) -> str:
    """Return the table for a terminal of `width` columns.

    Columns of words are wrapped where the table is too wide; where that is not enough, the columns are dealt out to
    several blocks, each led by the key columns. Figures are never truncated.
    """
    import rich.console

    width = max(width, NARROWEST_TABLE)
    stream = io.StringIO()
    # An empty environment: what is drawn depends on the arguments alone.
    console = rich.console.Console(
        file=stream, width=width, force_terminal=color, force_jupyter=False, legacy_windows=False,
        color_system="standard" if color else None, highlight=False, markup=False, emoji=False, _environ={},
    )  # fmt: skip
    texts = [[cell_text(cell) for cell in row] for row in table.rows]
    blocks = _blocks(table, texts, width)
    _print_prose(console, [table.title], "bold", width)
    for number, block in enumerate(blocks):
        if number:
            console.print()
        console.print(_rich_block(table, texts, block))
    if table.notes:
        console.print()
        _print_prose(console, [f"- {note}" for note in table.notes], "dim", min(width, WIDEST_NOTE), indent="  ")
    return "".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines())


def _print_prose(console: Console, paragraphs: Sequence[str], style: str, width: int, indent: str = "") -> None:
    for paragraph in paragraphs:
        lines = textwrap.wrap(clean(paragraph), width=width, subsequent_indent=indent, break_on_hyphens=False)
        for line in lines:
            console.print(line, style=style, soft_wrap=True)


@dataclass(frozen=True)
class _Width:
    """How wide one column may be drawn."""

    full: int
    """Nothing is wrapped."""
    cells: int
    """The header is wrapped, the cells are not."""
    least: int
    """Words are wrapped as well; the same as `cells` for figures."""


def _blocks(table: Table, texts: list[list[str]], width: int) -> list[dict[int, int]]:
    """Deal the columns out to blocks that fit `width`; each block maps a column's index to its width."""
    widths = [_column_width(column, [row[i] for row in texts]) for i, column in enumerate(table.columns)]
    keys = list(range(min(table.keys, len(widths))))
    blocks = [[*keys]]
    for index in range(len(keys), len(widths)):
        least = sum(widths[i].least + GAP for i in (*blocks[-1], index)) - GAP
        if least > width and blocks[-1] != keys:
            blocks.append([*keys])
        blocks[-1].append(index)
    return [_fitted({index: widths[index] for index in block}, width) for block in blocks]


def _column_width(column: Column, texts: list[str]) -> _Width:
    from rich.cells import cell_len

    def longest(parts: Iterable[str]) -> int:
        return max(map(cell_len, parts), default=1)

    header = clean(column.name)
    cells = max(longest(header.split()), longest(texts))
    words = max(longest(header.split()), longest(word for text in texts for word in text.split()), NARROWEST_WORDS)
    least = cells if column.justify == "right" else min(cells, words)
    return _Width(full=max(cells, cell_len(header)), cells=cells, least=least)


def _fitted(block: dict[int, _Width], width: int) -> dict[int, int]:
    """Choose the columns' widths: take from headers first, then from words, always where it is widest."""
    chosen = {index: limits.full for index, limits in block.items()}
    spare = width - GAP * (len(block) - 1)
    # On a screen too narrow for a single figure beside its keys everything is folded, still nothing is cut off.
    for floor in (lambda limits: limits.cells, lambda limits: limits.least, lambda _: 1):
        while sum(chosen.values()) > spare:
            givers = [index for index in block if chosen[index] > floor(block[index])]
            if not givers:
                break
            chosen[max(givers, key=lambda index: chosen[index])] -= 1
    return chosen


def _rich_block(table: Table, texts: list[list[str]], block: dict[int, int]) -> RichTable:
    import rich.box
    import rich.table
    from rich.text import Text

    drawn = rich.table.Table(
        box=rich.box.Box(_RULES), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
        border_style="dim", header_style="bold",
    )  # fmt: skip
    for index, width in block.items():
        column = table.columns[index]
        drawn.add_column(Text(clean(column.name)), justify=column.justify, width=width, overflow="fold", vertical="top")
    breaks = set(table.sections)
    for number, row in enumerate(table.rows):
        cells = [Text(texts[number][index], style=_STYLES[_tone(row[index])]) for index in block]
        drawn.add_row(*cells, end_section=number + 1 in breaks)
    return drawn


def _tone(cell: Cell | Scalar) -> Tone:
    return cell.tone if isinstance(cell, Cell) else "plain"


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
