"""The profiler's harness on programs small enough to be followed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lorafa_prof.workload.step import build_model
from tests.support.configs import tiny_run
from tests.support.observe import live_after_forward
from tests.support.profiled import (
    Allocation,
    _checked,
    allocations,
    by_phase,
    made_by_operators,
    operator_calls,
    profile_step,
)

aten = torch.ops.aten


def told(program: Callable[[], Any]) -> list[tuple[int, str]]:
    """(bytes, innermost operator) of each event."""
    return [(event.delta, event.operator) for event in allocations(program)]


class TestAllocations:
    def test_sum_of_two(self) -> None:
        """Sizes as requested, unrounded, and each by the operator that asked; nothing frees but Python."""

        def program() -> None:
            a = torch.ones(10)
            b = a + a
            del a
            torch.relu(b)

        assert told(program) == [
            (40, "aten::empty"), (40, "aten::add"), (-40, ""), (40, "aten::clamp_min"), (-40, ""), (-40, ""),
        ]  # fmt: skip

    def test_live_bytes_follow(self) -> None:
        events = allocations(lambda: torch.ones(3) + torch.ones(3))
        assert [event.live for event in events] == [12, 24, 36, 24, 12]

    def test_what_is_returned_is_let_go_unseen(self) -> None:
        """So that a program can leave something behind on purpose."""
        assert told(lambda: torch.ones(5)) == [(20, "aten::empty")]

    def test_what_was_there_before_is_not_reported(self) -> None:
        before = [torch.ones(1000)]
        assert told(before.clear) == []

    def test_what_an_earlier_profiler_saw_born_is_not_reported_either(self) -> None:
        before: list[torch.Tensor] = []
        allocations(lambda: before.append(torch.ones(1000)))
        assert told(before.clear) == []

    def test_views_and_in_place_operators_take_nothing(self) -> None:
        x = torch.ones(4, 4)
        assert told(lambda: x.t().reshape(2, 8)) == [(64, "aten::empty")]
        assert told(lambda: x.view(2, 8).mul_(x.view(2, 8)).transpose(0, 1)[1:]) == []

    def test_backward_of_a_linear_layer(self) -> None:
        """In the caller's thread: gradient of the weight, then of the input, then what the graph held."""
        x, w = torch.ones(6, 5, requires_grad=True), torch.ones(7, 5, requires_grad=True)
        grad = torch.ones(6, 7)

        def program() -> None:
            F.linear(x, w).backward(grad)

        events = allocations(program)
        assert [event.delta for event in events] == [6 * 7 * 4, 7 * 5 * 4, 6 * 5 * 4, -6 * 7 * 4]
        assert ["MmBackward0" in event.stack for event in events] == [False, True, True, False]

    def test_buffers_inside_a_kernel_are_seen(self) -> None:
        """The prefix sum of a bool casts it first."""
        flags = torch.ones(8, dtype=torch.bool)
        assert [delta for delta, _ in told(lambda: flags.cumsum(0))] == [64, 64, -64]

    def test_numbers_are_told_from_tensors(self) -> None:
        """A number that multiplies a tensor in Python becomes one of 8 bytes, which the graph saves."""
        x = torch.ones(3, requires_grad=True)

        def program() -> None:
            held = [x * 2.0, torch.ones(2)]
            del held

        events = allocations(program)
        assert sorted(event.delta for event in events if event.delta > 0) == [4, 8, 8, 12]
        kept = made_by_operators(events)
        assert sorted(event.delta for event in kept if event.delta > 0) == [4, 8, 12]
        assert kept[-1].live == 0

    def test_a_gap_is_an_error(self) -> None:
        """A running total that does not follow from the reports means that some are missing."""

        class Report:
            def __init__(self, size: int, total: int) -> None:
                self.alloc_size, self.total_allocated, self.ptr = size, total, 1

        assert [event.live for event in _checked([(0, Report(8, 108), ()), (1, Report(-8, 100), ())])] == [8, 0]
        with pytest.raises(RuntimeError, match="counts 4 bytes where 16 are in use"):
            _checked([(0, Report(8, 108), ()), (1, Report(8, 104), ())])


class TestStep:
    def test_phases(self) -> None:
        """Values at the boundaries are those after each phase's last event."""
        steps = [
            (8, "forward"),
            (4, "forward"),
            (16, "backward"),
            (-4, "backward"),
            (2, "optimizer"),
            (-2, "optimizer"),
        ]
        live, events = 0, []
        for delta, phase in [*steps, (-24, "zero_grad")]:
            live += delta
            events.append(Allocation(delta, live, 0, (f"phase: {phase}", "aten::add")))
        step = by_phase(events)
        assert (step.after_forward, step.after_backward, step.after_optimizer, step.end) == (12, 24, 24, 0)
        assert step.curve == [8, 12, 28, 24, 26, 24, 0]
        assert (step.peak.live, step.peak.phase, step.peak.operator) == (28, "backward", "aten::add")

    def test_an_event_outside_the_phases_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="outside"):
            by_phase([Allocation(8, 8, 0, ())])

    @pytest.mark.parametrize("checkpointing", ["none", "full"])
    @pytest.mark.parametrize("method", ["full", "lora-fa"])
    @pytest.mark.parametrize("family", ["llama", "t5"])
    def test_forward_leaves_what_a_mode_sees_alive(self, family: str, method: str, checkpointing: Any) -> None:
        """Two independent observations of what a forward keeps agree to the byte; a steady step leaves nothing."""
        run = tiny_run(family, method, checkpointing=checkpointing, optimizer="adamw")
        step = profile_step(run)
        assert step.by_operators.after_forward == live_after_forward(run).nbytes
        assert step.end == 0

    def test_gradients_stand_after_the_backward(self) -> None:
        run = tiny_run("llama", "full", optimizer="sgd")
        step = profile_step(run)
        gradients = sum(p.numel() * p.itemsize for p in build_model(run, "meta").parameters())
        assert step.after_backward == step.after_optimizer == gradients + 4


class TestOperatorCalls:
    def test_tells_outputs_from_buffers(self) -> None:
        """Of the prefix sum of a bool the output comes first, and a buffer lives within the call."""
        flags = torch.ones(8, dtype=torch.bool)
        (call,) = operator_calls(lambda: flags.cumsum(0))
        assert call.func is aten.cumsum.default
        assert call.order == [(64, True), (64, False), (-64, False)]
        assert call.outputs.shape == (8,)
        assert call.args[0].is_meta

    def test_what_dies_between_operators_belongs_to_none(self) -> None:
        def program() -> torch.Tensor:
            return (torch.ones(4) * torch.ones(4)).relu()

        calls = operator_calls(program)
        assert [str(call.func) for call in calls] == [
            "aten.ones.default", "aten.ones.default", "aten.mul.Tensor", "aten.relu.default",
        ]  # fmt: skip
        assert [call.order for call in calls] == [[(16, True)]] * 4
        assert all(call.hidden == [] for call in calls)
