"""What the documentation shows: its indented blocks, the commands in them, and what it says that they print."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True, kw_only=True)
class Block:
    """An indented block of a page."""

    page: str
    line: int
    """Number of its first line."""
    lines: tuple[str, ...]
    """Without the indentation."""

    def commands(self) -> list[Command]:
        """The commands in it: lines that begin with a program, continued behind a backslash; comments taken off."""
        found = []
        text, begun = "", 0
        for number, line in enumerate(self.lines, self.line):
            begun = begun if text else number
            text += line
            if text.endswith("\\"):
                text = text[:-1] + " "
                continue
            if text.startswith(("lorafa-prof ", "torchrun ")):
                found.append(Command(page=self.page, line=begun, text=" ".join(text.split())))
            text = ""
        return found


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command as a page shows it."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """The words that a shell makes of it."""
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text}"


def blocks_of(path: Path) -> list[Block]:
    """Return the indented blocks of a page, those of lists left out: they are text."""
    page, found = str(path.relative_to(ROOT)), list[Block]()
    lines, begun, before = list[str](), 0, ""
    for number, line in enumerate([*path.read_text("utf-8").splitlines(), "end"], 1):
        if line.startswith("    ") and (lines or not before.strip()):
            begun = begun if lines else number
            lines.append(line[4:])
        elif lines and not line.strip():
            lines.append("")
        elif lines:
            while not lines[-1]:
                lines.pop()
            found.append(Block(page=page, line=begun, lines=tuple(lines)))
            lines = []
        before = line
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
COMMANDS = [command for block in BLOCKS for command in block.commands()]

#: Blocks with a table in them: what a command prints.
TABLES = [block for block in BLOCKS if any("────" in line for line in block.lines)]
