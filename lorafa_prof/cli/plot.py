"""`lorafa-prof plot`: figures from saved results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lorafa_prof.cli.program import say, tell
from lorafa_prof.cli.results_files import read_collection
from lorafa_prof.errors import BadInputError

if TYPE_CHECKING:
    from lorafa_prof.reports.figures import Drawing, Form
    from lorafa_prof.results.collection import Collection

#: What `lorafa_prof.reports.figures` draws; named here so that the help costs no import of it.
KINDS = ("parts", "scatter", "frontier", "timeline", "rank", "layers", "cards", "mfu")


def _check_folder(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from lorafa_prof.reports.folder import require_folder

    if not ctx.resilient_parsing:
        require_folder(value)
    return value


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="DIR", required=True, callback=_check_folder,
    help="Folder for the figures; it is made where it is missing.",
)  # fmt: skip
@click.option("--format", type=click.Choice(("png", "svg")), default="png", show_default=True, help="Of the figures.")
@click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True,
    help="Which figures; may be repeated.  [default: all that the files have data for]",
)  # fmt: skip
def command(files: tuple[str, ...], output: str, format: Form, kinds: tuple[str, ...]) -> None:
    """Draw figures of saved results into a folder.

    Each FILE is what predict, measure, run, compare or oom wrote as JSON, or a sweep's CSV or JSON. Measurements are
    held against the predictions of their runs where both are among the FILEs. What is not known is left out, never
    drawn as 0.

    \b
    Examples:
      lorafa-prof plot predictions.json -o figures
      lorafa-prof plot run.json predictions.json -o figures --format svg --kind parts
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    found = read_collection(files)
    drawings = drawn(found, kinds)
    from lorafa_prof.reports.figures import rendered
    from lorafa_prof.reports.folder import write_files
    from lorafa_prof.reports.table import clean

    written = write_files(output, {f"{each.name}.{format}": rendered(each.figure, format) for each in drawings})
    for path in written:
        tell(clean(str(path)))
    for each in drawings:
        if each.note:
            say(each.note)


def drawn(found: Collection, kinds: Sequence[str]) -> list[Drawing]:
    """Return the figures of the kinds that are asked for, or of all that there is data for.

    Raises:
        BadInputError: a kind that the results have no data for; the text says what it needs.
    """
    from lorafa_prof.reports.figures import KINDS as DRAWN

    asked = list(dict.fromkeys(kinds))
    by_kind = {name: DRAWN[name].draw(found) for name in asked or DRAWN}
    for name in asked:
        if not by_kind[name]:
            raise BadInputError(f"nothing to draw as {name} in these files: it needs {DRAWN[name].needs}")
    drawings = [drawing for each in by_kind.values() for drawing in each]
    if not drawings:
        needs = "; ".join(f"{name}: {kind.needs}" for name, kind in DRAWN.items())
        raise BadInputError(f"nothing to draw in these files ({needs})")
    return drawings
