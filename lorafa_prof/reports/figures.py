"""Figures of results, as bytes of a PNG or SVG file. matplotlib is imported when one is drawn, and no window opens."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorafa_prof.reports.prediction import PART_NAMES, method_name
from lorafa_prof.reports.table import clean
from lorafa_prof.results import Comparison
from lorafa_prof.units import GIB, MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A colour and a hatch for each part, bottom to top. The colours are told apart by people who do not see red and green
#: alike (after Okabe and Ito), dark and light alternate and no two hatches are the same, for print in grey.
LOOKS: Mapping[str, tuple[str, str]] = {
    "weights_bytes": ("#004c7a", ""),
    "adapter_bytes": ("#f0e442", "..."),
    "gradients_bytes": ("#d55e00", "///"),
    "optimizer_bytes": ("#9fd7f5", "---"),
    "activations_bytes": ("#008060", "xx"),
    "logits_bytes": ("#f2c0dc", "\\\\\\"),
    "temporaries_bytes": ("#8a5a00", "++"),
    "workspace_bytes": ("#dddddd", "oo"),
}
#: What is outside the allocator, where a figure shows it.
CONTEXT_LOOK = ("#8c8c8c", "")
_NO_PART = ("#ffffff", "")
#: Hatches and edges on these are white, on the others black.
DARK = ("#004c7a", "#d55e00", "#008060", "#8a5a00")

Bar = tuple[str, Mapping[str, float | None], float | None, float | None]
"""(label, parts, peak allocated, peak reserved), bytes."""


def peaks_figure(comparisons: Sequence[Comparison], form: str) -> bytes:
    """Return the peaks as stacked bars: for each measurement the observed one, and one an engine beside it.

    Args:
        comparisons: at least one.
        form: "png" or "svg".
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups = [(_group_name(comparison), _bars(comparison)) for comparison in comparisons]
    count = sum(len(bars) for _, bars in groups)
    # In an SVG text stays text and ids are the same each time: the same results give the same file.
    # A name with a dollar sign is no formula.
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "lorafa-prof", "hatch.linewidth": 0.6, "text.parse_math": False
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.0 + 0.95 * count + 0.4 * len(groups), 5.2), layout="constrained")
        axes = figure.subplots()
        _draw(axes, groups)
        stream = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(stream, format=form, dpi=150, metadata=metadata)
    return stream.getvalue()


def _group_name(comparison: Comparison) -> str:
    run = comparison.run
    if run is None:
        return clean(" ".join(comparison.command) or "a script")[:40]
    name = run.model.name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    rank = f", rank {comparison.rank}" if comparison.world_size > 1 else ""
    return f"{clean(name)[:30]}\n{method_name(run.method.name)}, {run.bs} x {run.seq:,}{rank}"


def _bars(comparison: Comparison) -> list[Bar]:
    rows = {row.name: row for row in comparison.rows if row.section in ("parts", "memories")}
    labels = ["observed", *(side.engine for side in comparison.sides)]

    def values(number: int) -> dict[str, float | None]:
        return {name: row.observed if number == 0 else row.predicted[number - 1] for name, row in rows.items()}

    bars: list[Bar] = []
    for number, label in enumerate(labels):
        found = values(number)
        ended = comparison.outcome if number == 0 and comparison.outcome != "ok" else ""
        parts = {name: found.get(name) for name in LOOKS}
        bars.append(
            (f"{label}\n({ended})" if ended else label, parts, found.get("peak_allocated_bytes"),
             found.get("peak_reserved_bytes"))
        )  # fmt: skip
    return bars


def _draw(axes: Axes, groups: Sequence[tuple[str, Sequence[Bar]]]) -> None:
    sizes = [size for _, bars in groups for bar in bars for size in bar[2:] if size is not None]
    unit, scale = ("GiB", GIB) if max(sizes, default=0) >= GIB else ("MiB", MIB)
    top = max(sizes, default=scale) / scale
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for name, bars in groups:
        middle = place + (len(bars) - 1) / 2
        axes.text(middle, -0.13, name, ha="center", va="top", transform=axes.get_xaxis_transform(), fontsize=9)
        for bar in bars:
            _draw_bar(axes, place, bar, scale, top)
            ticks.append((place, bar[0]))
            place += 1
        place += 0.7
    axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.set_ylim(0, top * 1.1)
    axes.set_xlim(-0.7, place - 1.0)
    axes.set_ylabel(unit)
    axes.set_title("peak allocated by part")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    order = [label for label in (*PART_NAMES.values(), *_MORE) if label in seen]
    # Top of the list is top of the bar.
    axes.legend(
        [seen[label] for label in reversed(order)], order[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5),
        frameon=False, fontsize=9,
    )  # fmt: skip


_MORE = ("in no part", "peak reserved")


def _draw_bar(axes: Axes, place: float, bar: Bar, scale: int, top: float) -> None:
    _, parts, peak, reserved = bar
    if peak is None:
        axes.text(place, top * 0.015, "no peak", ha="center", va="bottom", fontsize=8, rotation=90)
        return
    bottom = 0.0
    rest = peak - sum(size for size in parts.values() if size is not None)
    stack = [(PART_NAMES[name], parts[name] or 0, LOOKS[name]) for name in LOOKS]
    for label, size, (color, hatch) in [*stack, ("in no part", rest, _NO_PART)]:
        if size > 0:
            axes.bar(
                place, size / scale, 0.8, bottom, color=color, hatch=hatch, linewidth=0.6, label=label,
                edgecolor="white" if color in DARK else "black",
            )  # fmt: skip
            bottom += size / scale
    if reserved is not None:
        axes.plot(
            [place - 0.45, place + 0.45], [reserved / scale] * 2, color="black", linestyle=(0, (4, 2)), linewidth=1.4,
            label="peak reserved",
        )  # fmt: skip
    above = max(bottom, (reserved or 0) / scale)
    axes.text(place, above + top * 0.015, _amount(peak / scale), ha="center", va="bottom", fontsize=8)


def _amount(size: float) -> str:
    """Return a size with two decimals; one that is there is never shown as none."""
    return "<0.01" if 0 < size < 0.005 else f"{size:,.2f}"
