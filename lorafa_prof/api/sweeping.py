"""`lorafa_prof.sweep`: predictions of every combination of options."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorafa_prof.api.answers import Answers
from lorafa_prof.api.calls import Cards, Engine, named_devices
from lorafa_prof.api.options import Path, asked
from lorafa_prof.engines import predictor
from lorafa_prof.errors import BadInputError, LorafaProfError
from lorafa_prof.results import Prediction
from lorafa_prof.runs import for_each_method
from lorafa_prof.specs import require_choice

if TYPE_CHECKING:
    from lorafa_prof.reports.table import Table
    from lorafa_prof.results.collection import Collection

#: Options whose single value may be a list.
_LISTS = ("targets", "layers", "keep")
#: Combinations of one sweep; the command line has resumable ones for more.
MOST = 10_000


class Sweep(Answers[Prediction]):
    """Predictions of many configurations; `axes` says what varies between them, in the order of the combinations."""

    _figure = "parts"

    def __init__(self, results: Sequence[Prediction], axes: Sequence[str], remarks: Sequence[str] = ()) -> None:
        super().__init__(results, remarks)
        self.axes = tuple(axes)

    def to_json(self) -> dict[str, Any]:
        """Return the predictions as `predict --format json` prints them, as plain data."""
        return {"predictions": [prediction.to_json() for prediction in self]}

    def _tables(self) -> list[Table]:
        from lorafa_prof.reports.prediction import grid_table

        return [grid_table(self, self.axes)]

    def _records(self) -> Table:
        from lorafa_prof.reports.prediction import records_table

        return records_table(self)

    def _collection(self) -> Collection:
        from lorafa_prof.results.collection import Collection

        return Collection(predictions=tuple(self))


def sweep(
    model: str | None = None,
    *,
    method: str | Sequence[str] | None = None,
    engine: Engine = "analytic",
    gpus: Cards = (),
    config: Path | Sequence[Path] = (),
    trust_remote_code: bool = False,
    **options: Any,
) -> Sweep:
    """Predict every combination of options: `bs=[1, 2, 4], seq=range(512, 4097, 512)`.

    Args:
        model, method, engine, gpus, config, trust_remote_code: as `predict` takes them.
        **options: see `RunOptions`; a list, tuple or range is an axis. `targets`, `layers` and `keep` have one value.

    Returns:
        A sequence with a `Prediction` a combination and method, the last axis fastest; `to_frame()` is a row a
        prediction and card, with sizes in bytes. Combinations that are refused are left out and named in `remarks`.

    Raises:
        as `predict`.
        BadInputError: an axis without a value, or more than 10,000 combinations.
        LorafaProfError: what the last combination is refused for, where all are.
    """
    require_choice("engine", engine, Engine)
    axes, fixed = _split(options)
    devices, remarks, found = named_devices(gpus), list[str](), list[Prediction]()
    answer = predictor(engine, devices)
    refusal: LorafaProfError | None = None
    for values in itertools.product(*axes.values()):
        here = dict(zip(axes, values, strict=True))
        question = asked(model, method, config, {**fixed, **here}, engine=engine, trust=trust_remote_code)
        try:
            answers = for_each_method(question.methods, lambda name: answer(question.run(name)), remarks.append)  # noqa: B023 - called at once
        except LorafaProfError as error:
            refusal = error
            remarks.append(f"{', '.join(f'{k} {v}' for k, v in here.items()) or 'all'} is left out: {error}")
            continue
        found += question.files.on(answers)
    if not found and refusal is not None:
        raise refusal
    return Sweep(found, tuple(axes), tuple(dict.fromkeys(remarks)))


def _split(options: Mapping[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the options that vary with their values, and those that do not.

    Raises:
        BadInputError: an axis without a value, or too many combinations.
    """
    axes, fixed, number = dict[str, list[Any]](), dict[str, Any](), 1
    for name, value in options.items():
        if name in _LISTS or not isinstance(value, (list, tuple, range)):
            fixed[name] = value
            continue
        if not len(value):
            raise BadInputError(f"{name} has no value")
        number *= len(value)
        if number > MOST:
            raise BadInputError(f"more than {MOST:,} combinations: lorafa-prof sweep is for so many")
        axes[name] = list(dict.fromkeys(value))
    return axes, fixed
