"""What the Python interface returns: results in a list that shows itself as text, HTML, frame and figure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from lorafa_prof.errors import BadInputError
from lorafa_prof.results import Prediction, Threshold

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from lorafa_prof.reports.table import Table
    from lorafa_prof.results.collection import Collection

Result = TypeVar("Result")

#: Columns of text; a notebook's cell has about as many.
_WIDTH = 100


class Answers(Sequence[Result], Generic[Result]):
    """Results, in order; an immutable sequence.

    Args:
        results: at least one.
        remarks: what is to be said beside them, as that a default method was left out.
    """

    _figure: str

    def __init__(self, results: Sequence[Result], remarks: Sequence[str] = ()) -> None:
        self._results, self.remarks = tuple(results), tuple(remarks)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        """Return a result, or for a slice a tuple of them."""
        return self._results[index]

    def __len__(self) -> int:
        """Return how many results there are."""
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        """Yield the results in order."""
        return iter(self._results)

    @property
    def only(self) -> Result:
        """The one result.

        Raises:
            BadInputError: there are several.
        """
        if len(self) != 1:
            raise BadInputError(f"there are {len(self)} results: take one by its number, as in answers[0]")
        return self._results[0]

    def __repr__(self) -> str:
        """Return what the command prints, without colour."""
        from lorafa_prof.reports.text import render_text

        parts = [render_text(table, _WIDTH).rstrip() for table in self._tables()]
        return "\n\n".join([*parts, *(f"- {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        """Return the same as tables of HTML, for notebooks; everything is escaped."""
        from lorafa_prof.reports.html import notebook_html

        return notebook_html(self._tables(), self.remarks)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a result and card, with the columns of the command's CSV; sizes are integers of bytes."""
        import pandas as pd

        from lorafa_prof.reports.table import Cell

        table = self._records()
        rows = [[cell.value if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]
        return pd.DataFrame(rows, columns=[column.key or column.name for column in table.columns]).convert_dtypes()

    def plot(self, kind: str | None = None) -> Figure:
        """Return a figure.

        Args:
            kind: as `lorafa-prof plot --kind` has them; None: "parts" of predictions, "frontier" of thresholds.

        Raises:
            UnknownNameError: no such kind.
            BadInputError: these results have no data for it.
        """
        from lorafa_prof.reports.figures import KINDS
        from lorafa_prof.specs import require_choice

        name = kind or self._figure
        require_choice("kind of figure", name, tuple(KINDS))
        drawings = KINDS[name].draw(self._collection())
        if not drawings:
            raise BadInputError(f"nothing to draw as {name} in these results: it needs {KINDS[name].needs}")
        figure: Figure = drawings[0].figure
        return figure

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return what the command's `--format json` prints, as plain data."""

    @abstractmethod
    def _tables(self) -> list[Table]: ...

    @abstractmethod
    def _records(self) -> Table: ...

    @abstractmethod
    def _collection(self) -> Collection: ...


class Predictions(Answers[Prediction]):
    """Predictions of one configuration, a method each, in the order in which the methods were named."""

    _figure = "parts"

    @property
    def fits(self) -> bool:
        """Whether every prediction fits on every card that was named.

        Raises:
            BadInputError: no card was named.
        """
        verdicts = [fit.fits for prediction in self for fit in prediction.fit]
        if not verdicts:
            raise BadInputError("fits on which card? Name one with gpus=")
        return all(verdicts)

    def explain(self) -> str:
        """Return what is alive at each prediction's peak, tensor by tensor, as text."""
        from lorafa_prof.reports.prediction import explain_table
        from lorafa_prof.reports.text import render_text

        return "\n".join(render_text(explain_table(prediction), _WIDTH) for prediction in self)

    def to_json(self) -> dict[str, Any]:
        """Return what `predict --format json` prints, as plain data."""
        return {"predictions": [prediction.to_json() for prediction in self]}

    def _tables(self) -> list[Table]:
        from lorafa_prof.reports.prediction import comparison_table

        return [comparison_table(self)]

    def _records(self) -> Table:
        from lorafa_prof.reports.prediction import records_table

        return records_table(self)

    def _collection(self) -> Collection:
        from lorafa_prof.results.collection import Collection

        return Collection(predictions=tuple(self))


class Thresholds(Answers[Threshold]):
    """The largest batch, sequence or rank of each method on each card, card by card."""

    _figure = "frontier"

    def to_json(self) -> dict[str, Any]:
        """Return what `oom --format json` prints, as plain data."""
        from lorafa_prof.results import thresholds_to_json

        return thresholds_to_json(self)

    def _tables(self) -> list[Table]:
        from lorafa_prof.reports.oom import all_tables

        return all_tables(self)

    def _records(self) -> Table:
        from lorafa_prof.reports.oom import records_table

        return records_table(self)

    def _collection(self) -> Collection:
        from lorafa_prof.results.collection import Collection

        return Collection(thresholds=tuple(self))
