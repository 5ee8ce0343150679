"""The LoRA-FA paper's figures, drawn of what the engines say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorafa_prof.reports.figures.series import Series, add_legend, draw_series, grid_of_panels, ticks_at
from lorafa_prof.reports.figures.style import CAPACITY, INK, Dashes, Drawing, amount, ceiling, our_style
from lorafa_prof.reports.prediction import method_name
from lorafa_prof.results.claims import Examined, Level, Point, taken
from lorafa_prof.results.records import settings_of
from lorafa_prof.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVEL_DASHES: tuple[Dashes, ...] = ("-", (0, (5, 3)))
#: What is varied in steps of two.
DOUBLING = ("tokens", "rank")
#: Inches.
_BAR_PANEL = (8.6, 2.9)


def draw_examined(examined: Examined) -> Drawing:
    """Return the figure of a group of statements: bars of methods, or lines against what was varied.

    Args:
        examined: with points.
    """
    return _lines(examined) if examined.against else _bars(examined)


def _taken(point: Point) -> int:
    return taken(point.prediction)


def _allocated(point: Point) -> int:
    return point.prediction.memory.peak_allocated_bytes or 0


# -- bars ------------------------------------------------------------------------------------------------------------


def _bars(examined: Examined) -> Drawing:
    from matplotlib.figure import Figure

    assumptions = list(dict.fromkeys(point.assumption for point in examined.points))
    methods = list(dict.fromkeys(a.subject for a in examined.answers if "," not in a.subject and " " not in a.subject))
    with our_style():
        figure = Figure(figsize=(_BAR_PANEL[0], _BAR_PANEL[1] * len(assumptions)))
        panels = figure.subplots(len(assumptions), 1, squeeze=False, sharex=True, sharey=True)
        top = ceiling([*map(_taken, examined.points), *(level.nbytes for level in examined.levels)]) / GIB
        for assumption, axes in zip(assumptions, panels.flat, strict=True):
            points = [point for point in examined.points if point.assumption == assumption]
            asked = {answer.subject for answer in examined.answers if answer.assumption == assumption}
            _bar_panel(axes, points, {place: name for place, name in enumerate(methods) if name in asked}, top)
            axes.set_xlim(-0.6, len(methods) - 0.4)
            _draw_levels(axes, examined.levels)
            axes.set_title(assumption, fontsize=10)
            axes.set_ylabel("GiB")
        axes.set_xticks(range(len(methods)), [method_name(method) for method in methods], fontsize=9)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        seen = dict(zip(labels, handles, strict=True))
        figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=2)
        figure.suptitle(examined.title, x=0.01, ha="left", fontsize=11)
    return Drawing(name=examined.figure, figure=figure, caption=f"{examined.title}. {_told(examined)}")


def _bar_panel(axes: Axes, points: Sequence[Point], methods: Mapping[int, str], top: float) -> None:
    """Draw the bars of the methods that were asked, each at its place."""
    by_place = {(p.prediction.run.method.name, p.prediction.engine): p for p in points}
    for place, method in methods.items():
        for side, (engine, hatch, color, label) in enumerate(_ENGINES):
            at = place + (side - 0.5) * 0.4
            point = by_place.get((method, engine))
            if point is None:
                axes.text(at, top * 0.02, "not modelled", ha="center", va="bottom", rotation=90, fontsize=7)
                continue
            size = _taken(point) / GIB
            axes.bar(at, size, 0.38, color=color, edgecolor=INK, hatch=hatch, linewidth=0.7, label=label)
            axes.text(at, size + top * 0.01, f"{size:.0f}", ha="center", va="bottom", fontsize=7, bbox=_CLEAR)
    axes.set_ylim(0, top * 1.1)


#: The ground of a number: a level that passes behind it does not strike it through.
_CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}

#: Engine, hatch, colour and what its bar is; one hollow, one filled, as in all figures.
_ENGINES = (
    ("analytic", "", "#ffffff", "analytic: peak allocated"),
    ("simulate", "///", "#9fd7f5", "simulate: peak reserved"),
)


def _draw_levels(axes: Axes, levels: Sequence[Level]) -> None:
    for level, dashes in zip(levels, _LEVEL_DASHES, strict=False):
        axes.axhline(level.nbytes / GIB, color=CAPACITY, linestyle=dashes, linewidth=1.1, label=_level(level))


def _level(level: Level) -> str:
    return f"{level.name}, {amount(level.nbytes / GIB)} GiB" if "GiB" not in level.name else level.name


# -- lines -----------------------------------------------------------------------------------------------------------


def _lines(examined: Examined) -> Drawing:
    from matplotlib.lines import Line2D

    assumptions = list(dict.fromkeys(point.assumption for point in examined.points))
    with our_style():
        figure, panels = grid_of_panels(len(assumptions))
        height = _height(examined)
        top = ceiling([*map(height, examined.points), *(level.nbytes for level in examined.levels)]) / GIB
        drawn = []
        for assumption, axes in zip(assumptions, panels, strict=True):
            points = [point for point in examined.points if point.assumption == assumption]
            series = _series(points, height)
            draw_series(axes, series, GIB)
            _draw_levels(axes, examined.levels)
            if examined.against in DOUBLING:
                axes.set_xscale("log", base=2)
                ticks_at(axes.xaxis, (x for each in series for x, _ in each.points))
            axes.set_ylim(0, top * 1.08)
            axes.set_xlabel(examined.against)
            axes.set_ylabel("GiB")
            axes.set_title(assumption, fontsize=9)
            axes.grid(axis="y")
            drawn.append(series)
        levels = [
            Line2D([], [], color=CAPACITY, linestyle=dashes, linewidth=1.1, label=_level(level))
            for level, dashes in zip(examined.levels, _LEVEL_DASHES, strict=False)
        ]
        add_legend(figure, drawn, levels)
        figure.suptitle(examined.title, x=0.01, ha="left", fontsize=11)
    return Drawing(name=examined.figure, figure=figure, caption=f"{examined.title}. {_told(examined)}")


def _height(examined: Examined) -> Callable[[Point], int]:
    """Return what the points of a figure show: all that is taken, to be held against cards, or what is allocated."""
    return _allocated if examined.against and not examined.levels else _taken


def _series(points: Sequence[Point], height: Callable[[Point], int]) -> list[Series]:
    """Return a line for each method and engine; where an engine was asked at some places only, points alone."""
    lines: dict[tuple[str, str], list[Point]] = {}
    places: dict[str, set[float | None]] = {}
    for point in points:
        lines.setdefault((point.prediction.run.method.name, point.prediction.engine), []).append(point)
        places.setdefault(point.prediction.run.method.name, set()).add(point.x)
    return [
        Series(
            label=method_name(method), method=method, engine=engine, settings=settings_of(line[0].prediction.run),
            points=tuple(sorted((point.x or 0.0, float(height(point))) for point in line)),
            joined={point.x for point in line} == places[method],
        )
        for (method, engine), line in lines.items()
    ]  # fmt: skip


def _told(examined: Examined) -> str:
    """Return the points in words, for those who do not see them."""
    height = _height(examined)
    said = []
    for point in examined.points:
        at = "" if point.x is None else f" at {point.x:g} {examined.against}"
        name = method_name(point.prediction.run.method.name)
        said.append(f"{name}{at}, {point.assumption}, {point.prediction.engine}: {height(point) / GIB:.1f} GiB")
    return "; ".join(said) + "."
