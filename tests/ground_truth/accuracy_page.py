"""Writes docs/accuracy.md and its figure from the points that `points` found. `make accuracy` runs both.

python -m tests.ground_truth.accuracy_page
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lorafa_prof.catalog import load_device
from lorafa_prof.reports.figures import rendered, scatter
from lorafa_prof.units import format_bytes
from tests.ground_truth.points import ALLOCATED, RESERVED, STEP, USED, VERDICT, Point
from tests.ground_truth.records import CPU
from tests.heldin.fms import ROWS
from tests.support.support_page import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURE = DOCS / "accuracy.md", DOCS / "figures" / "accuracy.svg"
#: What one command finds, kept so that the page can be made again from it without the other releases.
POINTS = Path(__file__).parent / "points.jsonl"

_HEAD = """\
# How accurate, and how we know

Made by `make accuracy` from measured points; do not edit. Every figure that we know to be measured and that the engines
can be asked for is here, the worst with the rest: what others published of their cards, and steps that were recorded
without this package (`tests/ground_truth`). A simulated step is that of the installed libraries, so each published row
is simulated with the releases that ran. Nothing in the package is fitted to a row; what a row leaves open, and what was
assumed for it, is in `tests/heldin`.
"""

_CARDS = """\
## Own records of cards

None yet: no step of a card of ours has been recorded. With a CUDA device at hand, four commands record them (some
minutes each on a card of 80 GB or more):

    python -m tests.ground_truth.recorder --out tests/ground_truth/h200 --group core
    python -m tests.ground_truth.recorder --out tests/ground_truth/h200 --group breadth
    python -m tests.ground_truth.recorder --out tests/ground_truth/h200 --group traces
    python -m tests.ground_truth.recorder --out tests/ground_truth/h200 --group oom
    gzip -9n tests/ground_truth/h200/cases-*.jsonl

The folder has the card's name in the catalog. Then `make test-slow ARGS=tests/ground_truth` holds the engines to the
records, and `make accuracy` writes this page anew."""

_LOSS = "closed forms are of transformers 5.23, whose loss shifts labels, not logits (simulate.md)"
_FP32_LOSS = "closed forms are of transformers 5.23, whose loss of this model runs in fp32 (simulate.md)"
_RESERVED = "closed forms are of what is allocated; what the allocator reserves beyond is not in them"
#: Why a memory of a published row is off by more than a hundredth, or a verdict wrong, for those that are.
WHY: Mapping[tuple[str, str], str] = {
    **{(f"fms-{number}{batch}", "analytic"): _LOSS for number in (2, 3, 4) for batch in ("", "-bs8")},
    ("fms-5", "analytic"): _FP32_LOSS,
    ("paper-1", "analytic"): _RESERVED,
    ("paper-1", "simulate"): "the CUDA context of an A800 is not known, and so not in it; LoRA-FA is this package's",
    ("paper-4", "simulate"): "what is reserved is beyond the card, what is allocated is not (paper.md)",
}
#: From this error on a memory has its reason.
EXPLAINED = 0.01


def size_or_time(point: Point, value: float) -> str:
    """Return a figure with its unit."""
    if point.quantity == VERDICT:
        return "fits" if value else "out of memory"
    return f"{value:.3f} s" if point.quantity == STEP else format_bytes(round(value))


def error(point: Point) -> str:
    """Return how far the prediction misses; a verdict is right or wrong."""
    if point.quantity == VERDICT:
        return "wrong" if point.error else "right"
    if point.predicted == point.measured:
        return "0"
    digits = 4 if abs(point.error) < 1e-4 else 2
    return f"{point.error:+.{digits}%}"


def why(point: Point) -> str:
    """Return the reason for an error that needs one; empty where it needs none."""
    return WHY.get((point.name, point.engine), "") if needs_a_reason(point) else ""


def needs_a_reason(point: Point) -> bool:
    """Say whether a point is off by so much that nobody is to be left to wonder."""
    return point.quantity != STEP and abs(point.error) >= EXPLAINED


def rows_of(points: Iterable[Point]) -> list[tuple[str, Sequence[str]]]:
    """Return the rows of a table, the worst first within what is measured."""
    order = {quantity: number for number, quantity in enumerate((ALLOCATED, RESERVED, USED, VERDICT, STEP))}
    ordered = sorted(points, key=lambda point: (order[point.quantity], point.engine, -abs(point.error), point.name))
    return [
        (
            point.name,
            (
                point.quantity, point.engine, size_or_time(point, point.measured), size_or_time(point, point.predicted),
                error(point), why(point),
            ),
        )
        for point in ordered
    ]  # fmt: skip


_COLUMNS = ("quantity", "engine", "measured", "predicted", "error", "why")


def summary(points: Sequence[Point]) -> list[str]:
    """Return a table of each engine's errors, quantity by quantity."""
    kinds = list(dict.fromkeys((p.source, p.device == CPU, p.quantity, p.engine) for p in points))
    rows = []
    for source, on_cpu, quantity, engine in kinds:
        found = [
            p for p in points if (p.source, p.device == CPU, p.quantity, p.engine) == (source, on_cpu, quantity, engine)
        ]
        errors = sorted(abs(point.error) for point in found)
        whose = {"published": "published", "own": "own records, CPU" if on_cpu else "own records, cards"}[source]
        if quantity == VERDICT:
            said = (f"{sum(not e for e in errors)} right", f"{sum(map(bool, errors))} wrong")
        else:
            said = (f"{errors[len(errors) // 2]:.3%}", f"{errors[-1]:.3%}")
        exact = sum(point.predicted == point.measured for point in found)
        rows.append((whose, (quantity, engine, str(len(found)), str(exact), *said)))
    return table("points", ("quantity", "engine", "points", "equal", "median error", "worst error"), rows)


def published(points: Sequence[Point]) -> str:
    """Return the section of published rows, with what each was."""
    names = list(dict.fromkeys(point.name for point in points))
    lines = ["## Published measurements", "", *table("row", _COLUMNS, rows_of(points)), "", "The rows:", ""]
    for name in names:
        row = ROWS[name]
        shape = f"{row['model']} {row['method']}, {row['bs']} x {row['seq']}, {row['attn']}"
        lines.append(f"- **{name}**: {shape}, on {load_device(row['gpu']).full_name}. {_source(name)}")
    return "\n".join(lines)


def _source(name: str) -> str:
    names = list(ROWS)
    position = names.index(name)
    while ROWS[names[position]]["source"] == "same":
        position -= 1
    return f"Source: {ROWS[names[position]]['source']}."


def own(points: Sequence[Point]) -> list[str]:
    """Return the sections of own records, one a device."""
    sections = []
    for device in dict.fromkeys(point.device for point in points):
        found = [point for point in points if point.device == device]
        title = "a CPU" if device == CPU else load_device(device).full_name
        lines = [f"## Own records of {title}", "", f"Under {found[0].versions}.", ""]
        if device == CPU:
            lines += [_ON_CPU, ""]
        sections.append("\n".join([*lines, *table("case", _COLUMNS[:-1], [(n, r[:-1]) for n, r in rows_of(found)])]))
    return sections


_ON_CPU = """\
Tiny models, three steps each. Not only the peak but what is in use at the end of each phase and the most in each is
compared, to the byte (`tests/ground_truth/test_records.py`)."""


def page(points: Sequence[Point]) -> str:
    """Return the whole page."""
    ours = [point for point in points if point.source == "own"]
    sections = [
        _HEAD, "\n".join(["## In short", "", *summary(points)]),
        "![Predicted against published peaks](figures/accuracy.svg)",
        published([point for point in points if point.source == "published"]), *own(ours),
    ]  # fmt: skip
    if all(point.device == CPU for point in ours):
        sections.append(_CARDS)
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def figure(points: Sequence[Point]) -> bytes:
    """Return the scatter of peaks on cards, as SVG."""
    found: dict[str, list[scatter.Point]] = {}
    for point in points:
        if point.device != CPU and point.quantity in (ALLOCATED, RESERVED):
            found.setdefault(f"{point.quantity.replace(' ', '_')}_bytes", []).append(
                scatter.Point(
                    method=point.method,
                    engine=point.engine,
                    observed=point.measured,
                    predicted=point.predicted,
                    error=point.error,
                )
            )
    return rendered(scatter.drawing_of(found).figure, "svg")


def read_points(path: Path) -> list[Point]:
    """Read what `points` wrote."""
    return [Point(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write the page and its figure."""
    points = read_points(POINTS)
    PAGE.write_text(page(points), encoding="utf-8")
    FIGURE.write_bytes(figure(points))


if __name__ == "__main__":
    main()
