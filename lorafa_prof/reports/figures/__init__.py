"""Figures of results: what kinds there are, what each one needs, and the bytes of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorafa_prof.reports.figures.parts import draw_comparisons, draw_parts
from lorafa_prof.reports.figures.style import FORMS, Drawing, Form, rendered
from lorafa_prof.results import Collection, Comparison

__all__ = ["FORMS", "KINDS", "Drawing", "Form", "Kind", "peaks_figure", "rendered"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of figure."""

    draw: Callable[[Collection], list[Drawing]]
    """Returns no drawing where the results have no data for it."""
    needs: str
    """What it is drawn from, in words."""


KINDS: Mapping[str, Kind] = {
    "parts": Kind(draw=draw_parts, needs="predictions, measurements or comparisons with a peak"),
}


def peaks_figure(comparisons: Sequence[Comparison], form: Form) -> bytes:
    """Return the peaks as stacked bars: for each measurement the observed one, and one an engine beside it.

    Args:
        comparisons: at least one.
        form: "png" or "svg".
    """
    return rendered(draw_comparisons(comparisons).figure, form)
