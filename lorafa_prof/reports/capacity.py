"""Capacity as tables: one row a card, method and number of cards."""

from __future__ import annotations

from collections.abc import Sequence

from lorafa_prof.reports.prediction import joined_lines, method_name, run_title
from lorafa_prof.reports.table import Cell, Column, Scalar, Table
from lorafa_prof.results.capacity import Capacity
from lorafa_prof.units import format_bytes

Row = tuple[Cell | Scalar, ...]


def capacity_table(found: Sequence[Capacity]) -> Table:
    """Return the table that people read."""
    starts = [n for n, c in enumerate(found) if n and c.device != found[n - 1].device]
    several = any(c.gpus > 1 for c in found)
    epochs, costs = any(c.epoch_s is not None for c in found), any(c.cost is not None for c in found)
    columns = [
        Column(name="GPU"), Column(name="cards", justify="right", key="gpus"), Column(name="method"),
        Column(name="largest batch", justify="right", key="max_bs"),
        Column(name="fastest batch", justify="right", key="bs"), Column(name="left", justify="right"),
        Column(name="step, s", justify="right", key="step_s"),
        Column(name="tokens/s", justify="right", key="tokens_per_s"), Column(name="MFU", justify="right", key="mfu"),
    ]  # fmt: skip
    if several:
        columns.append(Column(name="scaling", justify="right"))
    if epochs:
        columns.append(Column(name="epoch", justify="right", key="epoch_s"))
    if costs:
        columns.append(Column(name="cost", justify="right"))
    return Table(
        title=f"fastest batch that fits: {run_title(found[0].run, 'bs')}",
        columns=tuple(columns),
        rows=tuple(_row(c, several, epochs, costs) for c in found),
        sections=tuple(starts),
        notes=_notes(found),
        keys=3,
    )


def _row(c: Capacity, several: bool, epochs: bool, costs: bool) -> Row:
    best = c.best
    cells: list[Cell | Scalar] = [
        c.device, c.gpus, method_name(c.method),
        None if c.max_bs is None else Cell(text=f"{c.max_bs:,}", value=c.max_bs, tone="plain" if c.max_bs else "bad"),
        best.bs if best else None,
        None if c.headroom_bytes is None else Cell(text=format_bytes(c.headroom_bytes), value=c.headroom_bytes),
        Cell(text=f"{best.step_s:.3g}", value=best.step_s) if best else None,
        Cell(text=f"{best.tokens_per_s:,.0f}", value=best.tokens_per_s, tone="strong") if best else None,
        _share(c.mfu),
    ]  # fmt: skip
    if several:
        cells.append(_share(c.scaling))
    if epochs:
        cells.append(None if c.epoch_s is None else Cell(text=format_duration(c.epoch_s), value=c.epoch_s))
    if costs:
        cells.append(None if c.cost is None else Cell(text=f"{c.cost:,.2f}", value=c.cost))
    return tuple(cells)


def _share(value: float | None) -> Cell | None:
    return None if value is None else Cell(text=f"{value:.1%}", value=value)


def format_duration(seconds: float) -> str:
    """Return a time as people say it: "45 s", "12 min", "3.5 h", "4.2 days"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _notes(found: Sequence[Capacity]) -> tuple[str, ...]:
    def whose(c: Capacity) -> str:
        cards = f"{c.gpus} x " if c.gpus > 1 else ""
        return f"{method_name(c.method)} on {cards}{c.device}"

    missing = [f"{whose(c)}: {c.why_not}." for c in found if c.why_not]
    lines = {
        "Assumed": joined_lines([(whose(c), c.assumptions) for c in found]),
        "Not modelled": joined_lines([(whose(c), c.unmodelled) for c in found]),
    }
    return (*missing, *(f"{word}: {text}." for word, text in lines.items() if text))


def records_table(found: Sequence[Capacity]) -> Table:
    """Return a flat table: one row a card, method and number of cards, named as in JSON."""
    names = (
        "device", "gpus", "shard", "method", "model", "seq", "rank", "max_bs", "bs", "headroom_bytes", "step_s",
        "tokens_per_s", "mfu", "scaling", "epoch_s", "cost", "why_not",
    )  # fmt: skip
    rows = []
    for c in found:
        own = {"shard": c.run.shard, "model": c.run.model.name, "seq": c.run.seq, "rank": c.run.method.rank}
        data = c.to_json() | own
        rows.append(tuple(data[name] for name in names))
    return Table(title="capacities", columns=tuple(Column(name=n, key=n) for n in names), rows=tuple(rows))
