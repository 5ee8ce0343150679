"""Thresholds as tables: one row a device and method, and what would move each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorafa_prof.reports.prediction import PART_NAMES, joined_lines, largest_words, method_name, moment_cell, run_title
from lorafa_prof.reports.table import Cell, Column, Scalar, Table
from lorafa_prof.results import PART_FIELDS, Axis, Change, Edge, Threshold
from lorafa_prof.units import format_bytes

#: Thresholds whose advice is shown as a table each; of more the first line each is.
MOST_IN_FULL = 2

Row = tuple[Cell | Scalar, ...]

AXIS_NAMES: dict[Axis, str] = {"bs": "batch", "seq": "sequence", "rank": "rank"}


def all_tables(thresholds: Sequence[Threshold]) -> list[Table]:
    """Return all that is told of thresholds: how much fits, how fast that is, what would make the next one fit."""
    return [threshold_table(thresholds), *time_tables(thresholds), *advice_tables(thresholds)]


def threshold_table(thresholds: Sequence[Threshold]) -> Table:
    """Return the table that people read: the largest that fits, the margin there, and what the next one lacks."""
    axis = AXIS_NAMES[thresholds[0].axis]
    starts = [n for n, t in enumerate(thresholds) if n and t.device != thresholds[n - 1].device]
    return Table(
        title=f"largest {axis} that fits: {run_title(thresholds[0].run, thresholds[0].axis)}",
        columns=(
            Column(name="GPU"), Column(name="memory", justify="right", key="capacity_bytes"), Column(name="method"),
            Column(name=f"largest {axis}", justify="right"), Column(name="left", justify="right"),
            Column(name="next lacks", justify="right"), Column(name="its peak in"), Column(name="mostly"),
        ),
        rows=tuple(_row(t) for t in thresholds),
        sections=tuple(starts),
        notes=_notes(thresholds),
        keys=3,
    )  # fmt: skip


def _row(t: Threshold) -> Row:
    left = t.at_max.headroom_bytes if t.at_max else None
    lacks = t.at_first_oom.headroom_bytes if t.at_first_oom else None
    return (
        t.device,
        _size(t.capacity_bytes),
        method_name(t.method),
        Cell(text=largest_words(t.max, t.limit), value=t.max, tone="strong" if t.max else "bad"),
        _size(left),
        _size(None if lacks is None else -lacks),
        _moment(t.at_first_oom),
        _part(t.at_first_oom),
    )


def time_tables(thresholds: Sequence[Threshold]) -> list[Table]:
    """Return a table of how fast the largest that fits trains; none where nothing fits that was to be timed."""
    timed = [t for t in thresholds if t.why_no_time is not None or (t.at_max is not None and t.at_max.step_s)]
    if not timed:
        return []
    axis = AXIS_NAMES[timed[0].axis]
    starts = [n for n, t in enumerate(timed) if n and t.device != timed[n - 1].device]
    return [
        Table(
            title=f"how fast the largest {axis} trains: {run_title(timed[0].run, timed[0].axis)}",
            columns=(
                Column(name="GPU"), Column(name="method"), Column(name=axis, justify="right"),
                Column(name="step time, s", justify="right", key="step_s"), Column(name="tokens/s", justify="right"),
                Column(name="MFU", justify="right"), Column(name="profile"),
            ),
            rows=tuple(_time_row(t) for t in timed),
            sections=tuple(starts),
            notes=("By the step's timeline in closed form.", *_each(timed, _no_time)),
            keys=2,
        )
    ]  # fmt: skip


def _time_row(t: Threshold) -> Row:
    step, tokens, mfu = (t.at_max.step_s, t.at_max.tokens_per_s, t.at_max.mfu) if t.at_max else (None, None, None)
    return (
        t.device,
        method_name(t.method),
        Cell(text=f"{t.max:,}", value=t.max),
        Cell(text="-" if step is None else f"{step:.3g}", value=step),
        Cell(text="-" if tokens is None else f"{tokens:,.0f}", value=tokens),
        Cell(text="-" if mfu is None else f"{mfu:.1%}", value=mfu),
        t.profile,
    )


def _no_time(t: Threshold) -> str | None:
    return None if t.why_no_time is None else f"{t.device}: {t.why_no_time}"


def advice_tables(thresholds: Sequence[Threshold]) -> list[Table]:
    """Return for each threshold what would make the next one fit; for many thresholds the first answer of each."""
    advised = [t for t in thresholds if t.advice]
    if len(advised) > MOST_IN_FULL:
        return [_first_advice(advised)]
    return [_advice_table(t) for t in advised]


def _advice_table(t: Threshold) -> Table:
    axis = AXIS_NAMES[t.axis]
    return Table(
        title=f"{t.device}, {method_name(t.method)}: what would make {axis} {t.first_oom:,} fit",
        columns=(
            Column(name="change"), Column(name="options"), Column(name="saved", justify="right"),
            Column(name="fits"), Column(name=f"largest {axis}", justify="right"),
            *_cost_columns(t.advice), Column(name="changes the result"),
        ),
        rows=tuple(
            (c.what, c.options, _size(c.saved_bytes), _fits(c), _new_max(t, c), *_costs(c, t.advice), c.alters or "no")
            for c in t.advice
        ),
        sections=tuple(n for n, c in enumerate(t.advice) if n and c.fits != t.advice[n - 1].fits),
        notes=_advice_notes(t),
    )  # fmt: skip


def _first_advice(thresholds: Sequence[Threshold]) -> Table:
    axis, changes = AXIS_NAMES[thresholds[0].axis], [c for t in thresholds for c in t.advice]
    starts = [n for n, t in enumerate(thresholds) if n and t.device != thresholds[n - 1].device]
    return Table(
        title=f"what would make the next {axis} fit at the least {'time' if _by_time(changes) else 'arithmetic'}",
        columns=(
            Column(name="GPU"), Column(name="method"), Column(name=f"next {axis}", justify="right"),
            Column(name="change"), Column(name="fits"), *_cost_columns(changes), Column(name="changes the result"),
        ),
        rows=tuple(
            (t.device, method_name(t.method), t.first_oom, c.what, _fits(c), *_costs(c, changes), c.alters or "no")
            for t in thresholds
            for c in t.advice[:1]
        ),
        sections=tuple(starts),
        notes=(*_cost_notes(changes), "All changes, with what they save: in JSON, or for a single card and method."),
        keys=2,
    )  # fmt: skip


_ARITHMETIC = "FLOPs: executed a token, as a share of those without the change."
_UNTIMED = "Arithmetic, not time: no step time is known here."
_TIME = "Time: of a token, as a share of that without the change, by the step's timeline in closed form."


def _by_time(changes: Sequence[Change]) -> bool:
    return any(c.time_ratio is not None for c in changes)


def _cost_columns(changes: Sequence[Change]) -> tuple[Column, ...]:
    time = Column(name="time", justify="right", key="time_ratio")
    flops = Column(name="FLOPs", justify="right", key="flops_ratio")
    return (time if _by_time(changes) else flops,)


def _costs(change: Change, changes: Sequence[Change]) -> Row:
    return (_ratio(change.time_ratio if _by_time(changes) else change.flops_ratio),)


def _cost_notes(changes: Sequence[Change]) -> tuple[str, ...]:
    return (_TIME if _by_time(changes) else f"{_ARITHMETIC} {_UNTIMED}",)


def _advice_notes(t: Threshold) -> tuple[str, ...]:
    told = (f"{c.what[:1].upper()}{c.what[1:]}: {c.note}." for c in t.advice if c.note is not None)
    return (f"Each change alone is judged by the engine {t.engine}.", *_cost_notes(t.advice), *told)


def _fits(change: Change) -> Cell:
    return Cell(text="yes" if change.fits else "no", value=change.fits, tone="good" if change.fits else "bad")


def _new_max(t: Threshold, change: Change) -> Cell:
    return Cell(text="-" if change.max is None else largest_words(change.max, t.limit), value=change.max)


def _ratio(ratio: float | None) -> Cell:
    return Cell(text="-" if ratio is None else f"{ratio:.1%}", value=ratio)


def records_table(thresholds: Sequence[Threshold]) -> Table:
    """Return a flat table: one row a threshold, named as in JSON."""
    names = (
        "device", "method", "axis", "max", "first_oom", "engine", "model", "bs", "seq", "rank", "dtype",
        "adapter_dtype", "attn", "checkpointing", "optimizer", "quant", "capacity_bytes", "context_bytes", "limit",
        "limited_by", "fails_from", "peak_allocated_bytes_at_max", "peak_reserved_bytes_at_max",
        "peak_device_bytes_at_max", "peak_moment_at_max", "headroom_bytes_at_max", "shortfall_bytes", "limiting_part",
        "advice", "advice_fits", "advice_flops_ratio", "step_s_at_max", "tokens_per_s_at_max", "mfu_at_max", "profile",
        "advice_time_ratio",
    )  # fmt: skip
    rows = tuple(_record(t, names) for t in thresholds)
    return Table(title="thresholds", columns=tuple(Column(name=n, key=n) for n in names), rows=rows)


def _record(t: Threshold, names: Sequence[str]) -> Row:
    run = t.run
    own = {
        "model": run.model.name, "bs": run.bs, "seq": run.seq, "rank": run.method.rank, "dtype": run.dtype,
        "adapter_dtype": run.resolved_adapter_dtype, "attn": run.attn, "checkpointing": run.checkpointing,
        "optimizer": run.resolved_optimizer, "quant": run.resolved_quant, t.axis: None,
    }  # fmt: skip
    first = t.advice[0] if t.advice else None
    advice: dict[str, Scalar] = {
        "advice": first.what if first else None, "advice_fits": first.fits if first else None,
        "advice_flops_ratio": first.flops_ratio if first else None,
        "advice_time_ratio": first.time_ratio if first else None,
    }  # fmt: skip
    data = t.to_json() | own | advice
    return tuple(data[name] for name in names)


# -- cells and notes -------------------------------------------------------------------------------------------------


def _size(nbytes: int | None) -> Cell:
    return Cell(text=format_bytes(nbytes), value=nbytes)


def _moment(edge: Edge | None) -> Cell | Scalar:
    return None if edge is None or edge.memory is None else moment_cell(edge.memory.peak_moment)


def _part(edge: Edge | None) -> Cell | Scalar:
    name = None if edge is None else edge.largest_part
    if name is None or edge is None or edge.memory is None:
        return None
    total = sum(getattr(edge.memory, part) or 0 for part in PART_FIELDS)
    size = getattr(edge.memory, name) or 0
    return Cell(text=f"{PART_NAMES[name]} {size / total:.0%}", value=name)


def _notes(thresholds: Sequence[Threshold]) -> tuple[str, ...]:
    first = thresholds[0]
    used = {name: version for t in thresholds for name, version in t.versions.items() if name != "engine"}
    versions = ", ".join(f"{name} {version}" for name, version in used.items())
    unknown = list(dict.fromkeys(t.device for t in thresholds if t.context_bytes is None))
    notes = [f"Engine {first.engine}, for {versions}."]
    notes += _each(thresholds, lambda t: f"Limit: {t.limited_by}" if t.first_oom is None else None)
    notes += _each(thresholds, _hole)
    if unknown:
        notes.append(f"CUDA context not known, and so not counted: {', '.join(unknown)}.")
    missing = "Not observed" if first.engine == "measure" else "Not modelled"
    lines = {
        "Assumed": _joined(thresholds, lambda t: t.assumptions),
        missing: _joined(thresholds, lambda t: t.unmodelled),
    }
    return (*notes, *(f"{word}: {text}." for word, text in lines.items() if text))


def _hole(t: Threshold) -> str | None:
    if t.fails_from is None:
        return None
    return f"{t.device}, {method_name(t.method)}: from {t.fails_from:,} on some below {t.max:,} do not fit"


def _each(thresholds: Sequence[Threshold], line: Callable[[Threshold], str | None]) -> list[str]:
    """Return what is said of single thresholds, each sentence once."""
    return [f"{text}." for text in dict.fromkeys(map(line, thresholds)) if text is not None]


def _joined(thresholds: Sequence[Threshold], lines: Callable[[Threshold], Sequence[str]]) -> str:
    return joined_lines([(method_name(t.method), lines(t)) for t in thresholds])
