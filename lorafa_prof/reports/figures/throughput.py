"""Tokens per second against the batch, card by card: as predicted, and as measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lorafa_prof.reports.figures.series import (
    MOST_PANELS,
    PANEL_WIDTH,
    Panel,
    add_legend,
    dealt,
    draw_series,
    grid_of_panels,
    panel_of,
    panels_of,
    series_of,
    ticks_at,
)
from lorafa_prof.reports.figures.style import Drawing, ceiling, our_style, paged, wrapped
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.records import Record

_TITLE = "tokens per second against the batch"


def draw_throughput(found: Collection) -> list[Drawing]:
    """Return the throughput of each card; empty unless it is known at two batches of one configuration."""
    panels = [
        panel_of(series, "bs")
        for _, lines in panels_of(_on_cards(found), "bs", _speed)
        for series in dealt(series_of(lines, "bs", _speed))
    ]
    return paged(panels, MOST_PANELS, "throughput", _page, "cards and configurations")


def _on_cards(found: Collection) -> Iterator[Record]:
    """Yield a record for each card that has a time: the card is among its settings."""
    for record in found.records():
        if record.device is not None and record.tokens_per_s is not None:
            yield _at(record, found.cards.get(record.device, record.device), record.tokens_per_s)
        for fit in record.fit:
            if fit.tokens_per_s is not None:
                yield _at(record, fit.device, fit.tokens_per_s)


def _at(record: Record, device: str, tokens_per_s: float) -> Record:
    return replace(record, settings={**record.settings, "device": device}, tokens_per_s=tokens_per_s)


def _speed(record: Record) -> float | None:
    return record.tokens_per_s


def _page(panels: Sequence[Panel], name: str) -> Drawing:
    with our_style():
        figure, axes = grid_of_panels(len(panels))
        for panel, place in zip(panels, axes, strict=True):
            draw_series(place, panel.series)
            place.set_xscale("log", base=2)
            ticks_at(place.xaxis, (x for each in panel.series for x, _ in each.points))
            place.set_ylim(0, ceiling(y for each in panel.series for _, y in each.points) * 1.08)
            place.set_xlabel("batch")
            place.set_ylabel("tokens/s")
            place.set_title(wrapped(panel.title, PANEL_WIDTH, 9), fontsize=9)
            place.grid(axis="y")
        figure.suptitle(_TITLE, x=0.01, ha="left", fontsize=11)
        add_legend(figure, [panel.series for panel in panels])
    return Drawing(
        name=name, figure=figure, caption=f"{_TITLE[:1].upper()}{_TITLE[1:]}. {' '.join(map(_told, panels))}"
    )


def _told(panel: Panel) -> str:
    """Return a panel in words: the ends of each line."""
    said = []
    for each in panel.series:
        (first, low), (last, high) = each.points[0], each.points[-1]
        said.append(f"{each.label} ({each.engine}): {low:,.0f} tokens/s at {first:g}, {high:,.0f} at {last:g}")
    return f"{panel.title}: {'; '.join(said)}."
