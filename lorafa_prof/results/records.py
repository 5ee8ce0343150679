"""One line a result: what was asked, by which engine, and the memory. What figures over many results are drawn from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.results.figures import Memory
from lorafa_prof.results.measurement import Measurement
from lorafa_prof.results.prediction import Fit, Prediction
from lorafa_prof.specs import METHODS, RunSpec

Setting = str | int | float | bool | None

#: The engine of what was observed.
OBSERVED = "observed"
_WHOLE = ("bs", "seq", "rank", "accumulation", "gpus")
_TEXTS = ("model", "method")
#: Columns without which a table is no sweep.
NEEDED = ("model", "method", "engine", "bs", "seq", "rank", "peak_allocated_bytes")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A prediction or a measurement, by its settings and its memory alone."""

    engine: str
    """"analytic", "simulate", or "observed"."""
    settings: Mapping[str, Setting]
    """What decides the memory: "model", "method", "bs", "seq", "rank" and whatever else its source tells."""
    memory: Memory | None
    """None: a run that did not come as far."""
    fit: tuple[Fit, ...] = ()
    outcome: str = "ok"
    process: int = 0
    """Rank of the process, of several."""
    device: str | None = None
    """On which it was measured; None of a prediction, whose cards are in `fit`."""
    tokens_per_s: float | None = None
    """As measured."""

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.settings["method"])

    def position(self, name: str) -> float | None:
        """Return a number among the settings; None where it is not known."""
        value = self.settings.get(name)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def number(self, name: str) -> int | None:
        """Return a whole number among the settings; None where it is not known."""
        value = self.settings.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def settings_of(run: RunSpec) -> dict[str, Setting]:
    """Return the settings of a run, automatic choices made, under the names that tables give them."""
    method = run.method
    return {
        "model": run.model.name, "method": method.name, "bs": run.bs, "seq": run.seq, "rank": method.rank,
        "targets": ",".join(method.targets), "layers": run.adapted_layers, "dropout": method.dropout,
        "dtype": run.dtype, "amp": run.amp,
        "adapter_dtype": run.resolved_adapter_dtype, "attn": run.attn, "checkpointing": run.checkpointing,
        "optimizer": run.resolved_optimizer, "quant": run.resolved_quant, "prepare_kbit": run.prepare_kbit,
        "loss": run.loss, "accumulation": run.accumulation, "clip": run.clip, "gpus": run.gpus, "shard": run.shard,
        "keep": ",".join(run.keep),
    }  # fmt: skip


def record_of_prediction(prediction: Prediction) -> Record:
    """Return a prediction as a record."""
    return Record(
        engine=prediction.engine, settings=settings_of(prediction.run), memory=prediction.memory, fit=prediction.fit
    )


def record_of_measurement(measurement: Measurement) -> Record | None:
    """Return a measurement as a record; None for a script of the user's own, whose settings nobody knows."""
    if measurement.run is None:
        return None
    name = measurement.environment.get("device")
    settings = settings_of(measurement.run) | {"gpus": max(measurement.run.gpus, measurement.world_size)}
    return Record(
        engine=OBSERVED, settings=settings, memory=measurement.memory, outcome=measurement.outcome,
        process=measurement.rank, device=None if name is None else str(name),
        tokens_per_s=measurement.throughput.tokens_per_s,
    )  # fmt: skip


# -- tables ----------------------------------------------------------------------------------------------------------

_MEMORY = tuple(
    field.name for field in fields(Memory) if field.name.endswith("_bytes") and field.name != "context_bytes"
)
_FIT = ("device", "capacity_bytes", "context_bytes", "fits", "headroom_bytes", "max_bs")
_TIMES = ("step_s", "tokens_per_s", "mfu", "mfu_6n", "hfu")


def records_in_csv(text: str) -> list[Record]:
    """Return the records of a table of predictions, as `sweep` and `predict --format csv` write it.

    An empty field is a figure that is not known.

    Raises:
        BadInputError: another table, or a line that is none of a prediction; the text says which.
    """
    if not text.strip():
        raise BadInputError("the file is empty: no table of predictions")
    try:
        rows = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
        missing = [name for name in NEEDED if name not in (rows.fieldnames or ())]
        if missing:
            raise BadInputError(f"no table of predictions: it has no column {missing[0]}")
        return [_row_of_text(row, rows.line_num) for row in rows]
    except csv.Error as error:
        raise BadInputError(f"no table: {error}") from error


def records_in_rows(rows: object) -> list[Record]:
    """Return the records of the rows that `sweep` writes as JSON: objects with the columns of its table.

    Raises:
        BadInputError: something else; the text says which row.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInputError("rows must be a list of objects")
    missing = [name for row in rows for name in NEEDED if name not in row]
    if missing:
        raise BadInputError(f"no rows of predictions: one has no {missing[0]}")
    return [
        _record({name: None if value is None else _spelled(value) for name, value in row.items()}, f"rows[{number}]")
        for number, row in enumerate(rows)
    ]


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row_of_text(row: Mapping[Any, Any], line: int) -> Record:
    if None in row or None in row.values():
        raise BadInputError(f"line {line} has not as many fields as the header")
    return _record({name: _plain(value) for name, value in row.items()}, f"line {line}")


def _record(known: Mapping[str, str | None], where: str) -> Record:
    try:
        engine, texts = _text(known["engine"]), {name: _text(known[name]) for name in _TEXTS}
        if texts["method"] not in METHODS:
            raise ValueError(f"an unknown method {texts['method'][:40]!r}")
        whole = {name: _positive(known[name], name) for name in _WHOLE if known.get(name) is not None}
        figures: dict[str, Any] = {name: _integer(known.get(name), name) for name in _MEMORY}
        fit = (_fit(known),) if known.get("device") is not None and known.get("error") is None else ()
    except ValueError as error:
        raise BadInputError(f"{where}: {error}") from error
    left = set(_MEMORY) | set(_FIT) | _RESULTS
    settings: dict[str, Any] = {n: _typed(n, v) for n, v in known.items() if n not in left} | texts | whole
    is_known = figures["peak_allocated_bytes"] is not None
    memory = Memory(**figures, context_bytes=None, peak_moment=known.get("peak_moment") or "") if is_known else None
    return Record(engine=engine, settings=settings, memory=memory, fit=fit)


#: Columns that are neither settings nor memory.
_RESULTS = {
    "engine", "peak_moment", "model_flops", "executed_flops", "parameters_total", "parameters_trainable",
    "communication_bytes", "verdict", "error", "note", "version", "versions",
    *_TIMES, "profile", "why_no_time",
}  # fmt: skip


def _plain(value: str) -> str | None:
    """Return a field's text without the apostrophe that keeps spreadsheets from running it; None where it is empty."""
    return (value[1:] if value[:2] in ("'=", "'+", "'-", "'@") else value) or None


def _typed(name: str, value: str | None) -> Setting:
    """Return a setting as runs have it: a number or a truth where it is one."""
    if value is None or name not in ("amp", "clip", "dropout"):
        return value
    if name != "dropout":
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return float(value)
    except ValueError:
        return value


def _text(value: str | None) -> str:
    if value is None:
        raise ValueError("a model, a method or an engine is missing")
    return value


def _positive(value: str | None, name: str) -> int | None:
    number = _integer(value, name)
    if number is not None and number < 1:
        raise ValueError(f"{name} is {number}, and must be at least 1")
    return number


def _integer(value: str | None, name: str) -> int | None:
    if value is None:
        return None
    if not value.removeprefix("-").isdecimal() or not value.isascii() or len(value) > 40:
        raise ValueError(f"{name} is {value[:40]!r}, and no whole number")
    return int(value)


def _fit(known: Mapping[str, str | None]) -> Fit:
    fits = {"true": True, "false": False}.get((known.get("fits") or "").lower())
    numbers = {
        name: _integer(known.get(name), name)
        for name in ("capacity_bytes", "context_bytes", "headroom_bytes", "max_bs")
    }
    if fits is None or numbers["capacity_bytes"] is None or numbers["headroom_bytes"] is None:
        raise ValueError("a device without capacity, verdict and headroom")
    times = {name: _rate(known.get(name), name) for name in _TIMES}
    said = {name: known.get(name) for name in ("profile", "why_no_time")}
    return Fit(device=str(known["device"]), fits=fits, **numbers, **times, **said)  # type: ignore[arg-type]


def _rate(value: str | None, name: str) -> float | None:
    """Return a time or a rate.

    Raises:
        ValueError: not a number above 0.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {value[:40]!r}, and no number above 0")
    return number
