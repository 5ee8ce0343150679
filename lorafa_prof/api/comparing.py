"""`lorafa_prof.comparison` and `.difference`: measurements beside predictions, and one step in two environments.

They are not called as the commands are: `lorafa_prof.compare` and `lorafa_prof.diff` are modules.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lorafa_prof.api.answers import Answers
from lorafa_prof.api.options import Path
from lorafa_prof.catalog import load_device
from lorafa_prof.compare import Tolerance, compare, misses
from lorafa_prof.diff import diff
from lorafa_prof.engines import ENGINES
from lorafa_prof.errors import BadInputError
from lorafa_prof.predicting import Predictor, saved_predictions
from lorafa_prof.results import Comparison, Measurement, Prediction, comparisons_to_json
from lorafa_prof.results.difference import Difference
from lorafa_prof.saved_results import read_results, read_step_record
from lorafa_prof.specs import require_choice

if TYPE_CHECKING:
    from lorafa_prof.reports.table import Table
    from lorafa_prof.results.collection import Collection

Engine = Literal["analytic", "simulate"]
#: Operations of a difference that its text shows in each table.
_SHOWN = 15


class Comparisons(Answers[Comparison]):
    """Measurements with the predictions of their runs, in the order in which they were given."""

    _figure = "parts"

    def misses(self, tolerance: str) -> list[str]:
        """Return a line for each peak that a prediction misses by more, and each verdict that did not come true.

        Args:
            tolerance: a share of what was observed ("2%") or bytes ("0", "512B", "1MiB").

        Raises:
            BadInputError: not a tolerance.
        """
        allowed = Tolerance.parse(tolerance)
        return [line for comparison in self for line in misses(comparison, allowed)]

    def to_json(self) -> dict[str, Any]:
        """Return what `compare --format json` prints, as plain data."""
        return comparisons_to_json(self)

    def _tables(self) -> list[Table]:
        from lorafa_prof.reports.comparison import comparison_table

        return [comparison_table(comparison) for comparison in self]

    def _records(self) -> Table:
        from lorafa_prof.reports.comparison import records_table

        return records_table(self)

    def _collection(self) -> Collection:
        from lorafa_prof.results.collection import Collection

        return Collection(comparisons=tuple(self))


class Differences(Answers[Difference]):
    """What tells two records of a step apart; one result."""

    _figure = "parts"

    def to_json(self) -> dict[str, Any]:
        """Return what `diff --format json` prints, as plain data."""
        return {"differences": [difference.to_json() for difference in self]}

    def _tables(self) -> list[Table]:
        from lorafa_prof.reports.diff import difference_tables

        return [table for difference in self for table in difference_tables(difference, _SHOWN)]

    def _records(self) -> Table:
        from lorafa_prof.reports.diff import records_table

        return records_table(self[0])

    def _collection(self) -> Collection:
        from lorafa_prof.results.collection import Collection

        return Collection()


def comparison(
    measurements: Path | Measurement | Sequence[Path | Measurement],
    predictions: Sequence[Prediction] | None = None,
    *,
    engine: Engine | Sequence[Engine] | None = None,
    gpu: str | None = None,
) -> Comparisons:
    """Hold measurements against the predictions of their runs, part by part: `lorafa-prof compare`.

    Args:
        measurements: files that `measure` or `run` wrote, or `Measurement`s.
        predictions: those to take; None: they are computed for the run and the card of each measurement.
        engine: which predictions; None: both.
        gpu: the card that was measured on, where its name in the file is not enough.

    Returns:
        A sequence with a `Comparison` a measurement; errors are predictions less observations. `misses` is a test's.

    Raises:
        BadInputError: a file that holds no measurement, or gpu beside predictions that are there already.
        MissingComponentError: an engine that was named needs what is not installed.
    """
    wanted = ENGINES if engine is None else (engine,) if isinstance(engine, str) else tuple(engine)
    for name in wanted:
        require_choice("engine", name, Engine)
    if predictions is not None and gpu is not None:
        raise BadInputError("gpu is for predictions that are computed here, not for those that are given")
    given = [measurements] if isinstance(measurements, (str, os.PathLike, Measurement)) else list(measurements)
    found = [each for one in given for each in _measurements(one)]
    if predictions is not None:
        answer = saved_predictions(predictions, wanted)
    else:
        card = None if gpu is None else load_device(gpu)
        answer = Predictor(wanted, card, required=engine is not None)
    return Comparisons([compare(each, *answer(each)) for each in found])


def _measurements(given: Path | Measurement) -> list[Measurement]:
    if isinstance(given, Measurement):
        return [given]
    path = os.fspath(given)
    found = [result for result in read_results(path) if isinstance(result, Measurement)]
    if not found:
        raise BadInputError(f"{path}: no measurement is in it")
    return found


def difference(before: Path, after: Path | None = None, *, python: str | None = None) -> Differences:
    """Say which operations of a step allocate other bytes in another environment: `lorafa-prof diff`.

    Args:
        before: a file that `diff --record` wrote.
        after: another; None: the run of `before`, simulated in this environment.
        python: the interpreter of the environment in which it is simulated instead; with `after` None.

    Returns:
        A sequence of one `Difference`; sizes are integers of bytes.

    Raises:
        BadInputError: a file that holds no record, or an interpreter that is none.
        MissingComponentError: PyTorch, transformers or PEFT is not installed there.
        UnsupportedError: what is not simulated there.
    """
    first = read_step_record(os.fspath(before))
    if after is not None:
        if python is not None:
            raise BadInputError("python is where the run of one file is simulated; here are two files")
        second = read_step_record(os.fspath(after))
    elif python is not None:
        from lorafa_prof.elsewhere.asking import recorded_elsewhere

        second = recorded_elsewhere(python, first.run, first.device, None)
    else:
        from lorafa_prof.engines import recorded_step

        second = recorded_step(first.run, None if first.device is None else load_device(first.device), None)
    return Differences([diff(first, second)])
