"""`lorafa-prof report`: one self-contained page from saved results."""

from __future__ import annotations

from pathlib import Path

import click

from lorafa_prof.cli.emit import check_output, write_stdout
from lorafa_prof.cli.results_files import read_collection


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="FILE", required=True, callback=check_output,
    help="The page, written whole or not at all; - is stdout.",
)  # fmt: skip
@click.option("--title", metavar="T", default="Fine-tuning memory report", show_default=True, help="Of the page.")
@click.option("--figures/--no-figures", default=True, show_default=True, help="Draw what the results have data for.")
def command(files: tuple[str, ...], output: str | None, title: str, figures: bool) -> None:
    """Write one HTML page of saved results: verdicts, figures, tables, environment, assumptions.

    Each FILE is what predict, measure, run, compare or oom wrote as JSON, or a sweep's CSV or JSON. The page needs no
    network and runs no script: it can be mailed, kept and printed.

    \b
    Examples:
      lorafa-prof report run.json predictions.json -o report.html
      lorafa-prof report run.json -o report.html --title "LoRA-FA on one A100"
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    found = read_collection(files)
    from lorafa_prof.reports.figures import KINDS
    from lorafa_prof.reports.html import render_page
    from lorafa_prof.reports.output import write_atomically

    drawings = [drawing for kind in KINDS.values() for drawing in kind.draw(found)] if figures else []
    page = render_page(found, drawings, title, [Path(file).name for file in dict.fromkeys(files)])
    if output is None:
        write_stdout(page)
    else:
        write_atomically(output, page)
