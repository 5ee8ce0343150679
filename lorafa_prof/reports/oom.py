"""Thresholds as tables: one row a device and method, and what would move each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorafa_prof.reports.prediction import PART_NAMES, method_name, moment_cell, run_title
from lorafa_prof.reports.table import Cell, Column, Scalar, Table
from lorafa_prof.results import PART_FIELDS, Axis, Edge, Threshold
from lorafa_prof.units import format_gib

Row = tuple[Cell | Scalar, ...]

AXIS_NAMES: dict[Axis, str] = {"bs": "batch", "seq": "sequence", "rank": "rank"}


def threshold_table(thresholds: Sequence[Threshold]) -> Table:
    """Return the table that people read: the largest that fits, the margin there, and what the next one lacks."""
    axis = AXIS_NAMES[thresholds[0].axis]
    starts = [n for n, t in enumerate(thresholds) if n and t.device != thresholds[n - 1].device]
    return Table(
        title=f"largest {axis} that fits: {run_title(thresholds[0].run, thresholds[0].axis)}",
        columns=(
            Column(name="GPU"), Column(name="GiB", justify="right"), Column(name="method"),
            Column(name=f"largest {axis}", justify="right"), Column(name="GiB left", justify="right"),
            Column(name="next lacks GiB", justify="right"), Column(name="its peak in"), Column(name="mostly"),
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
        Cell(text=f"{t.max:,}", value=t.max, tone="strong" if t.max else "bad"),
        _size(left),
        _size(None if lacks is None else -lacks),
        _moment(t.at_first_oom),
        _part(t.at_first_oom),
    )


def records_table(thresholds: Sequence[Threshold]) -> Table:
    """Return a flat table: one row a threshold, named as in JSON."""
    names = (
        "device", "method", "axis", "max", "first_oom", "engine", "model", "bs", "seq", "rank", "dtype",
        "adapter_dtype", "attn", "checkpointing", "optimizer", "quant", "capacity_bytes", "context_bytes", "limit",
        "limited_by", "fails_from", "peak_allocated_bytes_at_max", "peak_reserved_bytes_at_max",
        "peak_device_bytes_at_max", "peak_moment_at_max", "headroom_bytes_at_max", "shortfall_bytes", "limiting_part",
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
    data = t.to_json() | own
    return tuple(data[name] for name in names)


# -- cells and notes -------------------------------------------------------------------------------------------------


def _size(nbytes: int | None) -> Cell:
    return Cell(text=format_gib(nbytes), value=nbytes)


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
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items() if name != "engine")
    unknown = list(dict.fromkeys(t.device for t in thresholds if t.context_bytes is None))
    notes = [f"Engine {first.engine}, for {versions}."]
    notes += _each(thresholds, lambda t: t.limited_by if t.first_oom is None else None)
    notes += _each(thresholds, _hole)
    if unknown:
        notes.append(f"CUDA context not known, and so not counted: {', '.join(unknown)}.")
    return (*notes, f"Assumed: {_joined(thresholds, lambda t: t.assumptions)}.",
            f"Not modelled: {_joined(thresholds, lambda t: t.unmodelled)}.")  # fmt: skip


def _hole(t: Threshold) -> str | None:
    if t.fails_from is None:
        return None
    return f"{t.device}, {method_name(t.method)}: from {t.fails_from:,} on some below {t.max:,} do not fit"


def _each(thresholds: Sequence[Threshold], line: Callable[[Threshold], str | None]) -> list[str]:
    """Return what is said of single thresholds, each sentence once."""
    return [f"{text}." for text in dict.fromkeys(map(line, thresholds)) if text is not None]


def _joined(thresholds: Sequence[Threshold], lines: Callable[[Threshold], Sequence[str]]) -> str:
    """Return what holds for all, and after it what holds for some methods or devices only."""
    counted: dict[str, int] = {}
    for t in thresholds:
        for line in lines(t):
            counted[line] = counted.get(line, 0) + 1
    shared = [line for line, count in counted.items() if count == len(thresholds)]
    own = [f"{line} (some)" for line, count in counted.items() if count < len(thresholds)]
    return "; ".join([*shared, *own])
