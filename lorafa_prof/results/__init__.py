"""What the engines answer, as plain data: JSON in and out, with a schema version.

A figure that an engine does not produce is None (null), never 0. Bytes and FLOPs are integers, times seconds.
"""

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
from lorafa_prof.results.threshold import Axis, Change, Edge, Threshold, along, thresholds_to_json, value_along

__all__ = [
    "PART_FIELDS",
    "SCHEMA",
    "Axis",
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
