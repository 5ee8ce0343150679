"""How every command hands out its result: the --format and -o options, and the one place that writes to stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

from lorafa_prof.errors import BadInputError

if TYPE_CHECKING:
    from lorafa_prof.reports.table import Table

FORMATS = ("table", "json", "csv", "markdown")
SUFFIX_FORMATS = {".json": "json", ".csv": "csv", ".md": "markdown", ".markdown": "markdown"}
#: Width of text that goes to a file, or to a pipe whose reader's width is not known.
PLAIN_WIDTH = 100
#: For terminals and pipes whose encoding lacks the few signs that we print beyond ASCII.
_ASCII = str.maketrans({"─": "-", "·": "*", "×": "x", "→": ">", "²": "^2", "Σ": "sum ", "≥": ">=", "\ufffd": "?"})

Function = TypeVar("Function", bound=Callable[..., object])


def output_options(function: Function) -> Function:
    """Add `--format` and `-o/--output`, passed to the command as `format` and `output`."""
    function = click.option(
        "-o", "--output", metavar="FILE", callback=check_output,
        help="Write the result to FILE instead of stdout, whole or not at all.",
    )(function)  # fmt: skip
    return click.option(
        "--format", type=click.Choice(FORMATS),
        help="How to write the result. By default FILE's suffix decides (.json, .csv, .md), else table.",
    )(function)  # fmt: skip


def check_output(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a file that cannot be written; a click callback."""
    # "-" is stdout, as everywhere; a file that cannot be written is told before the work begins, not after it.
    if value is None or value == "-" or ctx.resilient_parsing:
        return None
    from lorafa_prof.reports.output import require_writable

    require_writable(value)
    return value


def emit(
    *,
    tables: Callable[[], Sequence[Table]],
    records: Callable[[], Table],
    document: Callable[[], object],
    format: str | None,
    output: str | None,
) -> None:
    """Write a command's result in the chosen form, to `output` or to stdout.

    Only the form that is wanted is built.

    Args:
        tables: what people read, as text or Markdown.
        records: one flat table with a row for each record, for CSV.
        document: what JSON holds.
        format: one of `FORMATS`, or None to let the file's suffix decide.
        output: a file, or None for stdout.
    """
    chosen = format or (_format_of(output) if output else "table")
    if chosen == "json":
        text = render_json(document())
    elif chosen == "csv":
        from lorafa_prof.reports.table import render_csv

        text = render_csv(records())
    elif chosen == "markdown":
        from lorafa_prof.reports.table import render_markdown

        text = "\n".join(render_markdown(table) for table in tables())
    else:
        from lorafa_prof.reports.text import render_text

        width, color = (PLAIN_WIDTH, False) if output else terminal_look()
        text = "\n".join(render_text(table, width, color) for table in tables())
    if output:
        from lorafa_prof.reports.output import write_atomically

        write_atomically(output, text)
    else:
        write_stdout(text)


def _format_of(output: str) -> str:
    """Return the form that a file's suffix asks for."""
    from pathlib import Path

    return SUFFIX_FORMATS.get(Path(output).suffix.lower(), "table")


def render_json(document: object) -> str:
    """Return `document` as indented JSON with a final line end; NaN and infinities are refused, they are not JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_stdout(text: str) -> None:
    """Write `text` to stdout as it is, and see that it has left; what the stream cannot encode is spelled in ASCII.

    Raises:
        BrokenPipeError: the reader went away (answered in `cli.main`).
        BadInputError: stdout cannot be written, for example on a full disk.
    """
    stream = sys.stdout
    if stream is None:  # started without one
        return
    if os.linesep == "\r\n":  # such a stream makes \r\n of every \n by itself
        text = text.replace("\r\n", "\n")
    with _stdout_errors():
        stream.write(_encodable(text, stream))
        stream.flush()


def write_stdout_bytes(data: bytes) -> None:
    """Write `data` to stdout; else as `write_stdout`."""
    if sys.stdout is None:
        return
    with _stdout_errors():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BadInputError(f"cannot write to stdout: {error.strerror or error}") from error


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
    return text


def terminal_look() -> tuple[int, bool]:
    """Return the width to draw for and whether to use colour.

    Piped into a pager or `head`, stdout is no terminal, but stderr or stdin usually still is: its width is the
    reader's. Colour follows NO_COLOR, FORCE_COLOR and TERM=dumb, and is for terminals only.
    """
    width = _environment_width() or next(filter(None, map(_width_of, (1, 2, 0))), PLAIN_WIDTH)
    environment = os.environ
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return width, False
    return width, bool(environment.get("FORCE_COLOR")) or (sys.stdout is not None and sys.stdout.isatty())


def _environment_width() -> int:
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdecimal() and 0 < int(text) <= 10_000 else 0


def _width_of(descriptor: int) -> int:
    try:
        return os.get_terminal_size(descriptor).columns
    except (OSError, ValueError):
        return 0
