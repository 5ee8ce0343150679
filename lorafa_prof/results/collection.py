"""What several files hold together: the material of figures and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorafa_prof.results.comparison import Comparison
from lorafa_prof.results.measurement import Measurement
from lorafa_prof.results.prediction import Prediction
from lorafa_prof.results.records import Record, record_of_measurement, record_of_prediction
from lorafa_prof.results.threshold import Threshold


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Results of any kinds, in the order of the files."""

    measurements: tuple[Measurement, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    """Those that were saved, and those of the measurements above with the predictions above of the same run."""
    thresholds: tuple[Threshold, ...] = ()
    rows: tuple[Record, ...] = ()
    """Lines of tables of predictions."""
    cards: Mapping[str, str] = field(default_factory=dict)
    """What the cards are called in predictions that measurements give by their full names."""
    compared: tuple[Measurement | Prediction, ...] = ()
    """Which of the measurements and predictions are in a comparison."""

    def unpaired_measurements(self) -> list[Measurement]:
        """Return the measurements that no comparison holds."""
        return [
            measurement
            for measurement in self.measurements
            if not self._is_compared(measurement) and not any(_is_of(c, measurement) for c in self.comparisons)
        ]

    def unpaired_predictions(self) -> list[Prediction]:
        """Return the predictions that no comparison holds."""
        return [prediction for prediction in self.predictions if not self._is_compared(prediction)]

    def _is_compared(self, result: Measurement | Prediction) -> bool:
        return any(result is other for other in self.compared)

    def records(self) -> list[Record]:
        """Return every prediction and measurement as a record, each once.

        Measurements on several devices have the device among their settings.
        """
        observed = [record_of_measurement(measurement) for measurement in self.measurements]
        devices = [str(measurement.environment.get("device")) for measurement in self.measurements]
        if len(set(devices)) > 1:
            observed = [
                record and replace(record, settings={**record.settings, "device": device})
                for record, device in zip(observed, devices, strict=True)
            ]
        found: Sequence[Record | None] = [
            *map(record_of_prediction, self.predictions), *self.rows, *observed,
        ]  # fmt: skip
        return [record for record in found if record is not None]


def _is_of(comparison: Comparison, measurement: Measurement) -> bool:
    """Return whether a comparison, saved earlier, is of this very measurement."""
    row = comparison.row("peak_allocated_bytes", "memories")
    peak = None if measurement.memory is None else measurement.memory.peak_allocated_bytes
    return (
        (comparison.run, comparison.command, comparison.rank, comparison.outcome)
        == (measurement.run, measurement.command, measurement.rank, measurement.outcome)
        and comparison.environment == measurement.environment
        and (None if row is None else row.observed) == peak
    )
