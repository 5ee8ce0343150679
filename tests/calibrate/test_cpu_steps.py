"""A profile of this machine's CPU against real steps on it.

By the clock of the thread, which other processes hold up less than that on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lorafa_prof.calibrate.measuring import calibrate
from lorafa_prof.catalog import spec_from_config
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.workload import Workload, training_step

pytestmark = pytest.mark.slow

#: A prediction may be off by this factor.
FACTOR = 1.5


@pytest.fixture(scope="module")
def profile() -> Iterator[DeviceProfile]:
    """The profile, in one thread, as the steps after it: the clock is that of one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield calibrate("cpu", 20.0, clock=time.thread_time)
    torch.set_num_threads(threads)


def run(method: str, hidden: int, layers: int, bs: int, seq: int) -> RunSpec:
    """A run of a small Llama in fp32."""
    config: dict[str, Any] = {
        "model_type": "llama", "hidden_size": hidden, "num_attention_heads": hidden // 32, "head_dim": 32,
        "num_key_value_heads": hidden // 32, "intermediate_size": 11 * hidden // 4, "num_hidden_layers": layers,
        "vocab_size": 4 * hidden, "max_position_embeddings": 512,
    }  # fmt: skip
    model = spec_from_config("small", config)
    return RunSpec(model=model, method=MethodSpec(name=method, rank=8), bs=bs, seq=seq, dtype="fp32")


def measured(asked: RunSpec) -> float:
    """Seconds of a step, the median of some."""
    work = Workload.build(asked, "cpu")
    for _ in range(2):
        training_step(work)
    times = []
    for _ in range(9):
        began = time.thread_time()
        training_step(work)
        times.append(time.thread_time() - began)
    return statistics.median(times)


@pytest.mark.parametrize(
    "asked",
    [
        run("lora", 64, 2, 1, 32), run("lora", 128, 4, 2, 64), run("full", 128, 4, 2, 64),
        run("lora-fa", 256, 4, 2, 128), run("full", 256, 4, 2, 128),
    ],
    ids=["lora-64", "lora-128", "full-128", "lora-fa-256", "full-256"],
)  # fmt: skip
def test_a_step_is_predicted_within_a_factor(profile: DeviceProfile, asked: RunSpec) -> None:
    """From ten milliseconds, mostly the host's, to a hundred, mostly products."""
    predicted, took = predict_on_cpu(asked, 1, profile).throughput.step_s, measured(asked)
    assert predicted is not None
    assert took / FACTOR < predicted < took * FACTOR
