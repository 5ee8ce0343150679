"""The peak as stacked bars: the parts of what was observed, and of what each engine says beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorafa_prof.reports.figures.naming import Settings, labels_of, short, title_of
from lorafa_prof.reports.figures.series import configuration
from lorafa_prof.reports.figures.style import (
    DARK,
    INK,
    LOOKS,
    NO_PART,
    Drawing,
    amount,
    ceiling,
    our_style,
    paged,
    scale_of,
    wrapped,
)
from lorafa_prof.reports.prediction import PART_NAMES
from lorafa_prof.results import Comparison, Measurement, Memory, Prediction
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.records import OBSERVED, settings_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: More bars than these go into a figure of their own: on paper they would be too narrow to read.
MOST_BARS = 15
_RESERVED, _REST = "peak reserved", "in no part"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One peak; bytes."""

    label: str
    """Who says so, and how a run ended that did not end well."""
    parts: Mapping[str, float | None]
    peak: float | None
    reserved: float | None

    @property
    def stack(self) -> float:
        """All parts together: the peak, unless a file says otherwise."""
        return sum(size for size in self.parts.values() if size is not None and size > 0)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The bars of one run."""

    name: str
    bars: tuple[Bar, ...]
    settings: Settings | None = None
    """None for a script of the user's own."""
    more: str = ""
    """What tells it from others beside its settings: a rank of several, for example."""


def draw_parts(found: Collection) -> list[Drawing]:
    """Return the stacked bars of all comparisons, measurements and predictions; empty where no peak is known."""
    pages = [page for page in _pages(list(_groups(found))) if any(bar.peak is not None for g in page for bar in g.bars)]
    return paged(pages, 1, "parts", lambda page, name: _drawn(_named(page[0]), name), "groups of bars")


def draw_comparisons(comparisons: Sequence[Comparison]) -> Drawing:
    """Return the bars of comparisons alone, each in a group with its model's name.

    Args:
        comparisons: at least one.
    """
    return _drawn(_named([_of_comparison(comparison) for comparison in comparisons]), "parts")


# -- what is drawn ---------------------------------------------------------------------------------------------------


def _groups(found: Collection) -> Iterator[Group]:
    yield from (_of_comparison(comparison) for comparison in found.comparisons)
    yield from (_of_measurement(measurement) for measurement in found.unpaired_measurements())
    runs: list[list[Prediction]] = []
    for prediction in found.unpaired_predictions():
        alike = next((run for run in runs if run[0].run == prediction.run), None)
        alike.append(prediction) if alike is not None else runs.append([prediction])
    yield from map(_of_predictions, runs)


def _of_comparison(comparison: Comparison) -> Group:
    rows = {row.name: row for row in comparison.rows if row.section in ("parts", "memories")}
    bars = [_bar(_ended(OBSERVED, comparison.outcome), {name: row.observed for name, row in rows.items()})]
    for number, side in enumerate(comparison.sides):
        bars.append(_bar(side.engine, {name: row.predicted[number] for name, row in rows.items()}))
    return _measured_group(comparison, bars)


def _of_measurement(measurement: Measurement) -> Group:
    return _measured_group(measurement, [_bar(_ended(OBSERVED, measurement.outcome), _figures(measurement.memory))])


def _of_predictions(predictions: Sequence[Prediction]) -> Group:
    bars = tuple(_bar(prediction.engine, _figures(prediction.memory)) for prediction in predictions)
    return Group(name="", bars=bars, settings=settings_of(predictions[0].run))


def _measured_group(seen: Comparison | Measurement, bars: Sequence[Bar]) -> Group:
    settings = None if seen.run is None else settings_of(seen.run)
    process = f"process {seen.rank} of {seen.world_size}" if seen.world_size > 1 else ""
    return Group(name=short(" ".join(seen.command) or "a script"), bars=tuple(bars), settings=settings, more=process)


def _figures(memory: Memory | None) -> dict[str, float | None]:
    names = (*LOOKS, "peak_allocated_bytes", "peak_reserved_bytes")
    return {name: None if memory is None else getattr(memory, name) for name in names}


def _bar(label: str, figures: Mapping[str, float | None]) -> Bar:
    peak, reserved = (_possible(figures.get(name)) for name in ("peak_allocated_bytes", "peak_reserved_bytes"))
    parts = {name: figures.get(name) for name in LOOKS}
    return Bar(label=short(label), parts=parts, peak=peak, reserved=reserved)


def _possible(size: float | None) -> float | None:
    """Return a size; one below 0, which only a broken file has, is not known."""
    return None if size is None or size < 0 else size


def _ended(label: str, outcome: str) -> str:
    return label if outcome == "ok" else f"{label} ({outcome})"


def _named(groups: Sequence[Group]) -> list[Group]:
    """Return the groups with the names that tell them apart; scripts keep their own."""
    labels = iter(labels_of([group.settings for group in groups if group.settings is not None]))
    named = []
    for group in groups:
        name = group.name if group.settings is None else next(labels)
        named.append(replace(group, name=", ".join(filter(None, [name, group.more]))))
    return named


def _pages(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield the groups of each figure: those of one model, as bars of a large one would dwarf those of a small one."""
    models: dict[object, list[Group]] = {}
    for group in groups:
        models.setdefault(None if group.settings is None else group.settings["model"], []).append(group)
    for alike in models.values():
        page: list[Group] = []
        for chunk in _chunks(alike):
            if page and sum(len(each.bars) for each in (*page, *chunk)) > MOST_BARS:
                yield page
                page = []
            page += chunk
        yield page


def _chunks(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield the groups that are of one configuration, and so belong together, as long as they fit one figure."""
    chunk: list[Group] = []
    for group in groups:
        is_full = sum(len(each.bars) for each in (*chunk, group)) > MOST_BARS
        if chunk and (is_full or _configuration(group) != _configuration(chunk[0])):
            yield chunk
            chunk = []
        chunk.append(group)
    yield chunk


def _configuration(group: Group) -> object:
    return None if group.settings is None else configuration(group.settings)


# -- drawing ---------------------------------------------------------------------------------------------------------


def _drawn(groups: Sequence[Group], name: str) -> Drawing:
    from matplotlib.figure import Figure

    bars = [bar for group in groups for bar in group.bars]
    alone = bars[0].label if len({bar.label for bar in bars}) == 1 and len(bars) == len(groups) else ""
    with our_style():
        width = 3.9 + 0.95 * len(bars) + (0 if alone else 0.4 * len(groups))
        figure = Figure(figsize=(width, 5.2))
        axes = figure.subplots()
        _draw(axes, groups, alone)
        common = title_of([group.settings for group in groups if group.settings is not None])
        title = "\n".join(filter(None, [f"peak allocated by part{alone and f' ({alone})'}", common]))
        axes.set_title(wrapped(title, width - 0.8))
    whose = ", ".join(dict.fromkeys(bar.label for bar in bars))
    return Drawing(name=name, figure=figure, caption=f"Peak allocated memory by part, {whose}: {_told(groups)}.")


def _told(groups: Sequence[Group]) -> str:
    """Return the peaks in words."""
    unit, scale = scale_of(bar.peak for group in groups for bar in group.bars)
    return "; ".join(f"{group.name}: {', '.join(_said(bar, unit, scale) for bar in group.bars)}" for group in groups)


def _said(bar: Bar, unit: str, scale: int) -> str:
    return f"{bar.label} {'unknown' if bar.peak is None else f'{amount(bar.peak / scale)} {unit}'}"


def _draw(axes: Axes, groups: Sequence[Group], alone: str) -> None:
    bars = [bar for group in groups for bar in group.bars]
    sizes = [size for bar in bars for size in (bar.peak, bar.reserved, bar.stack) if size is not None]
    unit, scale = scale_of(sizes)
    top = ceiling(sizes) / scale
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for group in groups:
        middle = place + (len(group.bars) - 1) / 2
        if not alone:
            axes.annotate(
                group.name.replace(", ", "\n"), (middle, 0), xycoords=axes.get_xaxis_transform(), xytext=(0, -32),
                textcoords="offset points", ha="center", va="top", fontsize=9,
            )  # fmt: skip
        for bar in group.bars:
            _draw_bar(axes, place, bar, scale, top)
            ticks.append((place, (group.name if alone else bar.label).replace(", ", "\n").replace(" (", "\n(")))
            place += 1
        place += 0 if alone else 0.7
    axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.set_ylim(0, top * 1.1)
    axes.set_xlim(-0.7, place - (0.3 if alone else 1.0))
    axes.set_ylabel(unit)
    _legend(axes)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    order = [label for label in (*PART_NAMES.values(), _REST, _RESERVED) if label in seen]
    # Top of the list is top of the bar.
    axes.legend([seen[label] for label in reversed(order)], order[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5))


def _draw_bar(axes: Axes, place: float, bar: Bar, scale: int, top: float) -> None:
    if bar.peak is None:
        axes.text(place, top * 0.015, "no peak", ha="center", va="bottom", fontsize=8, rotation=90)
        return
    bottom = 0.0
    rest = bar.peak - sum(size for size in bar.parts.values() if size is not None)
    stack = [(PART_NAMES[name], bar.parts[name] or 0, look) for name, look in LOOKS.items()]
    for label, size, (color, hatch) in [*stack, (_REST, rest, NO_PART)]:
        if size > 0:
            axes.bar(
                place, size / scale, 0.8, bottom, color=color, hatch=hatch, linewidth=0.6, label=label,
                edgecolor="white" if color in DARK else "black",
            )  # fmt: skip
            bottom += size / scale
    if bar.reserved is not None:
        axes.plot(
            [place - 0.45, place + 0.45], [bar.reserved / scale] * 2, color=INK, linestyle=(0, (4, 2)), linewidth=1.4,
            label=_RESERVED,
        )  # fmt: skip
    above = max(bottom, (bar.reserved or 0) / scale)
    axes.text(place, above + top * 0.015, amount(bar.peak / scale), ha="center", va="bottom", fontsize=8)
