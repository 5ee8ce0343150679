"""A step on two clocks: scenarios with answers worked out by hand, and what holds for all steps."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.speed.profile import Curve, DeviceProfile, HostTimes, MatmulRates
from lorafa_prof.speed.rates import Rates
from lorafa_prof.speed.timeline import StepTimeline, timeline
from lorafa_prof.speed.work import OpWork
from tests.speed.made import attention, memory, product, profile

MS = 10**9  # bytes that take a millisecond


def bare(**changes: object) -> DeviceProfile:
    """The round card without a floor, so that an operation takes its traffic alone."""
    return profile(kernel_s=0.0, **changes)


class TestScenarios:
    """Known answers."""

    def test_long_operations_hide_the_host(self) -> None:
        """Three of a millisecond: the first begins when the host has issued it, after 10 us."""
        found = timeline([memory(MS)] * 3, bare())
        assert found.step_s == pytest.approx(3e-3 + 10e-6)
        assert found.by_kind == pytest.approx({"matmul": 0, "attention": 0, "memory": 3e-3, "waiting": 10e-6})
        assert found.launch_bound == pytest.approx(10e-6 / 3.01e-3)

    def test_short_operations_wait_for_the_host(self) -> None:
        """Ten of 1 us, issued every 10 us: the last begins at 100 us."""
        found = timeline([memory(MS // 1000)] * 10, bare())
        assert found.step_s == pytest.approx(101e-6)
        assert found.by_kind["waiting"] == pytest.approx(91e-6)
        assert found.device_s == pytest.approx(10e-6)
        assert found.host_s == pytest.approx(100e-6)

    def test_it_is_no_sum(self) -> None:
        """100 us of work hide the issuing of ten short ones behind it, which then run without a wait."""
        found = timeline([memory(MS // 10)] + [memory(MS // 1000)] * 10, bare())
        # issued at 10, 20, ..., 110 us; the long one ends at 110, the short ones at 111, ..., 120
        assert found.step_s == pytest.approx(120e-6)
        assert found.step_s < found.device_s + found.host_s

    def test_a_step_can_end_with_the_host(self) -> None:
        """Views after the last kernel: the host is the later of the two."""
        found = timeline([memory(MS // 1000)] + [memory(0, kernels=0)] * 50, bare())
        assert found.step_s == pytest.approx(10e-6 + 50e-6)
        assert found.by_kind["waiting"] == pytest.approx(59e-6)

    def test_phases_have_hosts_of_their_own_and_add_up(self) -> None:
        """A forward at 10 us an operation, a backward and an optimizer at 5."""
        works = [memory(MS // 1000, phase=phase) for phase in ("forward", "backward", "optimizer") for _ in range(10)]
        found = timeline(works, bare())
        assert found.by_phase == pytest.approx({"forward": 101e-6, "backward": 50e-6, "optimizer": 50e-6})
        assert sum(found.by_phase.values()) == pytest.approx(found.step_s)

    def test_an_operation_of_many_kernels_is_issued_kernel_by_kernel(self) -> None:
        """100 kernels: 5 us for the first, one each for the others; each has the floor on the device."""
        found = timeline([memory(0, phase="optimizer", kernels=100)], profile())
        assert found.host_s == pytest.approx(104e-6)
        assert found.device_s == pytest.approx(200e-6)

    def test_the_host_waits_where_it_asks_for_a_value(self) -> None:
        """After a loss is read, the next operation is issued with the device idle."""
        reading = memory(8, op="aten._local_scalar_dense", waits=True)
        found = timeline([memory(MS), reading, memory(MS)], bare())
        assert found.step_s == pytest.approx(2e-3 + 20e-6, rel=1e-4)
        assert timeline([memory(MS), memory(8), memory(MS)], bare()).step_s == pytest.approx(2e-3 + 10e-6, rel=1e-4)

    def test_the_way_to_the_device_counts_once(self) -> None:
        """A latency delays what an idle device gets, not what waits in the queue."""
        assert timeline([memory(MS)] * 3, bare(latency_s=5e-6)).step_s == pytest.approx(3e-3 + 15e-6)

    def test_on_a_cpu_the_host_does_all(self) -> None:
        """Issuing and executing take turns."""
        found = timeline([memory(MS)] * 3 + [memory(0, kernels=0)], bare(kind="cpu", latency_s=1.0))
        assert found.step_s == pytest.approx(3 * (1e-3 + 10e-6) + 1e-6)
        assert sum(found.by_phase.values()) == pytest.approx(found.step_s)

    def test_small_batches_are_bound_by_launching_and_large_ones_are_not(self) -> None:
        """The same layers over 8 and 65,536 tokens."""
        shares = []
        for tokens in (8, 65536):
            works = [work for _ in range(50) for work in (product(tokens, 1024, 1024), memory(tokens * 2048))]
            shares.append(timeline(works, profile()).launch_bound)
        assert shares[0] > 0.5
        assert shares[1] < 0.05

    def test_the_operations_that_take_most_are_told_together(self) -> None:
        """Layers of one shape are one entry, whatever their number."""
        works = [product(4096, 4096, 4096, module=f"model.layers.{n}.mlp.up_proj") for n in range(12)]
        top = timeline([*works, memory(MS)], profile()).top
        assert [(entry.op, entry.count) for entry in top] == [("aten.mm", 12), ("aten.mul", 1)]
        assert top[0].module == "model.layers.*.mlp.up_proj"
        assert top[0].shape == "4096 x 4096 x 4096"

    def test_a_figure_that_is_missing_is_refused(self) -> None:
        """No time without data."""
        with pytest.raises(UnsupportedError, match="no rate of matrix products in fp32 is known for round"):
            timeline([product(8, 8, 8, dtype="fp32")], profile())

    def test_nothing_takes_no_time(self) -> None:
        """A step without operations."""
        found = timeline([], profile())
        assert (found.step_s, found.launch_bound, found.top) == (0.0, 0.0, ())

    def test_a_long_step_is_quick(self) -> None:
        """100,000 operations in far less than the five seconds that a simulation of them takes."""
        works = [product(4096, 4096, 4096), memory(10**7), memory(10**6), memory(0, kernels=0)] * 25_000
        began = time.perf_counter()
        timeline(works, profile())
        assert time.perf_counter() - began < 5


operations = st.one_of(
    st.builds(
        memory,
        st.integers(0, 10**8),
        phase=st.sampled_from(["forward", "loss", "backward", "optimizer"]),
        kernels=st.integers(0, 3),
    ),
    st.builds(product, st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 4096)),
    st.builds(attention, st.integers(1, 10**4), causal=st.booleans(), backward=st.booleans()),
)
steps = st.lists(operations, max_size=30)


def step_of(works: list[OpWork], **changes: object) -> StepTimeline:
    """The timeline on the round card with changes."""
    return timeline(works, profile(**changes))


class TestProperties:
    """Whatever the step."""

    @given(steps, st.floats(1.0, 100.0))
    def test_a_better_device_or_host_is_never_slower(self, works: list[OpWork], factor: float) -> None:
        """Monotone in bandwidth, in peak, in the host's rate, in the floor."""
        before = step_of(works).step_s
        host = profile().host
        faster = HostTimes(
            op_s={phase: seconds / factor for phase, seconds in host.op_s.items()},
            view_s=host.view_s / factor, kernel_s=host.kernel_s / factor,
        )  # fmt: skip
        for changes in (
            {"bandwidth": Curve.level(1e12 * factor)},
            {"matmul": {"bf16": MatmulRates(flops_per_s=100e12 * factor)}},
            {"host": faster},
            {"kernel_s": 2e-6 / factor},
        ):
            assert step_of(works, **changes).step_s <= before * (1 + 1e-9)

    @given(steps)
    def test_it_is_never_below_the_bound(self, works: list[OpWork]) -> None:
        """Neither the device nor the host can do without their sums, nor does a step take more than both."""
        found, made = step_of(works), profile()
        device = sum(Rates(made).seconds(work) for work in works)
        host = sum(made.host.seconds(work.phase, work.kernels) for work in works)
        assert found.step_s >= max(device, host) * (1 - 1e-9)
        assert found.step_s <= (device + host) * (1 + 1e-9)
        assert (found.device_s, found.host_s) == (pytest.approx(device), pytest.approx(host))

    @given(steps, st.sampled_from(["cuda", "cpu"]))
    def test_every_moment_is_accounted_for(self, works: list[OpWork], kind: str) -> None:
        """By phase and by kind, and nothing is negative."""
        found = step_of(works, kind=kind, latency_s=1e-6)
        for parts in (found.by_phase, found.by_kind):
            assert all(part >= 0 for part in parts.values())
            if works:
                assert sum(parts.values()) == pytest.approx(found.step_s)

    @given(steps)
    def test_one_operation_more_is_never_faster(self, works: list[OpWork]) -> None:
        """Taking one away does not lengthen a step."""
        whole = step_of(works).step_s
        for left_out in range(len(works)):
            assert step_of(works[:left_out] + works[left_out + 1 :]).step_s <= whole * (1 + 1e-9)

    @given(steps)
    def test_names_and_modules_do_not_change_the_time(self, works: list[OpWork]) -> None:
        """Only what an operation does counts."""
        renamed = [dataclasses.replace(work, module="elsewhere") for work in works]
        assert step_of(renamed).step_s == step_of(works).step_s
