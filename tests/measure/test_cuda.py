"""The CUDA device without a GPU: what it makes of the allocator's account, its history and events on its stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lorafa_prof.errors import BadInputError, DeviceError
from lorafa_prof.ledger import Category
from lorafa_prof.measure.attribution import Attribution
from lorafa_prof.measure.cuda import MOST_EVENTS, CudaDevice
from lorafa_prof.measure.devices import open_device
from lorafa_prof.measure.names import Name
from lorafa_prof.measure.trace import BaseBlock, Tell
from tests.support.fake_cuda import CONTEXT, OTHERS, SEGMENT, TOTAL, FakeCuda, patch_cuda

MIB = 2**20


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return patch_cuda(monkeypatch)


def step_on(card: FakeCuda) -> Callable[[Tell], None]:
    """A step of three phases, whose forward leaves 1000 bytes for the backward."""

    def step(tell: Tell) -> None:
        tell("forward", "a")
        kept = card.new(1000)
        tell("forward", "b")
        card.free(card.new(3 * MIB))
        tell("backward", "b")
        card.free(kept)
        tell("optimizer", "")
        card.free(card.new(100))
        tell("end", "")

    return step


class TestTrace:
    """One traced step."""

    def test_marks_lie_where_the_allocator_had_counted_so_far(self, card: FakeCuda) -> None:
        """By the number of blocks handed out and taken back, whatever went before; segments are no events."""
        card.free(card.new(64))
        before = card.new(700)
        trace = CudaDevice().trace(step_on(card), {})
        assert [(mark.position, mark.phase, mark.module) for mark in trace.marks] == [
            (0, "forward", "a"), (1, "forward", "b"), (3, "backward", "b"), (4, "optimizer", ""), (6, "end", ""),
        ]  # fmt: skip
        assert [event.nbytes for event in trace.events] == [1000, 3 * MIB, -3 * MIB, -1000, 100, -100]
        assert dict(trace.base) == {before: BaseBlock(700, 1024)}

    def test_each_mark_has_its_own_peak_and_end(self, card: FakeCuda) -> None:
        """In all four memories; what the whole card has in use is asked where the phase changes."""
        card.new(700)
        trace = CudaDevice().trace(step_on(card), {})
        assert [reading.peak.allocated for reading in trace.readings] == [
            1024 + 1024, 2048 + 3 * MIB, 2048, 1024 + 512, 1024,
        ]  # fmt: skip
        assert [reading.peak.requested for reading in trace.readings] == [1700, 1700 + 3 * MIB, 1700, 800, 700]
        assert [reading.end.allocated for reading in trace.readings] == [2048, 2048, 1024, 1024, 1024]
        assert [reading.end.reserved for reading in trace.readings] == [SEGMENT, *[2 * SEGMENT] * 4]
        used = OTHERS + CONTEXT + 2 * SEGMENT
        assert [reading.end.device for reading in trace.readings] == [None, used, used, used, used]
        assert trace.peak == 2048 + 3 * MIB
        assert trace.peaks().reserved == 2 * SEGMENT

    def test_the_history_is_recorded_for_the_step_alone(self, card: FakeCuda) -> None:
        """Without stack traces, and long enough for any step; off again when the step fails."""
        device = CudaDevice()
        seen: list[bool] = []

        def failing(tell: Tell) -> None:
            seen.append(card.recording)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            device.trace(failing, {})
        assert (seen, card.recording, card.max_entries) == ([True], False, MOST_EVENTS)

    def test_a_history_that_is_too_short_is_an_error(self, card: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
        """Marks would lie at the wrong events: nothing is better than that."""
        monkeypatch.setattr("lorafa_prof.measure.cuda.MOST_EVENTS", 4)
        with pytest.raises(DeviceError, match=r"history holds \d+ events where 6 were counted"):
            CudaDevice().trace(step_on(card), {})

    def test_a_thread_that_allocates_behind_the_last_mark_is_an_error(self, card: FakeCuda) -> None:
        """The history then holds what nobody counted."""
        device = CudaDevice()
        snapshot: Any = torch.cuda.memory._snapshot

        def late(index: int) -> Any:
            if card.recording:
                card.new(64)
            return snapshot(index)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda.memory, "_snapshot", late)
            with pytest.raises(DeviceError, match="holds 7 events where 6 were counted: another thread allocates"):
                device.trace(step_on(card), {})

    def test_its_blocks_are_named_by_their_addresses(self, card: FakeCuda) -> None:
        """Rounded as the allocator rounds; what is there before without a name belongs to libraries."""
        weights, _ = card.new(700), card.new(8 * MIB)
        device = CudaDevice()
        trace = device.trace(step_on(card), {})
        before = {weights: Name(Category.WEIGHTS, "a", "weight", (350,), "bfloat16", 700)}
        found = Attribution(trace, before, {}, {}, frozenset(), None, device.granule)
        parts = {category: total for category, total in found.ledger().parts().items() if total}
        assert parts == {
            Category.WEIGHTS: 1024, Category.ACTIVATIONS: 1024, Category.TEMPORARIES: 3 * MIB,
            Category.WORKSPACES: 8 * MIB,
        }  # fmt: skip
        assert found.ledger().total() == trace.peak
        assert found.saved_activation_bytes() == 1000


class TestDevice:
    """Opening it, and what it tells of itself."""

    def test_no_device_is_an_error_that_names_the_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The processor measures too."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(DeviceError, match="--device cpu"):
            open_device("cuda")

    def test_a_device_too_many(self, card: FakeCuda) -> None:
        """With how many there are."""
        with pytest.raises(DeviceError, match="no CUDA device 1: torch sees 1"):
            open_device("cuda:1")

    def test_a_cap_is_the_allocator_s(self, card: FakeCuda) -> None:
        """It is refused memory beyond that share of the card; a cap beyond the card cannot be had."""
        device = open_device("cuda", cap_bytes=TOTAL // 4)
        assert card.fraction == 0.25
        assert (device.cap_bytes, device.environment()["cap_bytes"]) == (TOTAL // 4, TOTAL // 4)
        with pytest.raises(BadInputError, match=f"beyond the {TOTAL} bytes of Fake 80GB"):
            open_device("cuda", cap_bytes=TOTAL + 1)

    def test_without_a_cap_the_allocator_is_left_alone(self, card: FakeCuda) -> None:
        """All of the card."""
        assert open_device("cuda:0").cap_bytes is None
        assert card.fraction is None

    def test_the_context_is_what_the_process_added_outside_the_allocator(self, card: FakeCuda) -> None:
        """Of what the driver sees in use: not what others had before, nor what the allocator reserves."""
        device = CudaDevice()
        card.new(5 * MIB)
        assert device.context_bytes() == CONTEXT
        assert device.used() == OTHERS + CONTEXT + 3 * SEGMENT

    def test_without_the_driver_s_library_the_context_is_not_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """None, not zero."""
        patch_cuda(monkeypatch, nvml=False)
        device = CudaDevice()
        assert device.context_bytes() is None
        assert device.environment()["driver"] is None

    def test_the_environment(self, card: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
        """What decides the figures: the card, its driver, the allocator's settings by either of their names."""
        for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            monkeypatch.delenv(variable, raising=False)
        device = CudaDevice()
        assert device.environment()["alloc_conf"] is None
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        found = device.environment()
        assert found["alloc_conf"] == "expandable_segments:True"
        assert (found["device"], found["driver"], found["total_bytes"]) == ("Fake 80GB", "555.42", TOTAL)
        assert (found["compute_capability"], found["multiprocessors"]) == ([8, 0], 108)

    def test_levels_since_the_peaks_were_restarted(self, card: FakeCuda) -> None:
        """What came before does not count."""
        device = CudaDevice()
        card.free(card.new(5 * MIB))
        device.restart_peaks()
        card.free(card.new(1000))
        reading = device.levels()
        assert (reading.peak.allocated, reading.peak.requested, reading.end.allocated) == (1024, 1000, 0)
        assert reading.peak.reserved == 3 * SEGMENT  # the cache is kept
        assert reading.end.device == OTHERS + CONTEXT + 3 * SEGMENT
        assert device.counters() == (2, 1)


def test_the_clock_times_what_the_device_does(card: FakeCuda) -> None:
    """Events on its stream, in milliseconds; nobody waits for them before the seconds are asked for."""
    clock = CudaDevice().clock()
    for milliseconds in (10.0, 30.0, 35.0):
        card.now_ms = milliseconds
        clock.tick()
    assert not clock.ready()
    assert clock.seconds() == [0.02, 0.005]
    assert clock.ready()
