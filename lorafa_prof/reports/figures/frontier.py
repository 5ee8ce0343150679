"""The largest batch that fits against the sequence length, card by card, and the measured runs on both sides of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorafa_prof.reports.figures.naming import Settings, key_of, labels_of, short, title_of
from lorafa_prof.reports.figures.series import (
    MOST_PANELS,
    PANEL_WIDTH,
    Series,
    add_legend,
    configuration,
    dealt,
    draw_series,
    grid_of_panels,
    ticks_at,
)
from lorafa_prof.reports.figures.style import FAINT, INK, Drawing, method_look, our_style, paged, wrapped
from lorafa_prof.results import Measurement
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.records import OBSERVED, settings_of
from lorafa_prof.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Where "none fits" is on the axis: half a sequence, as an axis of powers has no 0.
NONE_FITS = 0.5
#: How far methods stand apart where measured runs are drawn, in powers of 2.
ASIDE = 0.07
#: A card's memory as torch sees it differs by so much between one driver and another.
SAME_CARD = 0.02


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest batch that an engine says fits a card at one sequence length."""

    engine: str
    device: str
    capacity_bytes: int
    context_bytes: int | None
    settings: Settings
    """The sequence length among them; the batch is left out."""
    max_bs: int
    """0: not even one sequence fits."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A run that was really taken, and whether it ended out of memory."""

    method: str
    seq: int
    bs: int
    fits: bool


@dataclass(kw_only=True)
class _Card:
    """A panel: one card and configuration."""

    name: str
    capacity_bytes: int
    context_bytes: int | None
    settings: Settings
    lines: dict[object, list[Largest]] = field(default_factory=dict)


def draw_frontier(found: Collection) -> list[Drawing]:
    """Return the frontiers; empty unless the largest batch is known at two sequence lengths of one card."""
    panels: dict[object, _Card] = {}
    for point in _largest(found):
        key = (point.device, point.capacity_bytes, configuration(point.settings, "seq", "bs"))
        card = panels.setdefault(
            key,
            _Card(name=point.device, capacity_bytes=point.capacity_bytes, context_bytes=point.context_bytes,
                  settings=point.settings),
        )  # fmt: skip
        card.lines.setdefault((point.engine, key_of(point.settings, ("seq", "bs"))), []).append(point)
    cards = [card for card in panels.values() if any(_is_line(line) for line in card.lines.values())]
    drawn = [
        _Panel(card=card, series=series, seen=tuple(_seen(found, card, series)))
        for card in cards
        for series in dealt(_series(card))
    ]
    return paged(drawn, MOST_PANELS, "frontier", _page, "cards and configurations")


def _is_line(line: Sequence[Largest]) -> bool:
    return len({point.settings["seq"] for point in line}) > 1


def _largest(found: Collection) -> Iterator[Largest]:
    """Yield what thresholds along the batch say, and the largest batches that predictions and sweeps have beside."""
    for threshold in found.thresholds:
        if threshold.axis == "bs":
            yield Largest(
                engine=OBSERVED if threshold.engine == "measure" else threshold.engine, device=threshold.device,
                capacity_bytes=threshold.capacity_bytes, context_bytes=threshold.context_bytes,
                settings=settings_of(threshold.run), max_bs=threshold.max,
            )  # fmt: skip
    for record in found.records():
        for fit in record.fit:
            if fit.max_bs is not None:
                yield Largest(
                    engine=record.engine, device=fit.device, capacity_bytes=fit.capacity_bytes,
                    context_bytes=fit.context_bytes, settings=record.settings, max_bs=fit.max_bs,
                )  # fmt: skip


def _seen(found: Collection, card: _Card, series: Sequence[Series]) -> Iterator[Seen]:
    """Yield the measured runs on the panel's card of which one of its lines is, that ended well or out of memory."""
    for m in found.measurements:
        if m.run is not None and m.outcome in ("ok", "oom") and _is_on(card, found.cards, m):
            settings = settings_of(m.run)
            if any(_agree(settings, each.settings) for each in series):
                yield Seen(method=m.run.method.name, seq=m.run.seq, bs=m.run.bs, fits=m.outcome == "ok")


def _is_on(card: _Card, aliases: Mapping[str, str], m: Measurement) -> bool:
    """Return whether a measurement had the panel's card, all of it or as much as it was capped to."""
    name, total, cap = (m.environment.get(key) for key in ("device", "total_bytes", "cap_bytes"))
    same_name = card.name in (name, aliases.get(str(name)))
    if isinstance(cap, int):
        return cap in (card.capacity_bytes, card.capacity_bytes - (card.context_bytes or 0))
    return same_name and isinstance(total, int) and abs(total - card.capacity_bytes) <= SAME_CARD * card.capacity_bytes


def _agree(one: Settings, other: Settings) -> bool:
    """Return whether two runs differ in batch and sequence length alone, as far as both tell the rest."""
    first, second = (dict(key_of(settings, ("seq", "bs"))) for settings in (one, other))
    return all(first[name] == second[name] for name in first.keys() & second.keys())


# -- drawing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Panel:
    card: _Card
    series: tuple[Series, ...]
    seen: tuple[Seen, ...]


def _page(panels: Sequence[_Panel], name: str) -> Drawing:
    with our_style():
        figure, axes = grid_of_panels(len(panels))
        for panel, place in zip(panels, axes, strict=True):
            _draw(place, panel)
        figure.suptitle("largest batch that fits", x=0.01, ha="left", fontsize=11)
        add_legend(figure, [panel.series for panel in panels], list(_handles(panels)))
    told = f"The largest batch that fits, against the sequence length. {' '.join(map(_told, panels))}"
    return Drawing(name=name, figure=figure, caption=told)


def _series(card: _Card) -> tuple[Series, ...]:
    lines = list(card.lines.values())
    labels = labels_of([line[0].settings for line in lines], ("seq", "bs"))
    return tuple(
        Series(
            label=label, method=str(line[0].settings["method"]), engine=line[0].engine,
            points=tuple(sorted({(_seq(point), max(point.max_bs, NONE_FITS)) for point in line})),
            settings=line[0].settings,
        )
        for label, line in zip(labels, lines, strict=True)
    )  # fmt: skip


def _seq(point: Largest) -> int:
    seq = point.settings["seq"]
    assert isinstance(seq, int), "records and runs have whole numbers here"
    return seq


def _title(card: _Card) -> str:
    settings = [line[0].settings for line in card.lines.values()]
    return f"{short(card.name)}, {card.capacity_bytes / GIB:.2f} GiB\n{title_of(settings, ('seq', 'bs'))}"


def _draw(axes: Axes, panel: _Panel) -> None:
    card, series = panel.card, panel.series
    methods = list(dict.fromkeys(each.method for each in series))

    def shift(method: str) -> float:
        """Return what moves a method aside: measured runs of several methods would lie on each other."""
        return 2 ** (ASIDE * (methods.index(method) - (len(methods) - 1) / 2)) if panel.seen else 1.0

    draw_series(axes, series, shift=shift)
    for seen in panel.seen:
        look = method_look(seen.method)
        axes.plot(
            seen.seq * shift(seen.method), seen.bs, marker=look.marker if seen.fits else "x", color=look.color,
            markersize=5, markeredgewidth=1.8, linestyle="",
        )  # fmt: skip
    xs = {x for each in series for x, _ in each.points} | {seen.seq for seen in panel.seen}
    ys = [y for each in series for _, y in each.points] + [seen.bs for seen in panel.seen]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks_at(axes.xaxis, xs)
    _batch_ticks(axes, max(ys), min(ys) == NONE_FITS)
    axes.set_xlabel("tokens a sequence (methods side by side)" if panel.seen else "tokens a sequence")
    axes.set_ylabel("largest batch")
    axes.set_title(wrapped(_title(card), PANEL_WIDTH, 9), fontsize=9)
    axes.grid(axis="y")


def _batch_ticks(axes: Axes, most: float, none_fits: bool) -> None:
    """Put the ticks at powers of 2, and one for "none" where no batch fits."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    powers = [2.0**k for k in range(-1 if none_fits else 0, 24) if 2.0**k <= most]
    axes.yaxis.set_major_locator(FixedLocator(powers))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "none" if y == NONE_FITS else f"{y:,.0f}"))
    axes.set_ylim(0.4 if none_fits else 0.8, most * 1.4)
    if none_fits:
        axes.axhline(0.7, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))


def _handles(panels: Iterable[_Panel]) -> Iterator[Any]:
    from matplotlib.lines import Line2D

    ends = {seen.fits for panel in panels for seen in panel.seen}
    if True in ends:
        yield Line2D([], [], color=INK, marker="o", linestyle="", label="measured: it ran")
    if False in ends:
        yield Line2D([], [], color=INK, marker="x", markeredgewidth=1.8, linestyle="", label="measured: out of memory")


def _told(panel: _Panel) -> str:
    said = "; ".join(
        f"{each.label} ({each.engine}) "
        + ", ".join(f"{'none' if y == NONE_FITS else f'{y:g}'} at {x:g}" for x, y in each.points)
        for each in panel.series
    )
    return f"{_title(panel.card)}: {said}.".replace("\n", ", ")
