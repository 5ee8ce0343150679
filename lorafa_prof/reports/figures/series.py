"""Lines of peaks against something: one panel a configuration, one line a method and engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorafa_prof.reports.figures.naming import QUIET, Key, Settings, key_of, labels_of, title_of
from lorafa_prof.reports.figures.style import INK, engine_fill, method_look
from lorafa_prof.results.records import OBSERVED, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Panels of one figure; more go into another one.
MOST_PANELS = 6
#: Inches.
PANEL_WIDTH = 4.6


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one method by one engine."""

    label: str
    method: str
    engine: str
    points: tuple[tuple[float, float], ...]
    """(what it is drawn against, figure), in rising order of the first."""
    settings: Settings
    """Of the first of them."""
    joined: bool = True
    """Whether a line goes through them: one that leaves places out would promise something of those."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is drawn over one pair of axes."""

    title: str
    series: tuple[Series, ...]
    level: float | None = None
    """What full fine-tuning takes, which does not depend on what is drawn against."""


def panels_of(
    records: Iterable[Record], x: str, figure: Callable[[Record], float | None], least: int = 2
) -> Iterator[tuple[list[Record], list[list[Record]]]]:
    """Yield for each configuration its records, and of those the ones that differ in `x` alone.

    Args:
        records: of any runs.
        x: the setting that is drawn against.
        figure: what is drawn; a record for which it is None is left out.
        least: values of `x` without which a line says nothing.
    """
    panels: dict[object, dict[object, list[Record]]] = {}
    for record in records:
        if record.position(x) is None or figure(record) is None:
            continue
        panel = panels.setdefault(configuration(record.settings, x), {})
        panel.setdefault((record.engine, key_of(record.settings, (x,))), []).append(record)
    for panel in panels.values():
        lines = [line for line in panel.values() if len({record.position(x) for record in line}) >= least]
        if lines:
            yield [record for line in panel.values() for record in line], lines


def configuration(settings: Settings, *without: str) -> Key:
    """Return what is the same for all methods of a panel."""
    return key_of(settings, ("method", "rank", "targets", "layers", "dropout", *QUIET, *without))


def series_of(
    lines: Sequence[Sequence[Record]], x: str, figure: Callable[[Record], float | None]
) -> tuple[Series, ...]:
    """Return the lines with the labels that tell them apart; the same figure twice is one point."""
    labels = labels_of([line[0].settings for line in lines], (x,))
    return tuple(
        Series(
            label=label, method=line[0].method, engine=line[0].engine, points=_points(line, x, figure),
            settings=line[0].settings,
        )
        for label, line in zip(labels, lines, strict=True)
    )  # fmt: skip


def dealt(series: Sequence[Series]) -> list[tuple[Series, ...]]:
    """Return the series of one panel, or of several where two would look the same: one method by one engine."""
    panels: list[list[Series]] = []
    for each in series:
        places = [panel for panel in panels if (each.method, each.engine) not in [(s.method, s.engine) for s in panel]]
        if not places:
            places = [[]]
            panels += places
        places[0].append(each)
    return [tuple(panel) for panel in panels]


def _points(
    line: Sequence[Record], x: str, figure: Callable[[Record], float | None]
) -> tuple[tuple[float, float], ...]:
    pairs = {(record.position(x), figure(record)) for record in line}
    return tuple(sorted((at, value) for at, value in pairs if at is not None and value is not None))


def panel_of(series: Sequence[Series], x: str, level: float | None = None) -> Panel:
    """Return a panel whose title has what its own series have in common: of several panels with lines of one look the
    titles say which is which.
    """
    title = title_of([each.settings for each in series], (x,))
    named = [each.label.partition(", ") for each in series]
    common = {more for _, _, more in named}
    if len(common) == 1:
        (more,) = common
        title = f"{title}, {more}" if more and more not in title else title
        series = [replace(each, label=name) for each, (name, _, _) in zip(series, named, strict=True)]
    return Panel(title=title, series=tuple(series), level=level)


# -- drawing ---------------------------------------------------------------------------------------------------------


def grid_of_panels(count: int, *, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, two a row, and a margin for the legend at the right."""
    from matplotlib.figure import Figure

    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL_WIDTH * columns + 2.2, height * rows + 0.2))
    axes = figure.subplots(rows, columns, squeeze=False)
    for unused in axes.flat[count:]:
        unused.set_axis_off()
    return figure, list(axes.flat[:count])


def draw_series(
    axes: Axes, series: Sequence[Series], scale: float = 1, shift: Callable[[str], float] = lambda method: 1.0
) -> None:
    """Draw each series: an observation as points alone, a prediction as a line, if joined, through the most at a place.

    Args:
        axes: where.
        series: what, with looks that differ.
        scale: what the figures are divided by.
        shift: a factor that moves a method's points aside, where others would lie on them.
    """
    for each in series:
        look = method_look(each.method)
        xs, ys = [x * shift(each.method) for x, _ in each.points], [y / scale for _, y in each.points]
        if each.joined and each.engine != OBSERVED:
            most = {x: max(y for at, y in zip(xs, ys, strict=True) if at == x) for x in xs}
            axes.plot(list(most), list(most.values()), color=look.color, linestyle=look.dashes, linewidth=1.3)
        axes.plot(
            xs, ys, color=look.color, linestyle="", marker=look.marker, markersize=7, label=each.label,
            fillstyle=engine_fill(each.engine), markeredgecolor=look.color, markeredgewidth=1.1,
            markerfacecoloralt="white",
        )  # fmt: skip


def add_legend(figure: Figure, panels: Sequence[Sequence[Series]], more: Sequence[Any] = ()) -> None:
    """Say at the right which marker is which method, and which filling which engine.

    Args:
        figure: it has room there.
        panels: what is drawn.
        more: further handles.
    """
    from matplotlib.lines import Line2D

    every = [each for panel in panels for each in panel]
    handles: list[Any] = []
    for label, method in dict.fromkeys((each.label, each.method) for each in every):
        look = method_look(method)
        handles.append(
            Line2D([], [], color=look.color, linestyle=look.dashes, linewidth=1.3, marker=look.marker, label=label)
        )
    handles += [
        Line2D(
            [], [], color=INK, linestyle="", marker="o", fillstyle=engine_fill(engine), markerfacecoloralt="white",
            label=engine,
        )
        for engine in dict.fromkeys(each.engine for each in every)
    ]  # fmt: skip
    handles += more
    figure.legend(handles=handles, loc="outside right center", handlelength=3.6)


def ticks_at(axis: Any, values: Iterable[float]) -> None:
    """Put the ticks of a logarithmic axis at these values, as plain numbers; the nearest ones are thinned out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value / kept[-1] >= 1.4:
            kept.append(value)
    axis.set_major_locator(FixedLocator(kept))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
