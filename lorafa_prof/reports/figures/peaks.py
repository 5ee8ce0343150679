"""Peaks against the adapters' rank, the share of the layers that have any, and the number of cards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lorafa_prof.layers import ALL, share_spelled
from lorafa_prof.reports.figures.series import (
    MOST_PANELS,
    PANEL_WIDTH,
    Panel,
    add_legend,
    configuration,
    dealt,
    draw_series,
    grid_of_panels,
    panel_of,
    panels_of,
    series_of,
    ticks_at,
)
from lorafa_prof.reports.figures.style import INK, Drawing, amount, ceiling, our_style, paged, scale_of, wrapped
from lorafa_prof.reports.prediction import method_name
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.records import Record


def draw_rank(found: Collection) -> list[Drawing]:
    """Return peak allocated against the rank; empty unless results of one method differ in it."""
    records = found.records()
    if len({record.number("rank") for record in records}) < 2:
        return []
    panels = _beside_full(records, records, "rank")
    return _drawn(panels, "rank", "peak allocated against the adapters' rank", Axis(label="rank", none="no rank"))


def draw_layers(found: Collection) -> list[Drawing]:
    """Return peak allocated against the share of the layers that have adapters; empty unless results differ in it."""
    records = found.records()
    if len({record.settings.get("layers") for record in records if record.method != "full"}) < 2:
        return []
    panels = _beside_full(records, _by_share(records), "layers")
    axis = Axis(label="layers with adapters, %", none="no adapters", logarithmic=False)
    return _drawn(panels, "layers", "peak allocated against the share of the layers that have adapters", axis)


def _by_share(records: Sequence[Record]) -> Iterator[Record]:
    """Yield the records with a share in percent for their layers; all of them end the line of each place."""
    shares = [(record, share_spelled(str(record.settings.get("layers", ALL)))) for record in records]
    places = dict.fromkeys(["last", *(share[1] for _, share in shares if share is not None)])
    for record, share in shares:
        if share is not None:
            percent, own = share
            for where in places if percent == 100 else (own,):
                settings = {**record.settings, "layers": percent, "where": where}
                yield replace(record, settings=settings)


def _beside_full(records: Sequence[Record], lines_of: Iterable[Record], x: str) -> list[Panel]:
    """Return the panels of the adapted records, each with what full fine-tuning takes as its level."""
    whole = [record for record in records if record.method == "full" and record.engine != "observed"]
    full = {configuration(record.settings, "where"): _peak(record) for record in whole}
    return [
        panel_of(series, x, full.get(configuration(seen[0].settings, "where")))
        for seen, lines in panels_of([record for record in lines_of if record.method != "full"], x, _peak)
        for series in dealt(series_of(lines, x, _peak))
    ]


def draw_cards(found: Collection) -> list[Drawing]:
    """Return a rank's peak against the number of cards; empty unless a result is of more than one."""
    known = [record for record in found.records() if record.number("gpus") is not None]
    if all(record.number("gpus") == 1 for record in known):
        return []
    records = _spread(known)
    panels = [
        panel_of(series, "gpus")
        for _, lines in panels_of(records, "gpus", _peak, least=1)
        for series in dealt(series_of(lines, "gpus", _peak))
        if any(x > 1 for each in series for x, _ in each.points)
    ]
    title = "peak allocated of each process against the number of cards"
    return _drawn(panels, "cards", title, Axis(label="cards"))


def _spread(records: Sequence[Record]) -> Iterator[Record]:
    """Yield the records; one of a single card begins the line of each way to share that the others have."""
    ways = dict.fromkeys(r.settings.get("shard") for r in records if (r.number("gpus") or 1) > 1)
    for record in records:
        if (record.number("gpus") or 1) > 1 or not ways:
            yield record
        else:
            for way in ways:
                yield Record(
                    engine=record.engine, settings={**record.settings, "shard": way}, memory=record.memory,
                    fit=record.fit, outcome=record.outcome, process=record.process,
                )  # fmt: skip


def _peak(record: Record) -> int | None:
    return None if record.memory is None else record.memory.peak_allocated_bytes


# -- drawing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What peaks are drawn against."""

    label: str
    none: str = ""
    """What full fine-tuning, which does not depend on it, has none of."""
    logarithmic: bool = True


def _drawn(panels: Sequence[Panel], name: str, title: str, axis: Axis) -> list[Drawing]:
    return paged(panels, MOST_PANELS, name, lambda page, file: _page(page, file, title, axis), "configurations")


def _page(panels: Sequence[Panel], name: str, title: str, axis: Axis) -> Drawing:
    from matplotlib.lines import Line2D

    with our_style():
        figure, axes = grid_of_panels(len(panels))
        for panel, place in zip(panels, axes, strict=True):
            sizes = [y for each in panel.series for _, y in each.points]
            unit, scale = scale_of([*sizes, panel.level])
            draw_series(place, panel.series, scale)
            if panel.level is not None:
                place.axhline(panel.level / scale, color=INK, linewidth=0.9)
            if axis.logarithmic:
                place.set_xscale("log", base=2)
                ticks_at(place.xaxis, (x for each in panel.series for x, _ in each.points))
            else:
                place.set_xlim(0, 104)
            place.set_ylim(0, ceiling([*sizes, panel.level]) / scale * 1.08)
            place.set_xlabel(axis.label)
            place.set_ylabel(unit)
            place.set_title(wrapped(panel.title, PANEL_WIDTH, 9), fontsize=9)
            place.grid(axis="y")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        has_level = any(panel.level is not None for panel in panels)
        level = Line2D([], [], color=INK, linewidth=0.9, label=f"{method_name('full')} ({axis.none})")
        add_legend(figure, [panel.series for panel in panels], [level] if has_level else [])
    return Drawing(name=name, figure=figure, caption=f"{title[:1].upper()}{title[1:]}. {' '.join(map(_told, panels))}")


def _told(panel: Panel) -> str:
    """Return a panel in words: the ends of each line."""
    unit, scale = scale_of(y for each in panel.series for _, y in each.points)
    said = []
    for each in panel.series:
        (first, low), (last, high) = each.points[0], each.points[-1]
        ends = f"{amount(low / scale)} {unit} at {first:g}, {amount(high / scale)} at {last:g}"
        said.append(f"{each.label} ({each.engine}): {ends}")
    return f"{panel.title}: {'; '.join(said)}."
