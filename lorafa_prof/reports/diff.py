"""Differences between two records of a step as tables: the figures of both, and the operations that tell them apart."""

from __future__ import annotations

from collections.abc import Iterator

from lorafa_prof.reports.comparison import figure_text, signed_text, versions_text
from lorafa_prof.reports.prediction import PART_NAMES, method_name, run_title
from lorafa_prof.reports.table import Cell, Column, Scalar, Table, figures, words
from lorafa_prof.results import PART_FIELDS, Unit
from lorafa_prof.results.difference import Difference, OperationChange, Storages, View
from lorafa_prof.results.step_record import StepRecord
from lorafa_prof.units import format_bytes

Row = tuple[Cell | Scalar, ...]

#: Kinds of storages of one operation that are shown; CSV and JSON have all.
KINDS_SHOWN = 3

_MEMORIES = {
    "peak_requested_bytes": "peak requested", "peak_allocated_bytes": "peak allocated",
    "peak_reserved_bytes": "peak reserved", "saved_activations_bytes": "saved after forward",
}  # fmt: skip
_FLOPS = {"model_flops": "model FLOPs", "executed_flops": "executed FLOPs"}
_VIEWS = {"peak": "alive at the peak", "step": "allocated over the step"}


def difference_tables(difference: Difference, most: int) -> list[Table]:
    """Return the figures of both sides, and for the peak and the step the operations that changed.

    Args:
        difference: what differs.
        most: operations that are shown in each table; the rest is counted.
    """
    views = (("peak", difference.peak), ("step", difference.step))
    return [_figures_table(difference), *(_view_table(name, view, most) for name, view in views)]


def _figures_table(difference: Difference) -> Table:
    before, after = difference.before, difference.after
    rows = [_figure(name, getattr(before.memory, key), getattr(after.memory, key)) for key, name in PART_NAMES.items()]
    sections = [len(rows)]
    rows += [_figure(name, getattr(before.memory, key), getattr(after.memory, key)) for key, name in _MEMORIES.items()]
    rows.append(("reached in", *(_phase(record) for record in (before, after)), Cell(text="")))
    sections.append(len(rows))
    rows.append(_figure("allocated over the step", difference.step.before_bytes, difference.step.after_bytes))
    rows += [
        _figure(name, getattr(before.throughput, key), getattr(after.throughput, key), "flops")
        for key, name in _FLOPS.items()
    ]
    return Table(
        title=f"{method_name(after.run.method.name)} on {run_title(after.run)}",
        columns=(Column(name=""), *figures("before", "after", "change")),
        rows=tuple(rows),
        sections=tuple(sections),
        notes=tuple(_notes(difference)),
    )


def _figure(name: str, before: int | None, after: int | None, unit: Unit = "bytes") -> Row:
    change = None if before is None or after is None else after - before
    sizes = [Cell(text="-" if v is None else figure_text(v, unit), value=v) for v in (before, after)]
    return name, *sizes, Cell(text=signed_text(change, unit), value=change)


def _phase(record: StepRecord) -> Cell:
    return Cell(text=record.memory.peak_moment.partition(":")[0] or "-", value=record.memory.peak_moment)


def _notes(difference: Difference) -> Iterator[str]:
    before, after = difference.before, difference.after
    for side, record in (("Before", before), ("After", after)):
        source = f"{record.source}: " if record.source else ""
        yield f"{side}: {source}{versions_text(record.versions)}."
    if before.run != after.run:
        yield f"The runs differ in {', '.join(differing_options(difference))}."
    for name, one, other in (
        ("kernels of", before.device or "a card before Hopper", after.device or "a card before Hopper"),
        ("allocator settings", before.settings, after.settings),
    ):
        if one != other:
            yield f"Before with {name} {one}, after with {name} {other}."
    if before.memory.peak_moment != after.memory.peak_moment:
        yield f"The peaks are in other moments: {before.memory.peak_moment} and {after.memory.peak_moment}."


def differing_options(difference: Difference) -> list[str]:
    """Return the fields of the two runs that are not the same, with both values where these are short."""
    found = []
    for name in ("model", "method"):
        one, other = (getattr(getattr(side.run, name), "name") for side in (difference.before, difference.after))  # noqa: B009
        if getattr(difference.before.run, name) != getattr(difference.after.run, name):
            found.append(f"{name} ({one}, {other})" if one != other else name)
    for name in difference.before.run.__dataclass_fields__:
        one, other = getattr(difference.before.run, name), getattr(difference.after.run, name)
        if name not in ("model", "method") and one != other:
            found.append(f"{name} ({one}, {other})")
    return found


def _view_table(name: str, view: View, most: int) -> Table:
    shown, rest = view.changes[:most], view.changes[most:]
    rows = [_change_row(change) for change in shown]
    sections = []
    if rest:
        total = sum(change.change_bytes for change in rest)
        rows.append((f"{len(rest)} more", Cell(text=signed_text(total, "bytes"), value=total), *(Cell(text=""),) * 4))
    sections.append(len(rows))
    change = view.after_bytes - view.before_bytes
    sizes = [Cell(text=format_bytes(size), value=size) for size in (view.before_bytes, view.after_bytes)]
    total_cell = Cell(text=signed_text(change, "bytes"), value=change, tone="strong")
    rows.append(("in all", total_cell, Cell(text=""), Cell(text=""), *sizes))
    notes = ["No operation differs."]
    if view.changes:
        notes = [f"{len(view.changes)} operations differ; the changes add up to that of the total."]
    if view.moved_bytes:
        notes.append(f"{format_bytes(view.moved_bytes)} are made by the same operators elsewhere, which is no change.")
    return Table(
        title=f"{_VIEWS[name]}: operations whose bytes differ",
        columns=(*words(""), *figures("change"), *words("where", "operation", "before", "after")),
        rows=tuple(rows),
        sections=tuple(sections),
        notes=tuple(notes),
    )


def _change_row(change: OperationChange) -> Row:
    where = f"{change.phase}: {change.module}" if change.module else change.phase
    size = Cell(text=signed_text(change.change_bytes, "bytes"), value=change.change_bytes)
    return change.kind, size, where, change.operation, _storages(change.before), _storages(change.after)


def _storages(storages: Storages | None) -> Cell:
    if storages is None:
        return Cell(text="-", value=None)
    kinds = storages.what.split("; ")
    more = f"; {len(kinds) - KINDS_SHOWN} more" if len(kinds) > KINDS_SHOWN else ""
    return Cell(text=f"{'; '.join(kinds[:KINDS_SHOWN])}{more}", value=storages.nbytes)


def records_table(difference: Difference) -> Table:
    """Return a flat table: a row for each figure of both sides, and one for each operation that changed."""
    keys = (
        "view", "change", "phase", "module", "operation", "before", "after", "before_categories", "after_categories",
        "before_count", "after_count", "before_bytes", "after_bytes", "change_bytes",
    )  # fmt: skip
    rows = [
        _record(name, change)
        for name, view in (("peak", difference.peak), ("step", difference.step))
        for change in view.changes
    ]
    for name in (*PART_FIELDS, *_MEMORIES):
        one, other = (getattr(side.memory, name) for side in (difference.before, difference.after))
        change = None if one is None or other is None else other - one
        rows.append(("figure", None, None, None, name, *(None,) * 6, one, other, change))
    return Table(title="difference", columns=tuple(Column(name=key, key=key) for key in keys), rows=tuple(rows))


def _record(name: str, change: OperationChange) -> Row:
    sides = (change.before, change.after)
    return (
        name, change.kind, change.phase, change.module, change.operation,
        *(None if side is None else side.what for side in sides),
        *(None if side is None else ", ".join(side.categories) for side in sides),
        *(0 if side is None else side.count for side in sides),
        *(0 if side is None else side.nbytes for side in sides), change.change_bytes,
    )  # fmt: skip
