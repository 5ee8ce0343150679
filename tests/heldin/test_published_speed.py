"""Tokens per second that others measured on an A100 and published, against the default profile of that card.

Nothing in the profile is fitted to these rows. They run where the releases are that were measured; the batches were
packed, so that every token counts.
"""

from __future__ import annotations

import functools
import itertools

import pytest

from lorafa_prof.catalog import load_device
from lorafa_prof.simulate.engine import simulate
from lorafa_prof.speed.timeline import StepTimeline
from tests.heldin.fms import ROWS, fms_run, releases

pytestmark = [pytest.mark.heldin, releases("4.48.1", "0.13.2")]

A100 = load_device("a100-80gb")
MISTRAL = ("fms-1", "fms-2", "fms-3", "fms-4")
LARGER = tuple(f"{name}-bs8" for name in MISTRAL)


@functools.cache
def predicted(name: str) -> StepTimeline:
    """The timeline of a row's step."""
    time = simulate(fms_run(name), A100, timed=True).step_time(A100, None)
    assert time.timeline is not None
    return time.timeline


def observed(name: str) -> float:
    """Seconds of a step as they were measured."""
    return fms_run(name).tokens / float(ROWS[name]["tokens_per_s"])


@pytest.mark.parametrize("name", [*MISTRAL, *LARGER, "fms-5"])
def test_step_time_within_15_per_cent(name: str) -> None:
    """Uncalibrated, whatever the method."""
    found = predicted(name)
    kinds = {kind: round(seconds, 3) for kind, seconds in found.by_kind.items()}
    print(f"{name}: measured {observed(name):.3f} s, predicted {found.step_s:.3f} s, {kinds}")
    assert found.step_s == pytest.approx(observed(name), rel=0.15)


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(MISTRAL, 2), *itertools.combinations(LARGER, 2)])
def test_ratios_within_10_per_cent_and_their_order(one: str, other: str) -> None:
    """Full fine-tuning, LoRA and QLoRA of one model."""
    ratio, wanted = predicted(one).step_s / predicted(other).step_s, observed(one) / observed(other)
    print(f"{one} / {other}: measured {wanted:.3f}, predicted {ratio:.3f}")
    assert ratio == pytest.approx(wanted, rel=0.1)
    assert (ratio > 1) == (wanted > 1)
