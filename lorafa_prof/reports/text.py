"""A table as text for a terminal or a file.

Text in colour is drawn by `rich`, and so is what has characters of another width than one column. The rest, which is
nearly everything that goes to a pipe or a file, is drawn here: importing `rich` alone takes longer than a prediction.
The layout is one and the same; a test holds the two ways of drawing against one another.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorafa_prof.reports.table import Cell, Column, Scalar, Table, Tone, cell_text, clean

#: Spaces between two columns: the padding of one cell and rich's divider.
GAP = 2
#: A column of words is wrapped down to this width before columns move into a block of their own.
NARROWEST_WORDS = 16
#: No table is drawn narrower than this; a terminal that is has to wrap the lines itself.
NARROWEST_TABLE = 20
#: Notes are prose: lines beyond this width are hard to read, however wide the terminal is.
WIDEST_NOTE = 110

_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "faint": "dim", "strong": "bold"}
#: Characters of one column each: Latin letters and the signs of our own tables.
_ONE_COLUMN = re.compile("[\x20-\x7e\xa0-\u02ff×·→²Σ≥≤–…─⌈⌉₀-₉\ufffd]*")

Texts = Sequence[Sequence[str]]
Block = dict[int, int]
"""Columns by their index, each with its width."""


def render_text(table: Table, width: int = 100, color: bool = False) -> str:
    """Return the table for a terminal of `width` columns.

    Columns of words are wrapped where the table is too wide; where that is not enough, the columns are dealt out to
    several blocks, each led by the key columns. Figures are never truncated.
    """
    width = max(width, NARROWEST_TABLE)
    texts = [[cell_text(cell) for cell in row] for row in table.rows]
    every = [table.title, *table.notes, *(column.name for column in table.columns), *(t for row in texts for t in row)]
    simple = all(text.isascii() or _ONE_COLUMN.fullmatch(text) for text in map(clean, every))
    pen: _Pen = _Rich(width, color) if color or not simple else _Plain()
    pen.prose([table.title], "bold", width)
    for number, block in enumerate(_blocks(table, texts, width, len if simple else _rich_length())):
        if number:
            pen.blank()
        pen.block(table, texts, block)
    if table.notes:
        pen.blank()
        pen.prose([f"- {note}" for note in table.notes], "dim", min(width, WIDEST_NOTE), indent="  ")
    return "".join(line.rstrip() + "\n" for line in pen.lines())


# -- layout ----------------------------------------------------------------------------------------------------------

Length = Callable[[str], int]
"""How many columns a text takes."""


@dataclass(frozen=True)
class _Width:
    """How wide one column may be drawn."""

    full: int
    """Nothing is wrapped."""
    cells: int
    """The header is wrapped, the cells are not."""
    least: int
    """Words are wrapped as well; the same as `cells` for figures."""


def _blocks(table: Table, texts: Texts, width: int, length: Length) -> list[Block]:
    """Deal the columns out to blocks that fit `width`."""
    widths = [_column_width(column, [row[i] for row in texts], length) for i, column in enumerate(table.columns)]
    keys = list(range(min(table.keys, len(widths))))
    blocks = [[*keys]]
    for index in range(len(keys), len(widths)):
        least = sum(widths[i].least + GAP for i in (*blocks[-1], index)) - GAP
        if least > width and blocks[-1] != keys:
            blocks.append([*keys])
        blocks[-1].append(index)
    return [_fitted({index: widths[index] for index in block}, width) for block in blocks]


def _column_width(column: Column, texts: Sequence[str], length: Length) -> _Width:
    def longest(parts: Iterable[str]) -> int:
        return max(map(length, parts), default=1)

    header = clean(column.name)
    cells = max(longest(header.split()), longest(texts))
    words = max(longest(header.split()), longest(word for text in texts for word in text.split()), NARROWEST_WORDS)
    least = cells if column.justify == "right" else min(cells, words)
    return _Width(full=max(cells, length(header)), cells=cells, least=least)


def _fitted(block: dict[int, _Width], width: int) -> Block:
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


# -- drawing ---------------------------------------------------------------------------------------------------------


class _Pen(Protocol):
    """Draws what was laid out."""

    def prose(self, paragraphs: Sequence[str], style: str, width: int, indent: str = "") -> None:
        """Write paragraphs, each wrapped to `width`, its further lines indented."""

    def blank(self) -> None:
        """Write an empty line."""

    def block(self, table: Table, texts: Texts, block: Block) -> None:
        """Draw some columns of a table: a rule under the header and between sections, and nothing else."""

    def lines(self) -> list[str]:
        """Return what was written."""


def _wrapped(paragraph: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(clean(paragraph), width=width, subsequent_indent=indent, break_on_hyphens=False)


class _Plain:
    """Text without colour, of characters one column wide."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def prose(self, paragraphs: Sequence[str], style: str, width: int, indent: str = "") -> None:
        del style
        for paragraph in paragraphs:
            self._lines += _wrapped(paragraph, width, indent)

    def blank(self) -> None:
        self._lines.append("")

    def block(self, table: Table, texts: Texts, block: Block) -> None:
        if not block:
            self.blank()
            return
        columns = [table.columns[index] for index in block]
        rule = "─" * (sum(block.values()) + GAP * (len(block) - 1))
        header = [_folded(clean(column.name), width) for column, width in zip(columns, block.values(), strict=True)]
        height = max(map(len, header))  # a header stands on its rule
        self._row(columns, block, [[""] * (height - len(lines)) + lines for lines in header])
        self._lines.append(rule)
        for number, row in enumerate(texts):
            if number in table.sections and number:
                self._lines.append(rule)
            self._row(columns, block, [_folded(row[index], width) for index, width in block.items()])

    def _row(self, columns: Sequence[Column], block: Block, cells: Sequence[Sequence[str]]) -> None:
        for number in range(max(map(len, cells))):
            parts = [lines[number] if number < len(lines) else "" for lines in cells]
            justified = [
                part.rstrip().rjust(width) if column.justify == "right" else part[:width].ljust(width)
                for part, column, width in zip(parts, columns, block.values(), strict=True)
            ]
            self._lines.append((" " * GAP).join(justified))

    def lines(self) -> list[str]:
        return self._lines


def _folded(text: str, width: int) -> list[str]:
    """Return a text in lines of `width`: broken between words; a longer word begins a line and is broken anywhere."""
    lines, line = list[str](), ""
    for word in re.findall(r"\S+ ?", text):
        if len(line) + len(word.rstrip()) <= width:
            line += word
            continue
        if line:
            lines.append(line)
        pieces = [word]
        if len(word.rstrip()) > width:
            pieces = [word[start : start + width] for start in range(0, len(word), width)]
        lines += pieces[:-1]
        line = pieces[-1]
    return [*lines, line]


def _rich_length() -> Length:
    from rich.cells import cell_len

    return cell_len


class _Rich:
    """Text by `rich`: in colour, or with characters of any width."""

    #: Rules under the header and between sections, and nothing else.
    RULES = "    \n    \n ── \n    \n ── \n ── \n    \n    \n"

    def __init__(self, width: int, color: bool) -> None:
        import rich.console

        self._stream = io.StringIO()
        # An empty environment: what is drawn depends on the arguments alone.
        self._console = rich.console.Console(
            file=self._stream, width=width, force_terminal=color, force_jupyter=False, legacy_windows=False,
            color_system="standard" if color else None, highlight=False, markup=False, emoji=False, _environ={},
        )  # fmt: skip

    def prose(self, paragraphs: Sequence[str], style: str, width: int, indent: str = "") -> None:
        for paragraph in paragraphs:
            for line in _wrapped(paragraph, width, indent):
                self._console.print(line, style=style, soft_wrap=True)

    def blank(self) -> None:
        self._console.print()

    def block(self, table: Table, texts: Texts, block: Block) -> None:
        import rich.box
        import rich.table
        from rich.text import Text

        drawn = rich.table.Table(
            box=rich.box.Box(self.RULES), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
            border_style="dim", header_style="bold",
        )  # fmt: skip
        for index, width in block.items():
            column = table.columns[index]
            name = Text(clean(column.name))
            drawn.add_column(name, justify=column.justify, width=width, overflow="fold", vertical="top")
        breaks = set(table.sections)
        for number, row in enumerate(table.rows):
            cells = [Text(texts[number][index], style=_STYLES[_tone(row[index])]) for index in block]
            drawn.add_row(*cells, end_section=number + 1 in breaks)
        self._console.print(drawn)

    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


def _tone(cell: Cell | Scalar) -> Tone:
    return cell.tone if isinstance(cell, Cell) else "plain"
