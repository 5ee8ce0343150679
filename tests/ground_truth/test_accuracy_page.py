"""docs/accuracy.md: that it is what its points make of it, that none is missing, and what a point's line says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ground_truth.accuracy_page import (
    FIGURE,
    PAGE,
    POINTS,
    WHY,
    error,
    figure,
    needs_a_reason,
    page,
    read_points,
    why,
)
from tests.ground_truth.points import ALLOCATED, RESERVED, STEP, VERDICT, Point
from tests.ground_truth.records import CPU, devices, read_records
from tests.heldin.fms import ROWS

KNOWN = read_points(POINTS)


def test_the_page_is_made_of_its_points() -> None:
    """`make accuracy` would write the same page and figure from the points at hand."""
    assert PAGE.read_text(encoding="utf-8") == page(KNOWN)
    assert FIGURE.read_bytes() == figure(KNOWN)


def test_no_published_row_is_missing() -> None:
    """Each row of the published measurements is on the page, with the figure of its source."""
    assert {point.name for point in KNOWN if point.source == "published"} == set(ROWS)
    for point in KNOWN:
        if point.source == "published" and point.quantity in (ALLOCATED, RESERVED):
            assert point.measured == int(ROWS[point.name]["value_bytes"])
        if point.source == "published" and point.quantity == STEP:
            row = ROWS[point.name]
            tokens = int(row["bs"]) * int(row["seq"])
            assert point.measured == pytest.approx(tokens / float(row["tokens_per_s"]))


@pytest.mark.parametrize("device", devices())
def test_no_own_record_is_missing(device: str) -> None:
    """Each record that ended has a point."""
    ended = {record.name for record in read_records(device) if record.data["outcome"] == "ok"}
    assert {point.name for point in KNOWN if point.device == device and point.source == "own"} == ended


def test_own_records_of_the_cpu_are_met_to_the_byte() -> None:
    """Simulated peaks of recorded CPU steps are the recorded ones."""
    assert {point.error for point in KNOWN if point.device == CPU} == {0.0}


def test_an_error_of_a_hundredth_has_its_reason() -> None:
    """Nobody is left to wonder about a memory that is off, or a verdict that is wrong; nor is there one too many."""
    assert not [(point.name, point.engine) for point in KNOWN if needs_a_reason(point) and not why(point)]
    needed = {(point.name, point.engine) for point in KNOWN if needs_a_reason(point)}
    assert set(WHY) == needed


POINT = Point(
    source="published", name="fms-1", device="a100-80gb", method="full", quantity=ALLOCATED, measured=1000.0,
    engine="simulate", predicted=1000.0, versions="",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "0"), ({"predicted": 1001.0}, "+0.10%"), ({"predicted": 900.0}, "-10.00%"),
        ({"quantity": VERDICT, "measured": 1.0, "predicted": 1.0}, "right"),
        ({"quantity": VERDICT, "measured": 1.0, "predicted": 0.0}, "wrong"),
    ],
)  # fmt: skip
def test_how_an_error_is_said(changes: dict[str, object], said: str) -> None:
    """In per cent of what was measured, finer where it is small; a verdict in a word."""
    assert error(replace(POINT, **changes)) == said  # type: ignore[arg-type]


def test_the_worst_come_first() -> None:
    """Of the points of a quantity and engine, by the size of their errors."""
    points = [replace(POINT, name="fms-1"), replace(POINT, name="fms-2", predicted=1100.0)]
    lines = [line for line in page(points).splitlines() if line.startswith("| fms-")]
    assert [line.split()[1] for line in lines] == ["fms-2", "fms-1"]
