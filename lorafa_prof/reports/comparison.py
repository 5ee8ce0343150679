"""Comparisons as tables: each figure as observed and as each engine has it, and below it where they part ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lorafa_prof.reports.prediction import PART_NAMES, method_name, run_title
from lorafa_prof.reports.table import Cell, Column, Scalar, Table
from lorafa_prof.results import Comparison, ItemDifference, Row as Figure, Section, Side, Unit
from lorafa_prof.units import format_bytes, format_count, format_gib

Row = tuple[Cell | Scalar, ...]

#: Tensors that are named below the table for each engine.
ITEMS_SHOWN = 6
#: From here on no decimals of a percentage are shown.
LARGE_SHARE = 10.0

_NAMES = {
    **PART_NAMES,
    "peak_requested_bytes": "peak requested",
    "peak_allocated_bytes": "peak allocated",
    "peak_reserved_bytes": "peak reserved",
    "fragmentation_bytes": "  beyond allocated",
    "context_bytes": "CUDA context",
    "peak_device_bytes": "device-used",
    "saved_activations_bytes": "saved after forward",
    "trained_gradients_bytes": "gradients at step",
    "total": "parameters",
    "trainable": "  trained ones",
    "step_s": "step time",
    "tokens_per_s": "tokens/s",
    "model_flops": "model FLOPs",
    "executed_flops": "executed FLOPs",
    "model_flops_6n": "6 N FLOPs",
    "mfu": "MFU",
    "mfu_6n": "MFU (6 N)",
    "hfu": "HFU",
}
_SECTIONS: tuple[Section, ...] = ("parts", "memories", "phases", "sizes", "time")


def comparison_table(comparison: Comparison) -> Table:
    """Return one measurement's table: figures as rows, and for each engine its figure, the error and its share."""
    rows: list[Row] = []
    sections: list[int] = []
    for section in _SECTIONS:
        figures = [row for row in comparison.rows if row.section == section and _is_known(row)]
        if figures and rows:
            sections.append(len(rows))
        rows.extend(_figure_row(comparison, row) for row in figures)
        if section == "parts" and any(side.unexplained_bytes is not None for side in comparison.sides):
            rows.append(_rest_row(comparison))
        if section == "memories" and comparison.peak_moment is not None:
            rows.append(_moment_row(comparison))
    return Table(
        title=name_of(comparison),
        columns=(Column(name=""), Column(name="observed", justify="right"), *_engine_columns(comparison)),
        rows=tuple(rows),
        sections=tuple(sections),
        notes=tuple(_notes(comparison)),
    )


def name_of(comparison: Comparison) -> str:
    """Return what was measured, and where, in one line."""
    if comparison.run is None:
        what = " ".join(comparison.command) or "a script"
    else:
        what = f"{method_name(comparison.run.method.name)} on {run_title(comparison.run)}"
    where = f"; on {comparison.environment.get('device') or 'a device without a name'}"
    rank = f", rank {comparison.rank} of {comparison.world_size}" if comparison.world_size > 1 else ""
    return f"{what}{where}{rank}"


def records_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a flat table: one row a figure and engine; a measurement without predictions has rows of its own."""
    names = (
        "source", "model", "method", "bs", "seq", "device", "rank", "outcome", "engine", "section", "figure", "unit",
        "observed", "predicted", "error", "relative_error",
    )  # fmt: skip
    rows = tuple(row for comparison in comparisons for row in _records(comparison))
    return Table(title="comparisons", columns=tuple(Column(name=name, key=name) for name in names), rows=rows)


def _records(comparison: Comparison) -> Iterator[Row]:
    run = comparison.run
    of_run: Row = (None,) * 4 if run is None else (run.model.name, run.method.name, run.bs, run.seq)
    head = (
        comparison.source, *of_run, str(comparison.environment.get("device") or ""), comparison.rank,
        comparison.outcome,
    )  # fmt: skip
    for row in comparison.rows:
        figure = (row.section, row.name, row.unit, row.observed)
        if not comparison.sides:
            yield (*head, None, *figure, None, None, None)
        for number, side in enumerate(comparison.sides):
            said = (row.predicted[number], row.error(number), row.relative_error(number))
            yield (*head, side.engine, *figure, *said)
    for side in comparison.sides:
        yield (*head, side.engine, "parts", "unexplained_bytes", "bytes", None, None, side.unexplained_bytes, None)


# -- rows ------------------------------------------------------------------------------------------------------------


def _is_known(row: Figure) -> bool:
    return row.observed is not None or any(value is not None for value in row.predicted)


def _engine_columns(comparison: Comparison) -> Iterator[Column]:
    for side in comparison.sides:
        yield Column(name=side.engine, justify="right")
        yield Column(name="error", justify="right")
        yield Column(name="%", justify="right")


def _figure_row(comparison: Comparison, row: Figure) -> Row:
    label = f"most in {row.name}" if row.section == "phases" else _NAMES.get(row.name, row.name)
    strong = row.name in ("peak_allocated_bytes", "peak_reserved_bytes")
    cells: list[Cell | Scalar] = [label, _value(row.observed, row.unit, strong=strong)]
    for number in range(len(comparison.sides)):
        error = row.error(number)
        cells.append(_value(row.predicted[number], row.unit, strong=strong))
        cells.append(Cell(text=signed_text(error, row.unit), value=error))
        cells.append(_percent(error, row.relative_error(number)))
    return tuple(cells)


def _rest_row(comparison: Comparison) -> Row:
    cells: list[Cell | Scalar] = ["unexplained rest", Cell(text="")]
    for side in comparison.sides:
        rest = side.unexplained_bytes
        cells += [Cell(text=""), Cell(text=signed_text(rest, "bytes"), value=rest), Cell(text="")]
    return tuple(cells)


def _moment_row(comparison: Comparison) -> Row:
    cells: list[Cell | Scalar] = ["reached in", _phase(comparison.peak_moment)]
    for side in comparison.sides:
        same = {True: "same", False: "another", None: "-"}[side.same_phase]
        cells += [_phase(side.peak_moment), Cell(text=same, value=side.same_phase), Cell(text="")]
    return tuple(cells)


def _phase(moment: str | None) -> Cell:
    return Cell(text=(moment or "-").partition(":")[0], value=moment)


def _value(value: float | None, unit: Unit, *, strong: bool = False) -> Cell:
    return Cell(
        text="-" if value is None else figure_text(value, unit), value=value, tone="strong" if strong else "plain"
    )


def figure_text(value: float, unit: Unit) -> str:
    """Return a figure as people read it."""
    if unit == "bytes":
        return format_bytes(int(value))
    if unit == "elements":
        return f"{value:,.0f}"
    if unit == "flops":
        return format_count(value)
    if unit == "seconds":
        return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.2f} ms"
    return f"{value:.2%}" if unit == "share" else f"{value:,.1f}"


def signed_text(error: float | None, unit: Unit) -> str:
    """Return a difference with its sign; "-" for an unknown one."""
    if error is None:
        return "-"
    return "0" if not error else f"{'+' if error > 0 else '-'}{figure_text(abs(error), unit)}"


def _percent(error: float | None, share: float | None) -> Cell:
    if error is None or share is None:
        return Cell(text="-")
    smallest = 0.0001
    if 0 < abs(share) < smallest / 2:
        return Cell(text=f"{'+' if share > 0 else '-'}<{smallest:.2%}", value=share)
    if abs(share) >= LARGE_SHARE:
        return Cell(text=f"{share:+,.0%}", value=share)
    return Cell(text=f"{share:+.2%}" if share else "0%", value=share)


# -- below the table -------------------------------------------------------------------------------------------------


def _notes(comparison: Comparison) -> Iterator[str]:
    if comparison.outcome != "ok":
        yield f"The run did not end well: {comparison.outcome}{f': {comparison.error}' if comparison.error else ''}."
    for number in range(len(comparison.sides)):
        yield from _side_notes(comparison, number)
    yield from (f"{remark[:1].upper()}{remark[1:]}." for remark in comparison.remarks)
    yield f"Observed with {versions_text(comparison.versions)}."
    if comparison.unmodelled:
        yield f"Not observed: {'; '.join(comparison.unmodelled)}."
    if comparison.sides:
        yield "An error is the prediction less the observation; those of parts and rest add up to that of the peak."


def _side_notes(comparison: Comparison, number: int) -> Iterator[str]:
    side = comparison.sides[number]
    if side.same_phase is False:
        yield (
            f"{side.engine}: its peak is in another moment ({side.peak_moment}; observed: {comparison.peak_moment}): "
            "parts of two moments cannot be compared one by one."
        )
    elif side.same_phase and side.peak_moment != comparison.peak_moment:
        yield f"{side.engine}: its peak is at {side.peak_moment}, observed at {comparison.peak_moment}."
    if side.version_differences:
        other = ", ".join(f"{d.name} {d.predicted} (measured: {d.observed})" for d in side.version_differences)
        yield f"{side.engine}: predicted for {other}; same releases in, same bytes out: others allocate otherwise."
    if side.verdict is not None:
        yield f"{side.engine}: {_verdict(side)}."
    if side.items:
        shown = "; ".join(_item(item) for item in side.items[:ITEMS_SHOWN])
        more = len(side.items[ITEMS_SHOWN:]) + side.items_left_out
        yield f"{side.engine}: the ledgers differ most in {shown}{f'; and {more} smaller' if more else ''}."
    row = comparison.row("peak_allocated_bytes", "memories")
    if row is not None and row.error(number):  # what may explain it
        own = [line for line in side.assumptions if line not in comparison.assumptions]
        yield from ([f"{side.engine}, assumed: {'; '.join(own)}."] if own else [])
        yield from ([f"{side.engine}, not modelled: {'; '.join(side.unmodelled)}."] if side.unmodelled else [])


def _verdict(side: Side) -> str:
    assert side.verdict is not None, "asked for one that is there"
    fits = {True: "fits", False: "does not fit", None: "cannot tell from its peaks whether it fits"}[side.verdict.fits]
    agrees = {True: ", as observed", False: ", unlike what was observed", None: ""}[side.verdict.agrees]
    return f"{fits} in {format_gib(side.verdict.capacity_bytes)} GiB{agrees}"


def _item(item: ItemDifference) -> str:
    where = ": ".join(part for part in (item.module, item.tensor) if part) or "the whole"
    sizes = f"observed {format_bytes(item.observed_bytes)}, predicted {format_bytes(item.predicted_bytes)}"
    return f"{item.category} of {where} ({signed_text(item.error_bytes, 'bytes')}: {sizes})"


def versions_text(versions: Mapping[str, str]) -> str:
    """Return the releases of libraries in one line."""
    return (
        ", ".join(f"{name} {version}" for name, version in versions.items() if name != "engine") or "unknown releases"
    )
