"""Several micro-batches a step, and clipped gradients: closed forms, simulation and real steps on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.measure.flops import count_work
from lorafa_prof.simulate.engine import predict as simulate
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload
from tests.analytic.runs import run_of
from tests.simulate.test_against_analytic import closed_form, simulated
from tests.simulate.test_real_cpu_step import THREADS, by_cascades, changes, reports, simulated as on_cpu
from tests.support.profiled import kernels_of_known_size, profile_step


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llama", "full", {}),
        ("llama", "full", {"dtype": "fp32", "amp": True, "layers": 6}),
        ("gpt2", "full", {"loss": "fused"}),
        ("qwen3", "lora", {"checkpointing": "full"}),
        ("gemma2", "lora-fa", {}),
        ("t5", "full", {}),
        ("mixtral", "lora", {}),
    ],
)
@pytest.mark.parametrize("clip", [False, True])
def test_both_engines_agree(family: str, method: str, options: dict[str, Any], clip: bool) -> None:
    """Gradients of the first micro-batch are there while the second runs; the peak may be in any pass."""
    run = run_of(family, method, attn="eager", optimizer="sgd", **options).replace(accumulation=2, clip=clip)
    assert simulated(run)[0] == closed_form(run)


def test_clipping_is_the_peak_of_its_phase() -> None:
    """A norm for each gradient, where the optimizer makes nothing: seen where the batch is small."""
    run = run_of("llama", "lora", attn="eager", optimizer="sgd", bs=1, seq=2, rank=64, clip=True)
    closed, recorded = predict(run).memory, simulate(run).memory
    assert simulated(run)[0] == closed_form(run)
    assert closed.moments["optimizer step"] > predict(run.replace(clip=False)).memory.moments["optimizer step"]
    assert recorded.moments["optimizer step"] > 0


@pytest.mark.parametrize(
    ("method", "options"),
    [("full", {"accumulation": 2}), ("lora", {"accumulation": 3, "dtype": "fp32"}), ("full", {"clip": True}),
     ("lora", {"accumulation": 2, "clip": True, "checkpointing": "full"})],
)  # fmt: skip
def test_every_event_of_a_real_step(method: str, options: dict[str, Any]) -> None:
    """The allocator's reports are the simulated ones; of three micro-batches those of the last two."""
    run: RunSpec = run_of("llama", method, **options)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        trace, _ = on_cpu(run)
    first = trace.position("forward", -min(run.accumulation, 2))
    told, heard = by_cascades(changes(trace, first)), by_cascades(reports(step))
    if run.accumulation <= 2:
        assert told == heard
    else:
        assert max(running(told)) == max(running(heard))


def running(deltas: list[int]) -> list[int]:
    """Bytes in use after each event."""
    found = [0]
    for delta in deltas:
        found.append(found[-1] + delta)
    return found


def test_gradients_are_those_of_the_whole_batch() -> None:
    """Two micro-batches of the same sequences give the gradients of one; clipped, their common norm is 1 at most."""
    grads = []
    for accumulation in (1, 2):
        work = Workload.build(run_of("llama", "lora", dtype="fp32", accumulation=accumulation), "cpu")
        for _ in range(accumulation):
            work.backward(work.loss())
        grads.append({name: p.grad for name, p in work.model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(grads[0], grads[1])
    clipped = Workload.build(run_of("llama", "full", dtype="fp32", clip=True), "cpu")
    (clipped.loss() * 1000.0).backward()  # type: ignore[no-untyped-call]  # torch's
    clipped.clip()
    norms = [p.grad.norm() for p in clipped.model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm() <= 1.0001


def test_arithmetic() -> None:
    """A step of three micro-batches takes three times as much, and so it is counted."""
    run = run_of("llama", "lora", attn="eager", accumulation=3)
    counted, said = count_work(Workload.build(run, "cpu")), predict(run).throughput
    once = predict(run.replace(accumulation=1)).throughput
    assert counted.tokens == 3 * run.bs * run.seq
    assert (said.model_flops, said.executed_flops) == (counted.model_flops, counted.executed_flops)
    assert once.executed_flops is not None
    assert said.executed_flops == 3 * once.executed_flops
