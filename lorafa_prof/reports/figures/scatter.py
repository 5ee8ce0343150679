"""Predicted against observed peaks, and how far each prediction misses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorafa_prof.reports.figures.style import CAPACITY, INK, Drawing, engine_fill, method_look, our_style, scale_of
from lorafa_prof.reports.prediction import method_name
from lorafa_prof.results import Comparison
from lorafa_prof.results.collection import Collection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The bands, as shares of what was observed, the wider one first.
BANDS = ((0.05, "#e6e6e6"), (0.01, "#c4c4c4"))
#: From this error on, in %, the axis of errors is stretched around 0 and squeezed outside.
SQUEEZED = 25.0
_MEMORIES = {"peak_allocated_bytes": "peak allocated", "peak_reserved_bytes": "peak reserved"}
#: Who is no method of ours.
_SCRIPT = "script"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One memory of one run, by one engine; bytes."""

    method: str
    engine: str
    observed: float
    predicted: float
    error: float
    """The prediction less the observation, as a share of what was observed."""


def draw_scatter(found: Collection) -> list[Drawing]:
    """Return the scatter of both memories that the results have; empty where nothing was compared."""
    by_memory = {name: list(_points(found.comparisons, name)) for name in _MEMORIES}
    known = {name: points for name, points in by_memory.items() if points}
    return [drawing_of(known)] if known else []


def _points(comparisons: Sequence[Comparison], name: str) -> Iterator[Point]:
    for comparison in comparisons:
        row = comparison.row(name, "memories")
        if row is None or row.observed is None or row.observed <= 0:  # no place on a logarithmic axis
            continue
        method = _SCRIPT if comparison.run is None else comparison.run.method.name
        for number, side in enumerate(comparison.sides):
            predicted, error = row.predicted[number], row.relative_error(number)
            if predicted is not None and predicted > 0 and error is not None:
                yield Point(method=method, engine=side.engine, observed=row.observed, predicted=predicted, error=error)


# -- drawing ---------------------------------------------------------------------------------------------------------


def drawing_of(known: dict[str, list[Point]]) -> Drawing:
    """Return the scatter of points, by the memory of which they are ("peak_allocated_bytes")."""
    from matplotlib.figure import Figure

    with our_style():
        figure = Figure(figsize=(4.6 * len(known) + 2.0, 6.4))
        axes = figure.subplots(2, len(known), squeeze=False, gridspec_kw={"height_ratios": [3, 1.5]}, sharex="col")
        for number, (name, points) in enumerate(known.items()):
            _draw_peaks(axes[0][number], points, _MEMORIES[name])
            _draw_errors(axes[1][number], points)
        every = [point for points in known.values() for point in points]
        figure.legend(handles=list(_handles(every)), loc="outside right center")
        figure.suptitle("predicted against observed", x=0.01, ha="left", fontsize=11)
    return Drawing(name="scatter", figure=figure, caption=f"Predicted against observed peaks. {_told(known)}")


def _draw_peaks(axes: Axes, points: Sequence[Point], what: str) -> None:
    sizes = [size for point in points for size in (point.observed, point.predicted)]
    unit, scale = scale_of(sizes)
    low, high = min(sizes) / scale / 1.3, max(sizes) / scale * 1.3
    for share, color in BANDS:
        axes.fill_between(
            [low, high], [low * (1 - share), high * (1 - share)], [low * (1 + share), high * (1 + share)],
            color=color, linewidth=0,
        )  # fmt: skip
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8)
    for point in points:
        _mark(axes, point, point.observed / scale, point.predicted / scale)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis)
    axes.set_ylabel(f"predicted, {unit}")
    axes.set_title(f"{what}, {unit}", fontsize=10)


def _draw_errors(axes: Axes, points: Sequence[Point]) -> None:
    _, scale = scale_of(size for point in points for size in (point.observed, point.predicted))
    unit, _ = scale_of(size for point in points for size in (point.observed, point.predicted))
    for share, color in BANDS:
        axes.axhspan(-share * 100, share * 100, color=color, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    for point in points:
        _mark(axes, point, point.observed / scale, point.error * 100)
    most = max(abs(point.error) * 100 for point in points)
    if most > SQUEEZED:
        axes.set_yscale("symlog", linthresh=5)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    reach = max(6.5, most * 1.2)
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("error, %")
    axes.set_xlabel(f"observed, {unit}")


def _mark(axes: Axes, point: Point, x: float, y: float) -> None:
    look = method_look(point.method)
    axes.plot(
        x, y, marker=look.marker, color=look.color, fillstyle=engine_fill(point.engine), markerfacecoloralt="white",
        markersize=7, markeredgewidth=1.1, linestyle="",
    )  # fmt: skip


def _plain_ticks(axis: Any) -> None:
    """Write the ticks of a logarithmic axis as plain numbers, some also between the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _handles(points: Sequence[Point]) -> Iterator[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    for method in dict.fromkeys(point.method for point in points):
        look = method_look(method)
        yield Line2D([], [], color=look.color, marker=look.marker, linestyle="", label=method_name(method))
    for engine in dict.fromkeys(point.engine for point in points):
        yield Line2D(
            [], [], color=INK, marker="o", fillstyle=engine_fill(engine), markerfacecoloralt="white", linestyle="",
            label=engine,
        )  # fmt: skip
    for share, color in reversed(BANDS):
        yield Patch(facecolor=color, edgecolor=CAPACITY, linewidth=0.4, label=f"within {share:.0%}")


def _told(known: dict[str, list[Point]]) -> str:
    return " ".join(
        f"{_MEMORIES[name]}, predictions: {len(points)}, errors from {_share(min(p.error for p in points))} to "
        f"{_share(max(p.error for p in points))}."
        for name, points in known.items()
    )


def _share(error: float) -> str:
    """Return an error in per cent; one that is there is never shown as none."""
    if 0 < abs(error) < 0.00005:
        return f"{'+' if error > 0 else '-'}<0.01%"
    return f"{error:+.2%}" if error else "0%"
