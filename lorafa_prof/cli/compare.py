"""`lorafa-prof compare`: what was observed beside what each engine predicts, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorafa_prof.cli.emit import check_output, emit, output_options
from lorafa_prof.cli.program import say
from lorafa_prof.engines import ENGINES
from lorafa_prof.errors import BadInputError
from lorafa_prof.predicting import Predictor, saved_predictions
from lorafa_prof.saved_results import read_results

if TYPE_CHECKING:
    from lorafa_prof.compare import Tolerance
    from lorafa_prof.predicting import Answer
    from lorafa_prof.results import Comparison, Measurement, Prediction

#: File names that a figure can have.
_FIGURES = (".png", ".svg")
_OF_A_SCRIPT = (
    "this is a script of your own: what it runs is not described as a run of a model, a method and a batch, so that "
    "nothing can be predicted; predict says what a run with its options would take"
)


def _check_figure(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and Path(value).suffix.lower() not in _FIGURES:
        raise BadInputError(f"--figure writes {' or '.join(_FIGURES)}, not {Path(value).name[:60]!r}")
    return check_output(ctx, param, value)


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--engine",
    "engines",
    type=click.Choice(ENGINES),
    multiple=True,
    help="Which predictions; may be repeated.  [default: both]",
)
@click.option("--gpu", metavar="G", help="The card that it was measured on, where its name in the file is not enough.")
@click.option(
    "--tolerance",
    metavar="T",
    help="Exit with 1 when a peak misses by more: 2% of what was observed, or bytes as 0, 512B, 1MiB.",
)
@click.option(
    "--figure", metavar="FILE", callback=_check_figure, help="Also draw the parts as stacked bars (.png, .svg)."
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    engines: tuple[str, ...],
    gpu: str | None,
    tolerance: str | None,
    figure: str | None,
    format: str | None,
    output: str | None,
) -> None:
    """Hold measurements against the predictions of their runs: each part, each peak, and where they part ways.

    Each FILE is what measure, run, or an earlier compare wrote as JSON. Predictions are computed, or taken from a file
    that predict wrote, where one is among the FILEs.

    \b
    Examples:
      lorafa-prof compare run.json
      lorafa-prof compare run.json --engine simulate --tolerance 0.5%
      lorafa-prof compare run.json predictions.json --figure bars.png -o compare.md
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.compare import Tolerance, is_held

    allowed = None if tolerance is None else Tolerance.parse(tolerance)
    measured, saved, done = _sorted(files)
    predict = _predicting(saved, engines, gpu)
    comparisons = done + [_compared(measurement, predict, source) for source, measurement in measured]
    if not comparisons:
        raise BadInputError(
            "no measurement in these files: compare holds what measure or run wrote against predictions"
        )
    if isinstance(predict, Predictor):
        for engine, reason in predict.left_out.items():
            _say(f"{engine} is left out: {reason}")
    for reason in _reasons(comparisons):
        _say(f"nothing is compared: {reason}")
    _emit(comparisons, format, output)
    if figure:
        _draw(comparisons, figure)
    if allowed is None:
        return
    if not any(is_held(each) for each in comparisons):
        raise BadInputError("nothing could be held to --tolerance: no peak has a prediction beside it")
    if not _holds(comparisons, allowed):
        ctx.exit(1)


def _sorted(files: Sequence[str]) -> tuple[list[tuple[str, Measurement]], list[Prediction], list[Comparison]]:
    """Return the measurements with their files, the predictions and the comparisons in all files."""
    from lorafa_prof.catalog.json_files import one_line
    from lorafa_prof.results import Comparison, Measurement, Prediction

    measured, saved, done = [], [], []
    for file in files:
        for result in read_results(file):
            if isinstance(result, Measurement):
                measured.append((file, result))
            elif isinstance(result, Comparison):
                done.append(result)
            elif isinstance(result, Prediction):
                saved.append(result)
            else:
                raise BadInputError(f"{one_line(file)} holds thresholds, which are compared with nothing")
    return measured, saved, done


def _predicting(
    saved: Sequence[Prediction], engines: Sequence[str], gpu: str | None
) -> Callable[[Measurement], Answer]:
    wanted = tuple(dict.fromkeys(engines)) or ENGINES
    if saved:
        if gpu is not None:
            raise BadInputError("--gpu is for predictions that are computed here, not for saved ones")
        return saved_predictions(saved, wanted)
    from lorafa_prof.catalog import load_device

    return Predictor(wanted, None if gpu is None else load_device(gpu), required=bool(engines))


def _compared(measurement: Measurement, predict: Callable[[Measurement], Answer], source: str) -> Comparison:
    from lorafa_prof.compare import compare

    predictions, remarks = predict(measurement)
    if measurement.run is None:
        remarks = [_OF_A_SCRIPT]
    return replace(compare(measurement, predictions, remarks), source=source)


def _reasons(comparisons: Sequence[Comparison]) -> list[str]:
    """Return why measurements have no prediction beside them, each reason once."""
    alone = [each for each in comparisons if not each.sides]
    return list(dict.fromkeys("; ".join(each.remarks) or "there is no prediction" for each in alone))


def _emit(comparisons: list[Comparison], format: str | None, output: str | None) -> None:
    from lorafa_prof.reports import comparison as tables
    from lorafa_prof.results import comparisons_to_json

    emit(
        tables=lambda: [tables.comparison_table(comparison) for comparison in comparisons],
        records=lambda: tables.records_table(comparisons),
        document=lambda: comparisons_to_json(comparisons),
        format=format,
        output=output,
    )


def _draw(comparisons: Sequence[Comparison], file: str) -> None:
    from lorafa_prof.reports.figures import peaks_figure
    from lorafa_prof.reports.output import write_bytes_atomically

    write_bytes_atomically(file, peaks_figure(comparisons, "svg" if Path(file).suffix.lower() == ".svg" else "png"))


def _holds(comparisons: Sequence[Comparison], tolerance: Tolerance) -> bool:
    """Say on stderr what misses by more than the tolerance."""
    from lorafa_prof.compare import misses
    from lorafa_prof.reports.comparison import name_of

    wrong = [f"{name_of(each)}: {line}" for each in comparisons for line in misses(each, tolerance)]
    for line in wrong:
        _say(line)
    return not wrong


def _say(line: str) -> None:
    from lorafa_prof.reports.table import clean

    say(clean(line))
