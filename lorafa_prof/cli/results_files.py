"""Files with results, as commands write them and other commands read them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorafa_prof.cards import FILE_NAME
from lorafa_prof.errors import BadInputError, UnknownNameError
from lorafa_prof.saved_results import LARGEST_RESULT, of_file

if TYPE_CHECKING:
    from lorafa_prof.results import Comparison, Measurement, Prediction, Result
    from lorafa_prof.results.collection import Collection
    from lorafa_prof.results.records import Record


def read_collection(paths: Sequence[str]) -> Collection:
    """Return what files of any kinds hold together; measurements are compared with the predictions of their runs.

    A file whose name ends in .csv is a table of predictions, as `sweep` writes it; every other one is JSON, of the same
    rows or of what `read_results` reads. A result that is there twice is taken once.

    Raises:
        BadInputError: a file that is none of these, or no result in all of them.
    """
    from lorafa_prof.results import Comparison, Measurement, Prediction, Threshold
    from lorafa_prof.results.collection import Collection

    rows: list[Record] = []
    results: list[Result] = []
    for path in dict.fromkeys(paths):
        of_table, others = _read_any(path)
        rows += of_table
        results += [result for result in others if result not in results]
    if not rows and not results:
        raise BadInputError("no result in these files")
    measurements = [result for result in results if isinstance(result, Measurement)]
    predictions = [result for result in results if isinstance(result, Prediction)]
    comparisons, compared = _paired(measurements, predictions)
    saved = [result for result in results if isinstance(result, Comparison)]
    return Collection(
        measurements=tuple(measurements), predictions=tuple(predictions), comparisons=(*saved, *comparisons),
        thresholds=tuple(result for result in results if isinstance(result, Threshold)), rows=tuple(rows),
        cards=_aliases(measurements), compared=tuple(compared),
    )  # fmt: skip


def _read_any(path: str) -> tuple[list[Record], list[Result]]:
    """Return the rows in a table, or the results in a document."""
    from lorafa_prof.catalog.json_files import one_line, read_json_object, read_text
    from lorafa_prof.results import results_in
    from lorafa_prof.results.records import records_in_csv, records_in_rows

    suffix = Path(path).suffix.lower()
    if suffix in _BINARY:
        raise BadInputError(f"{one_line(path)}: {suffix} is not read here; write the sweep as .csv or .json")
    try:
        if suffix == ".csv":
            return records_in_csv(read_text(path, largest=LARGEST_RESULT, what="a table")), []
        document = read_json_object(path, largest=LARGEST_RESULT, what="a result")
        return (
            (records_in_rows(document["rows"]), [])
            if "sweep" in document and "rows" in document
            else ([], results_in(document))
        )
    except BadInputError as error:
        raise of_file(path, error) from error


#: Files of pandas and the like.
_BINARY = (".parquet", ".pq", ".feather", ".arrow", ".xlsx")


def _paired(
    measurements: Sequence[Measurement], predictions: Sequence[Prediction]
) -> tuple[list[Comparison], list[Measurement | Prediction]]:
    """Return the comparisons of the measurements that predictions are there of, and the results in them."""
    from lorafa_prof.compare import compare, is_of

    comparisons: list[Comparison] = []
    compared: list[Measurement | Prediction] = []
    for measurement in measurements:
        of_it = [prediction for prediction in predictions if is_of(prediction, measurement)]
        if of_it:
            comparisons.append(compare(measurement, of_it))
            compared += [measurement, *of_it]
    return comparisons, compared


def _aliases(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Return the catalog's names of the cards that were measured on, as far as it has them."""
    from lorafa_prof.catalog import load_device

    found: dict[str, str] = {}
    names = (measurement.environment.get("device") for measurement in measurements)  # a file may hold anything there
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        if not FILE_NAME.search(name):  # the name of a card, never of a file
            with contextlib.suppress(UnknownNameError):
                found[name] = load_device(name).name
    return found
