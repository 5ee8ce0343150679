"""Every method on every architecture, in models of full size: closed forms and the simulated allocator, side by side.

The simulation replays the real step's storages through the model of PyTorch's caching allocator, which counts whole
blocks; closed forms give that model the tensors of their own record. `make test-grid` prints every cell, and the worst
of them at the end.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lorafa_prof.specs import METHODS
from lorafa_prof.units import format_bytes
from tests.support.peak_grid import DESIGN, MODELS, VALUES, Found, compare, points, taken

#: Peaks agree to this share of the simulated one.
BAR = 0.01
#: How many of the worst cells are printed.
WORST = 15

_found: list[Found] = []


def test_the_design() -> None:
    """Each value of an option meets each value of every other one, in every method and on every architecture."""
    for one, other in itertools.combinations(range(len(VALUES)), 2):
        pairs = {(row[one], row[other]) for row in DESIGN}
        assert len(pairs) == len(VALUES[one]) * len(VALUES[other])
    first = {(model, method): next(points((model, method))).row for model in MODELS for method in METHODS}
    for model in MODELS:
        assert {first[model, method] for method in METHODS} == set(range(len(DESIGN)))
    for method in METHODS:
        assert {first[model, method] for model in MODELS} == set(range(len(DESIGN)))


#: Cells that are quick and whose tensors alone would miss the bar by far.
BY_DEFAULT = (("gpt2", "full"), ("roberta-base", "lora"))


def cells() -> list[Any]:
    """Every model with every method."""
    return [
        pytest.param(*cell, marks=() if cell in BY_DEFAULT else pytest.mark.slow)
        for cell in itertools.product(MODELS, METHODS)
    ]


@pytest.mark.parametrize(("model", "method"), cells())
def test_a_cell(model: str, method: str) -> None:
    """Peak allocated by closed forms is within the bar of what the simulated allocator counts."""
    point = taken((model, method))
    if isinstance(point, str):
        pytest.skip(point)
    found = compare(point)
    _found.append(found)
    print(_line(found))  # noqa: T201 - rows that are to be read
    assert abs(found.error) <= BAR


@pytest.mark.slow
def test_the_worst_cells() -> None:
    """What was compared before, the worst first; all of it is within the bar, so that only the order is new here."""
    for found in sorted(_found, key=lambda found: -abs(found.error))[:WORST]:
        print(_line(found))  # noqa: T201 - rows that are to be read


def _line(found: Found) -> str:
    said = f"{found.error:+.2%}: {found.point}: {format_bytes(found.formed)} formed, {format_bytes(found.simulated)}"
    return f"{said} simulated in {found.simulated_at}; of tensors alone {found.error_of_tensors:+.2%}"
