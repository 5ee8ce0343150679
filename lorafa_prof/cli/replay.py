"""`lorafa-prof replay`: a recorded memory snapshot through the allocator's model, with any settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorafa_prof.cli.emit import emit, output_options
from lorafa_prof.cli.options import allocator_conf
from lorafa_prof.reports.table import Cell, Column, Table
from lorafa_prof.units import format_bytes, format_gib, parse_bytes

if TYPE_CHECKING:
    from lorafa_prof.allocator.replay import Replay

_YES_NO = {True: "yes", False: "no", None: "cannot be told"}


@click.command()
@click.argument("snapshot", metavar="FILE")
@click.option("--alloc-conf", metavar="TEXT", help="Allocator settings as PYTORCH_CUDA_ALLOC_CONF has them.")
@click.option("--expandable-segments", is_flag=True, help="One of these settings, by itself.")
@click.option("--cap", metavar="SIZE", help="Memory of the card, for example 24GiB.  [default: never full]")
@click.option("--device", type=int, default=0, show_default=True, help="Which device of the snapshot.")
@output_options
def command(
    snapshot: str,
    alloc_conf: str | None,
    expandable_segments: bool,
    cap: str | None,
    device: int,
    format: str | None,
    output: str | None,
) -> None:
    """Replay a recorded memory snapshot: peaks, fragmentation, and what other allocator settings would change.

    FILE is what torch.cuda.memory._dump_snapshot() writes after _record_memory_history(), or the same trace as
    compressed JSON. It is read as plain data: nothing in it is executed.

    \b
    Examples:
      lorafa-prof replay snapshot.pickle
      lorafa-prof replay snapshot.pickle --expandable-segments --cap 24GiB
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.allocator.settings import AllocatorSettings
    from lorafa_prof.simulate.snapshots.recorded import RecordedRun

    settings = AllocatorSettings.parse(allocator_conf(alloc_conf, expandable_segments) or "")
    capacity = None if cap is None else parse_bytes(cap)
    run = RecordedRun.read(snapshot, device)
    done = run.replay(settings, capacity)
    facts: dict[str, object] = {
        "events": len(run.trace.events),
        "unknown_frees": run.trace.unknown_frees,
        "recorded_reserved_bytes": run.reserved_bytes,
        "segments_as_recorded": run.is_reproduced(settings),
        **_figures(done),
    }
    emit(
        tables=lambda: [_table(snapshot, facts)],
        records=lambda: _records(facts),
        document=lambda: {"replay": {"file": snapshot, "settings": settings.describe(), **facts}},
        format=format,
        output=output,
    )


def _figures(done: Replay) -> dict[str, object]:
    return {
        "peak_requested_bytes": done.requested.size,
        "peak_allocated_bytes": done.allocated.size,
        "peak_reserved_bytes": done.reserved.size,
        "fragmentation_bytes": done.reserved.size - done.allocated.size,
        "end_allocated_bytes": done.end.allocated,
        "end_reserved_bytes": done.end.reserved,
        "num_alloc_retries": done.num_alloc_retries,
        "oom": None if done.oom is None else done.oom.message(),
    }


def _table(name: str, facts: dict[str, object]) -> Table:
    sizes = (
        ("peak requested", "peak_requested_bytes"),
        ("peak allocated", "peak_allocated_bytes"),
        ("peak reserved", "peak_reserved_bytes"),
        ("  beyond allocated", "fragmentation_bytes"),
        ("reserved at the end", "end_reserved_bytes"),
        ("reserved at the end, as recorded", "recorded_reserved_bytes"),
    )
    rows: list[tuple[Cell | str, ...]] = [(label, _size(facts[key])) for label, key in sizes]
    rows.append(("retries after freeing the cache", str(facts["num_alloc_retries"])))
    same = facts["segments_as_recorded"]
    rows.append(("segments as recorded", _YES_NO[same if isinstance(same, bool) else None]))
    notes = [f"{facts['events']:,} births and deaths of blocks."]
    if facts["unknown_frees"]:
        notes.append(f"{facts['unknown_frees']:,} blocks were alive before the recording began, and are not counted.")
    if facts["oom"]:
        notes.append(str(facts["oom"]))
    return Table(
        title=f"replay of {name}",
        columns=(Column(name="GiB"), Column(name="", justify="right")),
        rows=tuple(rows),
        sections=(6,),
        notes=tuple(notes),
    )


def _size(value: object) -> Cell:
    size = value if isinstance(value, int) else None
    text = format_gib(size) if size is None or size >= 2**27 else format_bytes(size)
    return Cell(text=text, value=size)


def _records(facts: dict[str, object]) -> Table:
    row = tuple(value if isinstance(value, (int, str, bool)) else None for value in facts.values())
    return Table(title="replay", columns=tuple(Column(name=key, key=key) for key in facts), rows=(row,))
