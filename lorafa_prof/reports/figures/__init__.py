"""Figures of results: what kinds there are, what each one needs, and the bytes of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorafa_prof.reports.figures.frontier import draw_frontier
from lorafa_prof.reports.figures.mfu import draw_mfu
from lorafa_prof.reports.figures.parts import draw_comparisons, draw_parts
from lorafa_prof.reports.figures.peaks import draw_cards, draw_layers, draw_rank
from lorafa_prof.reports.figures.scatter import draw_scatter
from lorafa_prof.reports.figures.style import CONTEXT_LOOK, DARK, FORMS, LOOKS, Drawing, Form, rendered
from lorafa_prof.reports.figures.throughput import draw_throughput
from lorafa_prof.reports.figures.timeline import draw_timelines
from lorafa_prof.results import Comparison
from lorafa_prof.results.collection import Collection

__all__ = ["CONTEXT_LOOK", "DARK", "FORMS", "KINDS", "LOOKS", "Drawing", "Form", "Kind", "peaks_figure", "rendered"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of figure."""

    draw: Callable[[Collection], list[Drawing]]
    """Returns no drawing where the results have no data for it."""
    needs: str
    """What it is drawn from, in words."""


KINDS: Mapping[str, Kind] = {
    "parts": Kind(draw=draw_parts, needs="predictions, measurements or comparisons with a peak"),
    "scatter": Kind(
        draw=draw_scatter, needs="comparisons, or measurements beside the predictions of the same runs, with peaks"
    ),
    "frontier": Kind(
        draw=draw_frontier,
        needs="thresholds of oom along the batch, or predictions and sweep rows with a largest batch (--gpu), "
        "at two sequence lengths at least",
    ),
    "timeline": Kind(draw=draw_timelines, needs="measurements with a timeline (measure with --trace)"),
    "rank": Kind(draw=draw_rank, needs="predictions, sweep rows or measurements of one method that differ in the rank"),
    "layers": Kind(
        draw=draw_layers,
        needs="predictions, sweep rows or measurements of one method that differ in the layers with adapters",
    ),
    "cards": Kind(draw=draw_cards, needs="measurements or predictions of more than one card"),
    "mfu": Kind(
        draw=draw_mfu, needs="measurements with a known MFU (the card's peak FLOP/s is known, or --gpu named one)"
    ),
    "throughput": Kind(
        draw=draw_throughput,
        needs="predictions on a card, rows of sweep --timed or measurements of one method at two batches at least",
    ),
}


def peaks_figure(comparisons: Sequence[Comparison], form: Form) -> bytes:
    """Return the peaks as stacked bars: for each measurement the observed one, and one an engine beside it.

    Args:
        comparisons: at least one.
        form: "png" or "svg".
    """
    return rendered(draw_comparisons(comparisons).figure, form)
