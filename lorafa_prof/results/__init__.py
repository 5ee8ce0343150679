"""What the engines answer, as plain data: JSON in and out, with a schema version.

A figure that an engine does not produce is None (null), never 0. Bytes and FLOPs are integers, times seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafa_prof.results.axes import Axis, along, value_along
    from lorafa_prof.results.comparison import (
        Comparison,
        ItemDifference,
        Row,
        Section,
        Side,
        Unit,
        Verdict,
        VersionDifference,
        comparisons_to_json,
    )
    from lorafa_prof.results.documents import Result, results_in
    from lorafa_prof.results.figures import PART_FIELDS, SCHEMA, Memory, Throughput
    from lorafa_prof.results.lengths import BatchLengths
    from lorafa_prof.results.measurement import (
        Measurement,
        Outcome,
        PhaseMemory,
        Promise,
        Spread,
        StepTime,
        Stretch,
        measurements_to_json,
    )
    from lorafa_prof.results.plain import run_from_json, run_to_json
    from lorafa_prof.results.prediction import Fit, Prediction, predictions_to_json
    from lorafa_prof.results.threshold import Change, Edge, Threshold, thresholds_to_json

__all__ = [
    "PART_FIELDS",
    "SCHEMA",
    "Axis",
    "BatchLengths",
    "Change",
    "Comparison",
    "Edge",
    "Fit",
    "ItemDifference",
    "Measurement",
    "Memory",
    "Outcome",
    "PhaseMemory",
    "Prediction",
    "Promise",
    "Result",
    "Row",
    "Section",
    "Side",
    "Spread",
    "StepTime",
    "Stretch",
    "Threshold",
    "Throughput",
    "Unit",
    "Verdict",
    "VersionDifference",
    "along",
    "comparisons_to_json",
    "measurements_to_json",
    "predictions_to_json",
    "results_in",
    "run_from_json",
    "run_to_json",
    "thresholds_to_json",
    "value_along",
]

#: Where each name is defined. A kind of result is imported when it is first asked for: making its classes is a good
#: part of a start, and a prediction needs none of a measurement's.
_HOMES = {
    name: module
    for module, names in {
        "axes": "Axis along value_along",
        "comparison": "Comparison ItemDifference Row Section Side Unit Verdict VersionDifference comparisons_to_json",
        "documents": "Result results_in",
        "figures": "PART_FIELDS SCHEMA Memory Throughput",
        "lengths": "BatchLengths",
        "measurement": "Measurement Outcome PhaseMemory Promise Spread StepTime Stretch measurements_to_json",
        "plain": "run_from_json run_to_json",
        "prediction": "Fit Prediction predictions_to_json",
        "threshold": "Change Edge Threshold thresholds_to_json",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
