"""Allocated memory over one step: what every module left behind, the phases, and where the peak was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lorafa_prof.reports.figures.naming import labels_of, short, title_of
from lorafa_prof.reports.figures.style import (
    ENGINE_LINES,
    INK,
    Drawing,
    amount,
    ceiling,
    our_style,
    paged,
    scale_of,
    wrapped,
)
from lorafa_prof.results import Measurement, Stretch
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.records import settings_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A phase narrower than this share of the axis shares a label with its narrow neighbours.
NARROW = 0.09
BACKWARD = "backward"
#: Phases that take turns.
_TURNS = (BACKWARD, "recompute")


def draw_timelines(found: Collection) -> list[Drawing]:
    """Return a timeline of each measurement that has one."""
    seen = [m for m in found.measurements if m.timeline]
    return paged(seen, 1, "timeline", lambda page, name: _drawn(page[0], _predicted(found, page[0]), name), "steps")


def _predicted(found: Collection, m: Measurement) -> dict[str, float]:
    """Return the peak that each engine predicts for a measurement's run."""
    for comparison in found.comparisons:
        if comparison.run == m.run and m.run is not None and comparison.rank == m.rank:
            row = comparison.row("peak_allocated_bytes", "memories")
            peaks = () if row is None else row.predicted
            return {s.engine: peak for s, peak in zip(comparison.sides, peaks, strict=False) if peak is not None}
    return {}


def _drawn(m: Measurement, predicted: dict[str, float], name: str) -> Drawing:
    from matplotlib.figure import Figure

    line = m.timeline
    unit, scale = scale_of([*(s.peak_allocated_bytes for s in line), *(s.reserved_bytes for s in line)])
    at = max(range(len(line)), key=lambda number: line[number].peak_allocated_bytes)
    peak = line[at]
    with our_style():
        figure = Figure(figsize=(9.2, 4.6))
        axes = figure.subplots()
        _draw_memory(axes, line, scale)
        for engine, size in predicted.items():
            axes.axhline(
                size / scale, color=INK, linestyle=ENGINE_LINES.get(engine, ":"), linewidth=1, label=f"peak, {engine}"
            )
        sizes = [s.peak_allocated_bytes for s in line] + [s.reserved_bytes or 0 for s in line]
        top = ceiling([*sizes, *predicted.values()]) / scale
        axes.set_ylim(0, top * 1.3)
        axes.set_xlim(0, len(line))
        _draw_phases(axes, line, top)
        _mark_peak(axes, at, len(line), peak, scale, unit)
        axes.set_ylabel(unit)
        axes.set_xlabel("modules at work, in their order (not to the scale of time)")
        axes.set_title(wrapped(_title(m), 8.4))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 0.8))
    where = f"in {peak.phase}{f' of {peak.module}' if peak.module else ''}"
    said = f"Allocated memory over one step. The peak is {amount(peak.peak_allocated_bytes / scale)} {unit}, {where}."
    return Drawing(name=name, figure=figure, caption=f"{_title(m).replace(chr(10), ', ')}. {said}")


def _title(m: Measurement) -> str:
    rank = f", process {m.rank} of {m.world_size}" if m.world_size > 1 else ""
    if m.run is None:
        return f"one step of {short(' '.join(m.command) or 'a script')}{rank}"
    settings = [settings_of(m.run)]
    return f"one step of {labels_of(settings)[0]}{rank}\n{title_of(settings)}"


def _draw_memory(axes: Axes, line: Sequence[Stretch], scale: int) -> None:
    """Draw each stretch from where the last one ended, over its own peak, to where it ends."""
    xs, ys = [0.0], [line[0].end_allocated_bytes / scale if line[0].phase == "load" else 0.0]
    for number, stretch in enumerate(line):
        xs += [number + 0.5, number + 1.0]
        ys += [stretch.peak_allocated_bytes / scale, stretch.end_allocated_bytes / scale]
    ys[0] = min(ys[1], ys[2]) if ys[0] == 0 else ys[0]
    axes.fill_between(xs, ys, color="#9fd7f5", linewidth=0)
    axes.plot(xs, ys, color="#004c7a", linewidth=1.0, label="allocated")
    known = [(number, s.reserved_bytes) for number, s in enumerate(line) if s.reserved_bytes is not None]
    if known:
        axes.step(
            [number + 1 for number, _ in known], [size / scale for _, size in known], where="pre", color=INK,
            linestyle=(0, (4, 2)), linewidth=1.2, label="reserved",
        )  # fmt: skip


def _draw_phases(axes: Axes, line: Sequence[Stretch], top: float) -> None:
    """Shade the backward, and name each phase above; narrow ones in a row share one label.

    With checkpointing backward and recomputation take turns, layer by layer.
    """
    phases = list(_phases(line))
    for name, start, stop in phases:
        if name == BACKWARD:
            axes.axvspan(start, stop, color="#000000", alpha=0.07, linewidth=0)
    row: list[tuple[str, int, int]] = []
    for phase in [*phases, None]:
        is_narrow = phase is not None and phase[2] - phase[1] < NARROW * len(line)
        if row and (phase is None or not is_narrow or (phase[0] in _TURNS) != (row[0][0] in _TURNS)):
            _name_phases(axes, row, len(line), top * 1.2)
            row = []
        if phase is not None and is_narrow:
            row.append(phase)
        elif phase is not None:
            _name_phases(axes, [phase], len(line), top * 1.28)


def _name_phases(axes: Axes, row: Sequence[tuple[str, int, int]], count: int, height: float) -> None:
    start, stop = row[0][1], row[-1][2]
    found = dict.fromkeys(name for name, _, _ in row)
    names = "\n".join(f"{name} (grey)" if name == BACKWARD and len(found) > 1 else name for name in found)
    if stop - start < NARROW * count and stop > 0.9 * count:  # wider than the phase: beside the axes
        axes.annotate(names, (1.01, 1.0), xycoords="axes fraction", ha="left", va="top", fontsize=8)
        return
    at_start = start < 0.1 * count and stop - start < NARROW * count
    place = start if at_start else (start + stop) / 2
    axes.text(place, height, names, ha="left" if at_start else "center", va="top", fontsize=8)


def _phases(line: Sequence[Stretch]) -> Iterator[tuple[str, int, int]]:
    line = [stretch for stretch in line if stretch.phase != "end"]
    start = 0
    for number in range(1, len(line) + 1):
        if number == len(line) or line[number].phase != line[start].phase:
            yield line[start].phase, start, number
            start = number


def _mark_peak(axes: Axes, at: int, count: int, peak: Stretch, scale: int, unit: str) -> None:
    size = peak.peak_allocated_bytes / scale
    axes.plot(
        [at + 0.5], [size], marker="v", markersize=8, color="#d55e00", markeredgecolor=INK, linestyle="", label="peak"
    )
    where = f"{amount(size)} {unit}\n{short(peak.module or peak.phase, 44)}"
    axes.annotate(
        where, (at + 0.5, size), xytext=(-6 if at > count / 2 else 6, 7), textcoords="offset points", fontsize=8,
        ha="right" if at > count / 2 else "left", va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},  # other lines may pass behind it
    )  # fmt: skip
