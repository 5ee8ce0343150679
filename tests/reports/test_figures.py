"""Figures: the bars have the heights of the figures, and files are the same each time."""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ET
from collections import Counter

import pytest

from lorafa_prof.compare import compare
from lorafa_prof.reports.figures import LOOKS, peaks_figure
from lorafa_prof.results import PART_FIELDS, Comparison
from tests.support.hand_made import MIB, measurement, memory, prediction, without_memory


def comparisons() -> list[Comparison]:
    said = memory(activations_bytes=54 * MIB, peak_allocated_bytes=194 * MIB)
    return [
        compare(measurement(), [prediction(said), prediction(engine="analytic")]),
        compare(without_memory("oom"), [prediction()]),
        compare(measurement(run=None, command=("train.py",)), []),
    ]


def texts(svg: bytes) -> Counter[str]:
    found = ET.parse(io.BytesIO(svg)).iter("{http://www.w3.org/2000/svg}text")
    return Counter("".join(each.itertext()) for each in found)


def test_every_part_has_its_look() -> None:
    """A colour and a hatch that no other part has, so that print in grey can be read as well."""
    assert set(LOOKS) == set(PART_FIELDS)
    for looks in zip(*LOOKS.values(), strict=True):
        assert len(set(looks)) == len(LOOKS)


def test_what_is_written_in_it() -> None:
    """Each bar has its peak above and its side below; parts without bytes are not in the legend."""
    said = texts(peaks_figure(comparisons(), "svg"))
    assert said["200.00"] == 4  # observed, analytic, the simulation of the second, the script
    assert said["194.00"] == 1
    assert said["no peak"] == 1
    assert (said["observed"], said["simulate"], said["analytic"], said["(oom)"]) == (3, 2, 1, 1)
    assert (said["MiB"], said["saved activations"], said["peak reserved"]) == (1, 1, 1)
    assert said["temporaries"] == said["in no part"] == 0
    assert said["train.py"] == 1


def test_bytes_in_no_part_are_drawn() -> None:
    """The stack is as high as the peak: what no part has is a part of its own."""
    found = compare(measurement(memory(peak_allocated_bytes=230 * MIB)), [])
    assert texts(peaks_figure([found], "svg"))["in no part"] == 1


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_same_file_each_time(form: str) -> None:
    """No dates, no random names."""
    assert peaks_figure(comparisons(), form) == peaks_figure(comparisons(), form)


def test_a_picture_is_large_enough_to_print() -> None:
    """150 dots an inch; more measurements are more width."""
    sizes = [struct.unpack(">II", peaks_figure(comparisons()[:count], "png")[16:24]) for count in (1, 3)]
    assert all(width >= 800 and height >= 700 for width, height in sizes)
    assert sizes[1][0] > sizes[0][0]
