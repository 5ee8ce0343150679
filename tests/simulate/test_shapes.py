"""Sizes at any shape, from a few recordings, are those of the step recorded at that shape."""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.allocator.replay import replay
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.errors import BadInputError
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recordings import Recordings
from lorafa_prof.simulate.shapes import Axis, DifferentStepsError, Polynomials, Shapes
from lorafa_prof.simulate.thresholds import Thresholds
from lorafa_prof.specs import RunSpec
from tests.analytic.runs import run_of

LONG = {"max_position_embeddings": 4096}


def platform() -> Cuda:
    return Cuda(DeviceTraits((8, 0), 108), "2.13.0")


def long_run(method: str, **options: Any) -> RunSpec:
    return run_of("llama", method, changes=LONG, **{"bs": 3, "seq": 150, **options})


class TestPolynomials:
    """Exact interpolation with integers."""

    def test_values_in_between_and_beyond(self) -> None:
        """3 + 5 b + 2 s + 7 b s + s^2 + 4 b s^2 is found again from its values at seven points."""

        def value(b: int, s: int) -> int:
            return 3 + 5 * b + 2 * s + 7 * b * s + s * s + 4 * b * s * s

        terms = ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2))
        points = [(b, s) for b in (2, 3) for s in (10, 20, 30)] + [(5, 70)]
        polynomials = Polynomials(terms, points)
        assert polynomials.at((11, 1000))(tuple(value(*point) for point in points)) == value(11, 1000)

    def test_a_point_that_does_not_agree(self) -> None:
        """The last point is there to contradict: values on no polynomial of this degree are refused."""
        polynomials = Polynomials(((0, 0), (1, 0)), [(2, 8), (3, 8), (5, 8)])
        with pytest.raises(DifferentStepsError, match="no polynomial"):
            polynomials.at((7, 8))((4, 9, 25))

    def test_no_whole_number(self) -> None:
        """Half a byte is no size: 1, 2 at b = 2, 4 make 1.5 at b = 3."""
        polynomials = Polynomials(((0, 0), (1, 0)), [(2, 8), (4, 8), (6, 8)])
        with pytest.raises(DifferentStepsError, match="whole number"):
            polynomials.at((3, 8))((1, 2, 3))


@pytest.mark.parametrize(
    ("axes", "bs", "seq"), [(("bs",), 17, 150), (("seq",), 3, 150 + 128 * 9), (("bs", "seq"), 17, 150 + 128 * 9)]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpointing": "full"},
        {"attn": "eager", "dropout": 0.1},
        {"dtype": "fp32", "amp": True},
    ],
    ids=["plain", "checkpointing", "eager, dropout", "autocast"],
)
@pytest.mark.parametrize("method", ["full", "lora-fa", "qlora"])
def test_every_block_and_event(method: str, options: dict[str, Any], axes: tuple[Axis, ...], bs: int, seq: int) -> None:
    """What is worked out equals what is recorded: all blocks, all events, buffers inside kernels included."""
    run, device = long_run(method, **options), platform()
    worked_out = Shapes.of(run, device, axes).at(bs, seq).trace(3, device)
    recorded = record(run.replace(bs=bs, seq=seq), device).trace(3, device)
    assert list(worked_out.blocks) == list(recorded.blocks)
    assert worked_out.events == recorded.events
    assert worked_out.marks == recorded.marks


def test_what_they_do_not_stand_for() -> None:
    """A single sequence takes other copies, and lengths between multiples of 128 other paddings: both are refused."""
    shapes = Shapes.of(long_run("lora"), platform(), ("bs", "seq"))
    assert [shapes.admits(2, 150), shapes.admits(1, 150), shapes.admits(2, 151)] == [True, False, False]
    with pytest.raises(BadInputError, match="batch 1 of 150 tokens"):
        shapes.at(1, 150)


def test_lengths_on_both_sides_of_a_window() -> None:
    """From the window on a mask is made: the steps are not alike, which is seen and not glossed over."""
    run = run_of("mistral-window", "lora", changes={"sliding_window": 200, **LONG}, bs=2, seq=150)
    with pytest.raises(DifferentStepsError):
        Shapes.of(run, platform(), ("seq",))


def test_the_largest_batch_is_the_last_that_fits() -> None:
    """The threshold that is worked out is that of recorded steps: the batch fits, one sequence more does not."""
    run, device = long_run("lora"), platform()
    thresholds = Thresholds(run, device, AllocatorSettings(), 3, Recordings())
    capacity = 200 * 2**20
    found = thresholds.largest_batch(capacity, outside=0)
    assert found > 3

    def fits(bs: int) -> bool:
        trace = record(run.replace(bs=bs), device).trace(3, device)
        return replay(trace.events, trace.sizes, capacity=capacity).oom is None

    assert [fits(found), fits(found + 1)] == [True, False]


def test_no_batch_fits() -> None:
    """On a card that does not even hold the weights the answer is 0."""
    run, device = long_run("lora"), platform()
    assert Thresholds(run, device, AllocatorSettings(), 3, Recordings()).largest_batch(2**20, outside=0) == 0
