"""How much of a device's arithmetic the measured steps used."""

from __future__ import annotations

from collections.abc import Sequence

from lorafa_prof.reports.figures.naming import labels_of, short, title_of
from lorafa_prof.reports.figures.style import INK, Drawing, ceiling, method_look, our_style, paged, wrapped
from lorafa_prof.results import Measurement
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.records import settings_of

#: Bars of one figure.
MOST_BARS = 15


def draw_mfu(found: Collection) -> list[Drawing]:
    """Return the MFU of each measurement, HFU beside it where that is known; empty where no MFU is."""
    seen = [m for m in found.measurements if m.run is not None and m.throughput.mfu is not None]
    return paged(seen, MOST_BARS, "mfu", _drawn, "measurements")


def _drawn(seen: Sequence[Measurement], name: str) -> Drawing:
    from matplotlib.figure import Figure

    settings = [settings_of(m.run) for m in seen if m.run is not None]
    names = labels_of(settings)
    names = [f"{each}, process {m.rank}" if m.world_size > 1 else each for each, m in zip(names, seen, strict=True)]
    devices = ", ".join(dict.fromkeys(short(str(m.environment.get("device") or "a device")) for m in seen))
    with our_style():
        width = max(6.4, 2.6 + 0.95 * len(seen))
        figure = Figure(figsize=(width, 4.4))
        axes = figure.subplots()
        for place, m in enumerate(seen):
            mfu, hfu = (m.throughput.mfu or 0) * 100, m.throughput.hfu
            color = method_look(m.run.method.name if m.run else "").color
            axes.bar(place, mfu, 0.62, color=color, edgecolor=INK, linewidth=0.6, label="MFU" if place == 0 else "")
            axes.text(place, max(mfu, 0), f"{mfu:,.1f}", ha="center", va="bottom", fontsize=8)
            if hfu is not None:
                axes.plot(place + 0.4, hfu * 100, marker="D", fillstyle="none", color=INK, linestyle="", markersize=6)
        axes.set_xticks(range(len(seen)), [each.replace(", ", "\n") for each in names], fontsize=8)
        axes.set_xlim(-0.7, len(seen) - 0.3)
        axes.set_ylim(0, ceiling(map(_largest, seen)) * 112)
        axes.set_ylabel("% of the device's peak FLOP/s")
        hint = "; diamonds: HFU, recomputation counted" if any(m.throughput.hfu is not None for m in seen) else ""
        title = "\n".join(filter(None, [f"measured MFU on {devices}{hint}", title_of(settings)]))
        axes.set_title(wrapped(title, width - 0.8))
    told = "; ".join(f"{each} {m.throughput.mfu:.1%}" for each, m in zip(names, seen, strict=True))
    return Drawing(name=name, figure=figure, caption=f"MFU as measured on {devices}: {told}.")


def _largest(m: Measurement) -> float:
    return max(m.throughput.mfu or 0, m.throughput.hfu or 0)
