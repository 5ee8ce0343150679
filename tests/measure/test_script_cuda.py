"""What is done to a CUDA device that a script uses already, without a GPU."""

from __future__ import annotations

import pytest
import torch

from lorafa_prof.measure.cuda import CudaDevice
from lorafa_prof.measure.devices import open_device
from lorafa_prof.measure.script.peaks import KeptPeaks
from tests.support.fake_cuda import FakeCuda, patch_cuda

MIB = 2**20


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    card = patch_cuda(monkeypatch)
    monkeypatch.setattr(torch.cuda.memory, "reset_peak_memory_stats", card.reset_peak_memory_stats)
    return card


def test_the_script_s_current_device_is_left_alone(card: FakeCuda) -> None:
    """And its context is not told apart: it was there before."""
    device = open_device("cuda:0", attached=True)
    assert not card.in_context  # set_device was not called
    assert device.context_bytes() is None
    assert isinstance(device, CudaDevice)


def test_the_script_reads_the_peaks_that_it_would_read_without_us(card: FakeCuda) -> None:
    """The highest of before, within and after the traced step, until it restarts them itself."""

    def highest() -> int:
        return int(torch.cuda.memory.memory_stats_as_nested_dict(0)["allocated_bytes"]["all"]["peak"])

    card.free(card.new(9 * MIB))  # while the model was loaded
    device = CudaDevice(attached=True)
    kept = KeptPeaks(0)
    trace = device.trace(lambda tell: (tell("forward", ""), card.free(card.new(3 * MIB)))[0], {})
    assert highest() == 0
    kept.keep(trace.peaks())
    assert highest() == 9 * MIB
    torch.cuda.reset_peak_memory_stats(0)
    assert highest() == 0
    card.free(card.new(MIB))
    assert highest() == MIB
    kept.close()
    assert torch.cuda.memory.memory_stats_as_nested_dict == card.memory_stats_as_nested_dict


def test_a_step_s_peak_beyond_the_one_before_it_is_kept_too(card: FakeCuda) -> None:
    device = CudaDevice(attached=True)
    kept = KeptPeaks(0)
    trace = device.trace(lambda tell: (tell("forward", ""), card.free(card.new(3 * MIB)))[0], {})
    kept.keep(trace.peaks())
    assert torch.cuda.memory.memory_stats_as_nested_dict(0)["allocated_bytes"]["all"]["peak"] == 3 * MIB
    kept.close()
