"""The files that commands write: which kind one is, and the results in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.results.comparison import Comparison
from lorafa_prof.results.measurement import Measurement
from lorafa_prof.results.prediction import Prediction
from lorafa_prof.results.threshold import Threshold

Result = Measurement | Prediction | Comparison | Threshold

_READERS: Mapping[str, Callable[[Mapping[str, Any]], Result]] = {
    "measurements": Measurement.from_json,
    "predictions": Prediction.from_json,
    "comparisons": Comparison.from_json,
    "thresholds": Threshold.from_json,
}


def results_in(document: Mapping[str, Any]) -> list[Result]:
    """Return the results of a document that `predict`, `measure`, `run`, `compare` or `oom` wrote.

    Raises:
        BadInputError: another document, or results in it that cannot be read.
    """
    kinds = [kind for kind in _READERS if kind in document]
    if not kinds:
        raise BadInputError(f"no result of lorafa-prof: none of the keys {', '.join(_READERS)} is in it")
    kind, *others = kinds
    if others:
        raise BadInputError(
            f"no result of lorafa-prof: {' and '.join(kinds)} in one file, where each command writes a file of its own"
        )
    entries = document[kind]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadInputError(f"{kind} must be a list of objects")
    return [_read(kind, number, entry) for number, entry in enumerate(entries)]


def _read(kind: str, number: int, entry: Mapping[str, Any]) -> Result:
    try:
        return _READERS[kind](entry)
    except BadInputError as error:
        raise BadInputError(f"{kind}[{number}]: {error}") from error
