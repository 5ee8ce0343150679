"""Measurements as tables: side by side, what was promised and not kept first, and one flat row a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorafa_prof.reports.prediction import PART_NAMES, in_layers, method_name, moment_cell
from lorafa_prof.reports.table import Cell, Column, Scalar, Table, Tone
from lorafa_prof.results import PART_FIELDS, Measurement, PhaseMemory, Promise
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import format_bytes, format_count

Row = tuple[Cell | Scalar, ...]
Figure = Callable[[Measurement], Cell | Scalar]

#: Shown of each phase; JSON holds more.
_PHASE_FIGURES = {"allocated": "peak_allocated_bytes", "reserved": "peak_reserved_bytes"}
_PEAKS = {
    "peak requested": "peak_requested_bytes", "peak allocated": "peak_allocated_bytes",
    "peak reserved": "peak_reserved_bytes", "  beyond allocated": "fragmentation_bytes",
    "CUDA context": "context_bytes", "peak of the device": "peak_device_bytes",
    "saved after forward": "saved_activations_bytes", "gradients at step": "trained_gradients_bytes",
}  # fmt: skip
_STRONG = {"peak allocated", "peak reserved"}
#: The options that tell one run of a sweep from another: their name in the table and what they are.
_SIZES: dict[str, Callable[[RunSpec], Scalar]] = {
    "model": lambda run: run.model.name,
    "batch": lambda run: run.bs,
    "tokens a sequence": lambda run: run.seq,
    "rank": lambda run: None if run.method.name == "full" else run.method.rank,
}


def measurement_table(seen: Sequence[Measurement]) -> Table:
    """Return one table with the measurements as columns: broken promises, memory by parts and phases, time."""
    groups = [
        _promise_rows(seen), _identity_rows(seen), _part_rows(seen), _peak_rows(seen), _phase_rows(seen),
        _time_rows(seen), _rate_rows(seen),
    ]  # fmt: skip
    rows: list[Row] = []
    sections = []
    for group in filter(None, groups):
        sections.append(len(rows))
        rows.extend(group)
    return Table(
        title=_title(seen),
        columns=(Column(name="", key="figure"), *(Column(name=_column_name(m), justify="right") for m in seen)),
        rows=tuple(rows),
        sections=tuple(sections[1:]),
        notes=_notes(seen),
    )


def records_table(seen: Sequence[Measurement]) -> Table:
    """Return a flat table: one row a measurement."""
    rows = [_record(m) for m in seen]
    names = list(rows[0]) if rows else []
    return Table(
        title="measurements",
        columns=tuple(Column(name=name, key=name) for name in names),
        rows=tuple(tuple(row.values()) for row in rows),
    )


def outcome_line(m: Measurement) -> str:
    """Return how a measurement ended, in one line."""
    if m.outcome != "ok":
        line = _end(m)
    else:
        peak = None if m.memory is None else m.memory.peak_allocated_bytes
        parts = [f"peak allocated {format_bytes(peak)}"] if peak is not None else []
        parts += [f"{_seconds(m.throughput.step_s)} a step"] if m.throughput.step_s is not None else []
        line = ", ".join(["ok", *parts])
    broken = ", ".join(promise.name for promise in m.violations)
    return f"{line}; promises NOT kept: {broken}" if broken else line


# -- rows --------------------------------------------------------------------------------------------------------


def _promise_rows(seen: Sequence[Measurement]) -> list[Row]:
    """Return a row for each promise that some measurement broke, with what that costs."""
    names = dict.fromkeys(promise.name for m in seen for promise in m.violations)
    return [_row(f"NOT KEPT: {name}", seen, lambda m, name=name: _promise_cell(m, name)) for name in names]  # type: ignore[misc]


def _promise_cell(m: Measurement, name: str) -> Cell:
    promises: list[Promise] = [promise for promise in m.promises if promise.name == name]
    if not promises:
        return Cell(text="-")
    if promises[0].kept:
        return Cell(text="kept", value=0, tone="good")
    cost = promises[0].cost_bytes
    return Cell(text="not kept" if cost is None else f"costs {format_bytes(cost)}", value=cost, tone="bad")


def _identity_rows(seen: Sequence[Measurement]) -> list[Row]:
    """Return what tells the columns apart, and how each ended where one did not end well."""
    rows = [
        _row(name, seen, lambda m, of=of: _text(None if m.run is None else of(m.run)))  # type: ignore[misc]
        for name, of in _SIZES.items()
        if len({None if m.run is None else of(m.run) for m in seen}) > 1
    ]
    if any(m.world_size > 1 for m in seen):
        rows.append(_row("process", seen, lambda m: f"{m.rank} of {m.world_size}"))
    if any(m.outcome != "ok" for m in seen):
        rows.append(_row("outcome", seen, _outcome))
    return rows


def _outcome(m: Measurement) -> Cell:
    tone: Tone = "good" if m.outcome == "ok" else "bad"
    text = {"oom": "out of memory"}.get(m.outcome, m.outcome)
    return Cell(text=text, value=m.outcome, tone=tone)


def _part_rows(seen: Sequence[Measurement]) -> list[Row]:
    parts = [
        (name, field) for field, name in PART_NAMES.items() if any(_memory(m, field) is not None for m in seen)
    ]  # fmt: skip
    return [_size_row(name, seen, field) for name, field in parts]


def _peak_rows(seen: Sequence[Measurement]) -> list[Row]:
    rows = []
    for name, field in _PEAKS.items():
        if any(_memory(m, field) is not None for m in seen):
            rows.append(_size_row(name, seen, field, strong=name in _STRONG))
        if name == "peak allocated" and any(m.memory is not None and m.memory.peak_moment for m in seen):
            rows.append(
                _row("reached in", seen, lambda m: moment_cell("-" if m.memory is None else m.memory.peak_moment))
            )
    return rows


def _size_row(name: str, seen: Sequence[Measurement], field: str, strong: bool = False) -> Row:
    return _row(name, seen, lambda m: _size(_memory(m, field), strong))


def _memory(m: Measurement, field: str) -> int | None:
    value: int | None = None if m.memory is None else getattr(m.memory, field)
    return value


def _phase_rows(seen: Sequence[Measurement]) -> list[Row]:
    """Return the peak in each phase of the traced step, for each memory that the device tells of."""
    names = dict.fromkeys(phase.phase for m in seen for phase in m.phases)
    rows = []
    for label, field in _PHASE_FIGURES.items():
        told = [name for name in names if any(_phase(m, name, field) is not None for m in seen)]
        rows += [_phase_row(f"{label} in {name}", seen, name, field) for name in told]
    return rows


def _phase_row(label: str, seen: Sequence[Measurement], name: str, field: str) -> Row:
    return _row(label, seen, lambda m: _size(_phase(m, name, field)))


def _phase(m: Measurement, name: str, field: str) -> int | None:
    phases: list[PhaseMemory] = [phase for phase in m.phases if phase.phase == name]
    value: int | None = getattr(phases[0], field) if phases else None
    return value


def _time_rows(seen: Sequence[Measurement]) -> list[Row]:
    if not any(m.steps for m in seen):
        return []
    rows = [
        _row("steps timed", seen, lambda m: len(m.steps) or None),
        _row("step, median", seen, lambda m: _time(None if m.spread is None else m.spread.median_s)),
        _row("  half of them", seen, lambda m: _between(m, "quarter_s", "three_quarters_s")),
        _row("  least, most", seen, lambda m: _between(m, "least_s", "most_s")),
    ]
    for name, field in (("forward", "forward_s"), ("backward", "backward_s"), ("optimizer", "optimizer_s")):
        if any(_median(m, field) is not None for m in seen):
            rows.append(_row(f"  {name}", seen, lambda m, field=field: _time(_median(m, field))))  # type: ignore[misc]
    return rows


def _between(m: Measurement, low: str, high: str) -> Cell:
    """Return two times of the spread with the unit that the second wants."""
    if m.spread is None:
        return Cell(text="-")
    low_s, high_s = getattr(m.spread, low), getattr(m.spread, high)
    if high_s >= 1:
        return Cell(text=f"{low_s:.3f} - {high_s:.3f} s")
    return Cell(text=f"{low_s * 1e3:.2f} - {high_s * 1e3:.2f} ms")


def _median(m: Measurement, field: str) -> float | None:
    """Return the middle one of the steps' times of one phase, as shown: the lower of two."""
    times = sorted(time for step in m.steps if (time := getattr(step, field)) is not None)
    return times[(len(times) - 1) // 2] if times else None


def _rate_rows(seen: Sequence[Measurement]) -> list[Row]:
    rows = []
    figures: tuple[tuple[str, Figure], ...] = (
        ("tokens/s", lambda m: _number(m.throughput.tokens_per_s, f"{m.throughput.tokens_per_s or 0:,.0f}")),
        ("MFU", lambda m: _percent(m.throughput.mfu)),
        ("MFU, 6N", lambda m: _percent(m.throughput.mfu_6n)),
        ("HFU", lambda m: _percent(m.throughput.hfu)),
        ("model FLOP", lambda m: _number(m.throughput.model_flops, format_count(m.throughput.model_flops))),
        ("executed FLOP", lambda m: _number(m.throughput.executed_flops, format_count(m.throughput.executed_flops))),
        ("trained values", lambda m: _parameters(m, "trainable")),
        ("all values", lambda m: _parameters(m, "total")),
        ("allocator retries", lambda m: m.alloc_retries),
    )  # fmt: skip
    for name, figure in figures:
        row = _row(name, seen, figure)
        if any(_value(cell) is not None for cell in row[1:]):
            rows.append(row)
    return rows


def _value(cell: Cell | Scalar) -> Scalar:
    return cell.value if isinstance(cell, Cell) else cell


def _parameters(m: Measurement, which: str) -> Cell:
    count = None if m.parameters is None else m.parameters[which]
    return _number(count, format_count(count))


# -- title, columns, notes ---------------------------------------------------------------------------------------


def _title(seen: Sequence[Measurement]) -> str:
    """Return what all measurements have in common, in one line."""
    runs = [m.run for m in seen if m.run is not None]
    device = " and ".join(dict.fromkeys(str(m.environment.get("device", "an unknown device")) for m in seen))
    if not runs:
        return f"measured on {device}"
    parts = [part(runs[0]) for part in _TITLE_PARTS if len({part(run) for run in runs}) == 1]
    return f"measured on {device}: {', '.join(filter(None, parts))}"


_TITLE_PARTS: tuple[Callable[[RunSpec], str], ...] = (
    lambda run: run.model.name,
    lambda run: f"batch {run.bs} x {run.seq:,} tokens",
    lambda run: run.dtype + (" with autocast" if run.amp else ""),
    lambda run: f"{run.attn} attention",
    lambda run: run.recomputation,
    lambda run: (
        ""
        if run.method.name == "full"
        else f"rank {run.method.rank} on {', '.join(run.method.targets)}{in_layers(run)}"
    ),
)


def _column_name(m: Measurement) -> str:
    if m.run is not None:
        return method_name(m.run.method.name)
    words = m.command[1:] if m.command[:1] == ("-m",) else m.command
    return " ".join(words[:1]).rsplit("/", 1)[-1] or "script"


def _notes(seen: Sequence[Measurement]) -> tuple[str, ...]:
    notes = [
        f"NOT KEPT, {_label(m, seen)}: {promise.name}: {promise.detail}" for m in seen for promise in m.violations
    ]  # fmt: skip
    notes += [f"{_label(m, seen)}: {_end(m)}" for m in seen if m.outcome != "ok"]
    versions = {f"{name} {version}": None for m in seen for name, version in m.versions.items()}
    notes.append(f"Measured with {', '.join(versions)}.")
    for title, lines in (("Assumed", [m.assumptions for m in seen]), ("Not observed", [m.unmodelled for m in seen])):
        said = dict.fromkeys(line for each in lines for line in each)
        if said:
            notes.append(f"{title}: {'; '.join(said)}.")
    return tuple(dict.fromkeys(notes))


def _label(m: Measurement, seen: Sequence[Measurement]) -> str:
    """Return what a column is called in a note: its method, and its sizes where several columns have that method."""
    name, run = _column_name(m), m.run
    if run is None or sum(_column_name(other) == name for other in seen) == 1:
        return name
    return f"{name}, {run.bs} x {run.seq}, rank {run.method.rank}"


def _end(m: Measurement) -> str:
    """Return the outcome and what was said about it, where that does not begin with the same word."""
    text = _first_line(m.error)
    return text if text.startswith(m.outcome) else f"{m.outcome}: {text}"


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


# -- cells -------------------------------------------------------------------------------------------------------


def _row(name: str, seen: Sequence[Measurement], cell: Figure) -> Row:
    return (name, *(cell(m) for m in seen))


def _text(value: Scalar) -> Cell:
    return Cell(text="-" if value is None else f"{value:,}" if isinstance(value, int) else str(value), value=value)


def _size(nbytes: int | None, strong: bool = False) -> Cell:
    return Cell(text=format_bytes(nbytes), value=nbytes, tone="strong" if strong else "plain")


def _number(value: float | None, text: str) -> Cell:
    return Cell(text="-" if value is None else text, value=value)


def _percent(share: float | None) -> Cell:
    return _number(share, f"{share or 0:.1%}")


def _time(seconds: float | None) -> Cell:
    return _number(seconds, _seconds(seconds))


def _seconds(seconds: float | None) -> str:
    """Return a time with the unit that fits."""
    if seconds is None:
        return "-"
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


# -- CSV ---------------------------------------------------------------------------------------------------------


def _record(m: Measurement) -> dict[str, Scalar]:
    run, rates, spread = m.run, m.throughput, m.spread
    costs = [promise.cost_bytes for promise in m.violations if promise.cost_bytes is not None]
    options: dict[str, Scalar] = {
        "model": None if run is None else run.model.name,
        "method": None if run is None else run.method.name,
        "bs": None if run is None else run.bs,
        "seq": None if run is None else run.seq,
        "rank": None if run is None else run.method.rank,
        "dtype": None if run is None else run.dtype,
        "adapter_dtype": None if run is None else run.resolved_adapter_dtype,
        "attn": None if run is None else run.attn,
        "checkpointing": None if run is None else run.checkpointing,
        "optimizer": None if run is None else run.resolved_optimizer,
        "quant": None if run is None else run.resolved_quant,
    }
    sizes = (
        *PART_FIELDS, "peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "fragmentation_bytes",
        "context_bytes", "peak_device_bytes", "saved_activations_bytes", "trained_gradients_bytes",
    )  # fmt: skip
    return {
        **options,
        "command": " ".join(m.command) or None,
        "process": m.rank,
        "device": _text(m.environment.get("device")).value,
        "outcome": m.outcome,
        "exit_code": m.exit_code,
        "promises_not_kept": ", ".join(promise.name for promise in m.violations) or None,
        "promises_cost_bytes": max(costs, default=None),
        **{field: _memory(m, field) for field in sizes},
        "peak_moment": None if m.memory is None else m.memory.peak_moment,
        "steps": len(m.steps),
        "step_s": rates.step_s,
        **{f"step_{name}": None if spread is None else getattr(spread, name) for name in _SPREAD},
        **{name: getattr(rates, name) for name in _RATES},
        "parameters_total": None if m.parameters is None else m.parameters["total"],
        "parameters_trainable": None if m.parameters is None else m.parameters["trainable"],
        "alloc_retries": m.alloc_retries,
        "error": None if m.error is None else _first_line(m.error),
    }


_SPREAD = ("least_s", "quarter_s", "median_s", "three_quarters_s", "most_s")
_RATES = ("tokens_per_s", "model_flops", "executed_flops", "model_flops_6n", "mfu", "mfu_6n", "hfu")
