"""What a page of results says: verdicts first, then what was asked, every table, and what the figures rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lorafa_prof.reports import (
    comparison as comparisons,
    measurement as measurements,
    oom as thresholds,
    prediction as predictions,
)
from lorafa_prof.reports.figures.naming import labels_of, short, title_of
from lorafa_prof.reports.oom import AXIS_NAMES
from lorafa_prof.reports.prediction import largest_words, method_name
from lorafa_prof.reports.table import Cell, Column, Scalar, Table, Tone
from lorafa_prof.results import Comparison, Fit, Measurement, Prediction, Threshold
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.prediction import LARGEST_SEARCHED
from lorafa_prof.results.records import Record, Setting, settings_of
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import format_bytes

Row = tuple[Cell | Scalar, ...]

_OF_ADAPTERS = ("rank", "targets", "dropout")
#: Rows of a sweep that are shown; a page is for people.
MOST_ROWS = 200
#: Columns of one table of measurements.
MOST_COLUMNS = 10
#: Verdicts that are shown.
MOST_VERDICTS = 400


@dataclass(frozen=True, kw_only=True)
class Told:
    """A statement, and whose it is where not all say it."""

    text: str
    whose: str


def _seen(found: Collection) -> list[Measurement | Comparison]:
    return [*found.measurements, *found.comparisons]


def _said(found: Collection) -> list[Prediction | Threshold]:
    return [*found.predictions, *found.thresholds]


# -- verdicts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """One row, before it is known what tells its run from the others."""

    verdict: Cell
    settings: Mapping[str, Setting] | None
    """None for a script of the user's own."""
    script: str = ""
    rank: str = ""
    where: str | None = None
    by: str
    detail: str


def verdict_table(found: Collection) -> Table:
    """Return the verdicts of all results, one a row: whether it fits, how it ended, how far a prediction missed."""
    verdicts = [*_of_thresholds(found), *_of_measurements(found), *_of_comparisons(found), *_of_predictions(found)]
    labels = iter(labels_of([verdict.settings for verdict in verdicts if verdict.settings is not None]))
    rows: list[Row] = []
    for each in verdicts:
        name = each.script if each.settings is None else next(labels)
        rows.append((each.verdict, ", ".join(filter(None, [name, each.rank])), each.where, each.by, each.detail))
    left = len(rows) - MOST_VERDICTS
    common = title_of([verdict.settings for verdict in verdicts if verdict.settings is not None])
    return Table(
        title=f"Verdicts: {common}" if common else "Verdicts",
        columns=(
            Column(name="verdict"), Column(name="run"), Column(name="where"), Column(name="by"), Column(name="detail"),
        ),
        rows=tuple(rows[:MOST_VERDICTS]),
        notes=(f"{left} more verdicts are not shown.",) if left > 0 else (),
    )  # fmt: skip


def headline(found: Collection) -> str:
    """Return the verdicts in a sentence: how many of each."""
    verdicts = [*_of_thresholds(found), *_of_measurements(found), *_of_comparisons(found), *_of_predictions(found)]
    counts = Counter(each.verdict.text.partition(":")[0] for each in verdicts)
    counts += Counter(f"of a sweep's rows: {_fits(fit).text}" for record in found.rows for fit in record.fit)
    return ", ".join(f"{words} ({number:,})" for words, number in counts.items())


def _of_thresholds(found: Collection) -> Iterator[_Verdict]:
    for t in found.thresholds:
        axis = AXIS_NAMES[t.axis]
        words = f"largest {axis}: {largest_words(t.max, t.limit)}" if t.max else f"no {axis} fits"
        yield _Verdict(
            verdict=Cell(text=words, value=t.max, tone="good" if t.max else "bad"),
            settings={name: value for name, value in settings_of(t.run).items() if name != t.axis},
            where=_card(t.device, t.capacity_bytes), by=t.engine, detail=_threshold_detail(t),
        )  # fmt: skip


def _threshold_detail(t: Threshold) -> str:
    said = []
    if t.at_max is not None and t.at_max.headroom_bytes is not None:
        said.append(f"{format_bytes(t.at_max.headroom_bytes)} left there")
    if t.at_first_oom is not None and t.at_first_oom.headroom_bytes is not None:
        said.append(f"{t.first_oom:,} lacks {format_bytes(-t.at_first_oom.headroom_bytes)}")
    if t.at_max is not None and t.at_max.tokens_per_s is not None:
        said.append(_speed(t.at_max.tokens_per_s, t.at_max.mfu))
    if t.first_oom is None:
        said.append(f"no more was looked at: {t.limited_by}")
    return "; ".join(said)


def _speed(tokens_per_s: float, mfu: float | None) -> str:
    return f"{tokens_per_s:,.0f} tokens/s" + ("" if mfu is None else f" at {mfu:.1%} MFU")


def _of_measurements(found: Collection) -> Iterator[_Verdict]:
    for m in found.measurements:
        words = {"ok": "ran", "oom": "out of memory"}.get(m.outcome, m.outcome)
        if m.violations:
            words += "; promises not kept"
        tone: Tone = "bad" if m.violations or m.outcome != "ok" else "good"
        yield _Verdict(
            verdict=Cell(text=words, value=m.outcome, tone=tone), **_whose(m), by="measured",
            detail=measurements.outcome_line(m),
        )  # fmt: skip


def _of_comparisons(found: Collection) -> Iterator[_Verdict]:
    for comparison in found.comparisons:
        row = comparison.row("peak_allocated_bytes", "memories")
        for number, side in enumerate(comparison.sides):
            error = None if row is None else row.relative_error(number)
            verdict = side.verdict
            said = [] if error is None else [_missed(error)]
            if verdict is not None and verdict.fits is not None:
                fits = "fits" if verdict.fits else "does not fit"
                said.append(f"said that it {fits} in {format_bytes(verdict.capacity_bytes)}")
            yield _Verdict(
                verdict=_agreement(None if verdict is None else verdict.agrees, error), **_whose(comparison),
                by=side.engine, detail="; ".join(said) or "nothing to compare",
            )  # fmt: skip


def _missed(error: float) -> str:
    """Return an error of peak allocated in words; one that is there is never shown as none."""
    if not error:
        return "peak allocated exactly as observed"
    share = f"{abs(error):.2%}" if abs(error) >= 0.00005 else "less than 0.01%"
    return f"peak allocated {share} {'above' if error > 0 else 'below'} what was observed"


def _whose(seen: Measurement | Comparison) -> dict[str, Any]:
    """Return what was measured, and where."""
    return {
        "settings": None if seen.run is None else settings_of(seen.run),
        "script": short(" ".join(seen.command) or "a script"),
        "rank": f"process {seen.rank} of {seen.world_size}" if seen.world_size > 1 else "",
        "where": str(seen.environment.get("device") or "a device without a name"),
    }


def _agreement(agrees: bool | None, error: float | None) -> Cell:
    if agrees is None:
        return Cell(text="compared" if error is not None else "not comparable")
    words = "verdict came true" if agrees else "verdict did not come true"
    return Cell(text=words, value=agrees, tone="good" if agrees else "bad")


def _of_predictions(found: Collection) -> Iterator[_Verdict]:
    for p in found.predictions:
        peak = f"peak allocated {format_bytes(p.memory.peak_allocated_bytes)}, in {p.memory.peak_moment}"
        whose: dict[str, Any] = {"settings": settings_of(p.run), "by": p.engine}
        for fit in p.fit:
            yield _Verdict(
                verdict=_fits(fit), **whose, where=_card(fit.device, fit.capacity_bytes),
                detail="; ".join(filter(None, [_headroom(fit, p.engine), peak, _fast(fit)])),
            )  # fmt: skip
        if not p.fit:
            yield _Verdict(verdict=Cell(text="no card asked about"), **whose, detail=peak)


def _fast(fit: Fit) -> str:
    return "" if fit.tokens_per_s is None else _speed(fit.tokens_per_s, fit.mfu)


def _fits(fit: Fit) -> Cell:
    return Cell(text="fits" if fit.fits else "does not fit", value=fit.fits, tone="good" if fit.fits else "bad")


def _headroom(fit: Fit, engine: str) -> str:
    room = f"{format_bytes(abs(fit.headroom_bytes))} {'left' if fit.fits else 'over'}"
    if fit.max_bs is None:
        return room
    return f"{room}, largest batch {largest_words(fit.max_bs, LARGEST_SEARCHED.get(engine))}"


def _card(device: str, capacity: int) -> str:
    return f"{device} ({format_bytes(capacity)})"


# -- what was asked --------------------------------------------------------------------------------------------------


def asked_lines(found: Collection) -> list[str]:
    """Return the configurations in words, each once, with the methods and who answered."""
    asked: dict[str, _Asked] = {}

    def note(run: RunSpec, who: str, axis: str = "") -> None:
        settings = settings_of(run)
        entry = asked.setdefault(title_of([settings], (*_OF_ADAPTERS, axis)), _Asked())
        entry.methods[method_name(run.method.name)] = None
        entry.by[who] = None
        if run.method.name != "full":
            entry.adapters[title_of([{name: settings[name] for name in _OF_ADAPTERS if name != axis}])] = None

    for p in found.predictions:
        note(p.run, p.engine)
    for m in _seen(found):
        if m.run is not None:
            note(m.run, "measured")
    for t in found.thresholds:
        note(t.run, f"largest {AXIS_NAMES[t.axis]} by {t.engine}", t.axis)
    lines = [f"{what}: {entry.words()}" for what, entry in asked.items()]
    scripts = [m.command for m in _seen(found) if m.run is None]
    lines += [
        f"a script, measured: {short(' '.join(script), 200) or 'without a name'}" for script in dict.fromkeys(scripts)
    ]
    if found.rows:
        models = dict.fromkeys(str(record.settings["model"]) for record in found.rows)
        methods = dict.fromkeys(method_name(record.method) for record in found.rows)
        lines.append(f"a sweep of {len(found.rows):,} rows: {', '.join(models)}; {', '.join(methods)}")
    return lines


@dataclass
class _Asked:
    """What was asked of one configuration, in the order in which it turned up."""

    methods: dict[str, None] = field(default_factory=dict)
    adapters: dict[str, None] = field(default_factory=dict)
    by: dict[str, None] = field(default_factory=dict)

    def words(self) -> str:
        adapters = f" ({' / '.join(self.adapters)})" if self.adapters else ""
        return f"{', '.join(self.methods)}{adapters}; {', '.join(self.by)}"


# -- tables ----------------------------------------------------------------------------------------------------------


def result_tables(found: Collection) -> list[Table]:
    """Return the tables of all results: thresholds with their advice, predictions and measurements side by side, each
    comparison.
    """
    tables = [table for group in _alike_thresholds(found.thresholds) for table in _threshold_tables(group)]
    tables += [predictions.comparison_table(group) for group in _alike(found.predictions)]
    groups: dict[object, list[Measurement]] = {}
    for m in found.measurements:
        groups.setdefault((m.environment.get("device"), m.run and m.run.model.name), []).append(m)
    for group in groups.values():
        tables += [
            measurements.measurement_table(group[start : start + MOST_COLUMNS])
            for start in range(0, len(group), MOST_COLUMNS)
        ]
    tables += [comparisons.comparison_table(comparison) for comparison in found.comparisons]
    return [*tables, *([_rows_table(found.rows)] if found.rows else [])]


def _alike(found: Sequence[Prediction]) -> list[list[Prediction]]:
    """Return the predictions that differ in the method alone together."""
    groups: dict[object, list[Prediction]] = {}
    for p in found:
        cards = tuple((fit.device, fit.capacity_bytes) for fit in p.fit)
        groups.setdefault((_who(p), _but_the_method(p.run), cards), []).append(p)
    return list(groups.values())


def _alike_thresholds(found: Sequence[Threshold]) -> list[list[Threshold]]:
    """Return the thresholds that differ in card and method alone together."""
    groups: dict[object, list[Threshold]] = {}
    for t in found:
        groups.setdefault((_who(t), t.axis, _but_the_method(t.run, t.axis)), []).append(t)
    return list(groups.values())


def _who(said: Prediction | Threshold) -> object:
    return said.engine, tuple(sorted(said.versions.items()))


def _but_the_method(run: RunSpec, axis: str = "") -> object:
    """Return all that a run is but the method's name, and what an axis leaves open."""
    values = {each.name: getattr(run, each.name) for each in fields(run) if each.name not in ("model", "method")}
    values |= {each.name: getattr(run.method, each.name) for each in fields(run.method) if each.name != "name"}
    return run.model.name, tuple(value for name, value in values.items() if name != axis)


def _threshold_tables(group: Sequence[Threshold]) -> list[Table]:
    return thresholds.all_tables(group)


_TIME_COLUMNS = (
    Column(name="step time, s", justify="right"), Column(name="tokens/s", justify="right"),
    Column(name="MFU", justify="right"),
)  # fmt: skip


def _time_cells(fit: Fit | None) -> Row:
    step, tokens, mfu = (None, None, None) if fit is None else (fit.step_s, fit.tokens_per_s, fit.mfu)
    return (
        Cell(text="-" if step is None else f"{step:.3g}", value=step),
        Cell(text="-" if tokens is None else f"{tokens:,.0f}", value=tokens),
        Cell(text="-" if mfu is None else f"{mfu:.1%}", value=mfu),
    )


def _rows_table(rows: Sequence[Record]) -> Table:
    shown = rows[:MOST_ROWS]
    names = labels_of([record.settings for record in shown])
    timed = any(fit.step_s is not None for record in shown for fit in record.fit)
    body: list[Row] = []
    for name, record in zip(names, shown, strict=True):
        peak = None if record.memory is None else record.memory.peak_allocated_bytes
        fit = record.fit[0] if record.fit else None
        body.append(
            (name, record.engine, Cell(text=format_bytes(peak), value=peak, tone="strong"),
             None if fit is None else _card(fit.device, fit.capacity_bytes), None if fit is None else _fits(fit),
             None if fit is None else _headroom(fit, record.engine), *(_time_cells(fit) if timed else ()))
        )  # fmt: skip
    common = title_of([record.settings for record in shown])
    notes = (f"The first {MOST_ROWS:,} of {len(rows):,} rows.",) if len(rows) > MOST_ROWS else ()
    return Table(
        title=f"Sweep: {common}" if common else "Sweep",
        columns=(
            Column(name="run"), Column(name="engine"), Column(name="peak allocated", justify="right"),
            Column(name="card"), Column(name="verdict"), Column(name="room"), *(_TIME_COLUMNS if timed else ()),
        ),
        rows=tuple(body),
        notes=notes,
    )  # fmt: skip


# -- what it rests on ------------------------------------------------------------------------------------------------


def environments(found: Collection) -> list[tuple[str, dict[str, str]]]:
    """Return the versions and environments, each once, with whose they are."""
    blocks: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for whose, entries in _environments(found):
        names = blocks.setdefault(tuple(entries.items()), [])
        if whose not in names:
            names.append(whose)
    return [(", ".join(names), dict(entries)) for entries, names in blocks.items() if entries]


def _environments(found: Collection) -> Iterator[tuple[str, dict[str, str]]]:
    for p in _said(found):
        yield f"engine {p.engine}", {name: version for name, version in p.versions.items() if name != "engine"}
    for m in _seen(found):
        where = {name: _plain(value) for name, value in m.environment.items() if value is not None}
        yield "measured", dict(m.versions) | where
    for comparison in found.comparisons:
        for side in comparison.sides:
            yield f"engine {side.engine}", {name: v for name, v in side.versions.items() if name != "engine"}


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return str(value)


def statements(found: Collection, field: Literal["assumptions", "unmodelled"]) -> list[Told]:
    """Return the assumptions, or what is not modelled, each once, with whose it is where not all say it."""
    held: dict[str, dict[str, None]] = {}
    everyone: dict[str, None] = {}
    for whose, lines in _speakers(found, field):
        everyone[whose] = None
        for line in lines:
            held.setdefault(line, {})[whose] = None
    return [
        Told(text=line, whose="" if len(names) == len(everyone) else ", ".join(names)) for line, names in held.items()
    ]


def _speakers(found: Collection, field: str) -> Iterator[tuple[str, Sequence[str]]]:
    for each in _said(found):
        yield f"{method_name(each.run.method.name)}, {each.engine}", getattr(each, field)
    for seen in _seen(found):
        name = "a script" if seen.run is None else method_name(seen.run.method.name)
        yield f"{name}, measured", getattr(seen, field)
        if isinstance(seen, Comparison):
            for side in seen.sides:
                yield f"{name}, {side.engine}", getattr(side, field)
