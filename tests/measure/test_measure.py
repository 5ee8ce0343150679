"""The measuring core on the CPU, held to three things that share nothing with it.

- PyTorch's profiler over the same step (tests/support/profiled.py), and storages counted by hand for what was there
  before it: the peak, to the byte;
- the simulated CPU, which makes its bytes on meta tensors: every part of the peak, to the byte;
- the closed forms: FLOPs, exactly.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorafa_prof.analytic.engine import predict
from lorafa_prof.compare import compare
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.ledger import PASS
from lorafa_prof.measure.devices import open_device
from lorafa_prof.measure.harness import Options, measure
from lorafa_prof.measure.timing import Work, spread, throughput
from lorafa_prof.results import PART_FIELDS, Measurement, StepTime
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import format_bytes
from lorafa_prof.workload import Workload, training_step
from lorafa_prof.workload.versions import release
from tests.analytic.runs import run_of
from tests.support.profiled import kernels_of_known_size, profile_step
from tests.support.reachable import storage_bytes

THREADS = 2
PEAK_FLOPS = 1e12
FAMILIES = ("llama", "gpt2", "roberta", "t5")
METHODS = (
    "full", "lora", "lora-fa", "lora-fa-peft", "lora-fb", "lora-qv", "lora-plus", "pissa", "dora", "vera", "qlora",
    "qlora-fa", "adalora",
)  # fmt: skip


#: What each method does differently shows on a Llama, and each architecture by these; the rest is for `make test-slow`.
QUICK_METHODS = ("full", "lora", "lora-fa", "qlora")


def cases() -> list[Any]:
    """Each family with every method; by default every method on the first family, and some on the others."""
    made = []
    for family in FAMILIES:
        for method in METHODS:
            missing = method.startswith("q") and importlib.util.find_spec("bitsandbytes") is None
            marks = [pytest.mark.skip("no bitsandbytes")] if missing else []
            # T5's backward over quantised weights takes half a minute of one core
            is_quick = family == FAMILIES[0] or (method in QUICK_METHODS and (family, method) != ("t5", "qlora"))
            if not is_quick:
                marks.append(pytest.mark.slow)
            made.append(pytest.param(family, method, id=f"{family}-{method}", marks=marks))
    return made


#: Older ones multiply matrices for the rotary angles too, and PEFT's of their time adapt RoBERTa's head as well.
of_release_5 = pytest.mark.skipif(release("transformers") < (5,), reason="the closed forms are of transformers 5")
every_case = pytest.mark.parametrize(("family", "method"), cases())


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with kernels_of_known_size(THREADS):
        yield


def cpu_run(family: str, method: str, **options: Any) -> RunSpec:
    """T5's bias of positions has another kernel with sdpa on the CPU."""
    return run_of(family, method, **({"attn": "eager"} if family == "t5" else {}), **options)


@functools.cache
def measured(family: str, method: str, checkpointing: str = "none") -> Measurement:
    """Once for all tests that look at it."""
    run = cpu_run(family, method, checkpointing=checkpointing)
    return measure(run, Options(device="cpu", steps=2, warmup=1, peak_flops=PEAK_FLOPS))


def parts_of(done: Measurement) -> dict[str, int]:
    return {name: getattr(done.memory, name) for name in PART_FIELDS}


def bytes_before_a_step(run: RunSpec) -> int:
    """Storages of model, quantisation, optimizer and batch after a first step, each counted once."""
    work = Workload.build(run, "cpu")
    training_step(work)
    return storage_bytes(work)


class TestMemory:
    """The peak and its parts."""

    @every_case
    def test_the_peak_is_the_profiler_s(self, family: str, method: str) -> None:
        """What was there before the step, and the most that the allocator reports beyond it in another run of it."""
        done = measured(family, method)
        step = profile_step(cpu_run(family, method)).by_operators
        assert done.memory is not None
        assert done.memory.peak_allocated_bytes == bytes_before_a_step(cpu_run(family, method)) + step.peak.live
        assert done.memory.peak_requested_bytes == done.memory.peak_allocated_bytes  # rounds nothing

    @every_case
    def test_the_simulation_is_right_about_every_row(self, family: str, method: str) -> None:
        """Parts, moments, peaks, saved activations, gradients, parameters: no row of a comparison misses by a byte."""
        done = measured(family, method)
        compared = compare(done, [predict_on_cpu(cpu_run(family, method), THREADS)])
        errors = {row.name: row.error(0) for row in compared.rows if row.error(0) is not None}
        assert set(errors) > set(PART_FIELDS)
        assert {name: error for name, error in errors.items() if error} == {}

    @every_case
    def test_the_parts_add_up(self, family: str, method: str) -> None:
        """Ledger, parts, phases and timeline tell of one peak."""
        done = measured(family, method)
        assert done.memory is not None
        assert done.ledger is not None
        peak = done.memory.peak_allocated_bytes
        assert done.ledger.total() == sum(parts_of(done).values()) == peak
        assert max(phase.peak_allocated_bytes or 0 for phase in done.phases) == peak
        assert max(stretch.peak_allocated_bytes for stretch in done.timeline) == peak
        assert done.memory.moments == {phase.phase: phase.peak_allocated_bytes for phase in done.phases}
        assert all(item.nbytes > 0 and item.count > 0 for item in done.ledger.items)
        assert done.ledger.moment == done.memory.peak_moment

    @pytest.mark.parametrize("checkpointing", ["none", "full"])
    def test_the_phases_come_in_the_order_of_a_step(self, checkpointing: str) -> None:
        """With a recomputation where there is one, and nothing is left behind."""
        done = measured("llama", "lora-fa", checkpointing)
        names = [phase.phase for phase in done.phases]
        again = ["recompute"] if checkpointing == "full" else []
        assert names == ["forward", "loss", "backward", *again, "optimizer step", "zero_grad"]
        assert done.timeline[-1].end_allocated_bytes == bytes_before_a_step(
            run_of("llama", "lora-fa", checkpointing=checkpointing)
        )

    def test_gradients_are_those_of_what_is_trained(self) -> None:
        """Of each B as many bytes as it has, whether or not they are there at the peak."""
        run = run_of("llama", "lora-fa")
        done = measured("llama", "lora-fa")
        model = Workload.build(run, "cpu").model
        assert done.memory is not None
        assert done.memory.trained_gradients_bytes == sum(p.nbytes for p in model.parameters() if p.requires_grad)
        assert done.parameters == {
            "total": sum(p.numel() for p in model.parameters()),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }

    def test_a_cap_is_a_verdict(self) -> None:
        """One byte below the peak is out of memory; the peak itself is not."""
        memory = measured("llama", "lora-fa").memory
        assert memory is not None
        peak = memory.peak_allocated_bytes
        assert peak is not None
        run = run_of("llama", "lora-fa")
        ended = {
            cap: measure(run, Options(device="cpu", steps=0, warmup=1, cap_bytes=cap)).outcome
            for cap in (peak - 1, peak)
        }
        assert ended == {peak - 1: "oom", peak: "ok"}


class TestThroughput:
    """Time and arithmetic."""

    @every_case
    def test_rates_follow_from_the_median_step(self, family: str, method: str) -> None:
        """Tokens over the median time; MFU is the model's FLOPs over time and peak, HFU all that ran."""
        done = measured(family, method)
        rates = done.throughput
        run = run_of(family, method)
        median = statistics.median(step.step_s for step in done.steps)
        assert len(done.steps) == 2
        assert rates.step_s == median
        assert rates.tokens_per_s == run.bs * run.seq / median
        assert rates.mfu == rates.model_flops / median / PEAK_FLOPS
        assert rates.hfu == rates.executed_flops / median / PEAK_FLOPS
        assert rates.mfu_6n == rates.model_flops_6n / median / PEAK_FLOPS
        for step in done.steps:
            assert step.tokens == run.bs * run.seq
            assert step.step_s == step.forward_s + step.backward_s + step.optimizer_s

    @of_release_5
    @every_case
    def test_operations_are_those_of_the_closed_forms(self, family: str, method: str) -> None:
        """Counted operator by operator here, by formula there."""
        try:
            expected = predict(cpu_run(family, method)).throughput
        except UnsupportedError as error:
            pytest.skip(f"no closed form: {error}")
        seen = measured(family, method).throughput
        assert seen.model_flops == expected.model_flops
        assert seen.model_flops_6n == expected.model_flops_6n

    @of_release_5
    def test_recomputation_is_executed_but_not_needed(self) -> None:
        """Checkpointing adds a forward of the layers to what runs; the model's FLOPs are those of the closed form.

        They are more than without it: PEFT's users make the embeddings want gradients for it, so that the first layer
        computes those of its input.
        """
        plain, again = measured("llama", "lora-fa").throughput, measured("llama", "lora-fa", "full").throughput
        assert again.model_flops == predict(run_of("llama", "lora-fa", checkpointing="full")).throughput.model_flops
        assert again.executed_flops - again.model_flops > plain.executed_flops - plain.model_flops

    def test_by_hand(self) -> None:
        """Four steps of 1, 2, 3 and 10 s: median 2.5 s. 600 tokens: 240 a second. 5e12 FLOPs on 1e13 FLOP/s: 0.2."""
        steps = [StepTime(step_s=seconds) for seconds in (3.0, 1.0, 10.0, 2.0)]
        work = Work(tokens=600, model_flops=5 * 10**12, executed_flops=10**13, model_flops_6n=None)
        rates = throughput(steps, work, 1e13)
        assert (rates.step_s, rates.tokens_per_s, rates.mfu, rates.hfu, rates.mfu_6n) == (2.5, 240.0, 0.2, 0.4, None)
        found = spread(steps)
        assert found is not None
        assert (found.least_s, found.quarter_s, found.median_s) == (1.0, 1.75, 2.5)
        assert (found.three_quarters_s, found.most_s) == (4.75, 10.0)

    def test_nothing_is_made_up(self) -> None:
        """No steps, no rate; one step, no spread; no peak, no MFU."""
        work = Work(tokens=600, model_flops=100, executed_flops=None, model_flops_6n=None)
        assert spread([]) is None
        none = throughput([], work, 1e13)
        assert (none.step_s, none.tokens_per_s, none.mfu, none.model_flops) == (None, None, None, 100)
        one = throughput([StepTime(step_s=2.0)], work, None)
        assert (one.tokens_per_s, one.mfu, one.hfu) == (300.0, None, None)


class TestStages:
    """What is told on the way, and what the options do."""

    def test_a_measurement_grows(self) -> None:
        """Each report has what the one before had: an interrupted run leaves what it knew."""
        reports: list[Measurement] = []
        run = run_of("llama", "lora")
        done = measure(run, Options(device="cpu", steps=2, warmup=1), reports.append)
        assert [len(report.steps) for report in reports] == sorted(len(report.steps) for report in reports)
        assert reports[0].parameters is None
        assert reports[1].parameters is not None
        assert reports[-1] == done
        assert done.run == run
        assert {"torch", "transformers", "peft", "python"} <= set(done.versions)
        assert done.environment["threads"] == torch.get_num_threads() == THREADS
        assert Measurement.from_json(done.to_json()) == done

    def test_a_full_device_at_the_counting_is_no_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Counting comes last and takes more than a step does: what was measured stands, operations are unknown."""

        def full(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("lorafa_prof.measure.harness.count_work", full)
        done = measure(cpu_run("llama", "lora"), Options(device="cpu", steps=2, warmup=1, peak_flops=PEAK_FLOPS))
        assert (done.outcome, done.throughput.model_flops, done.throughput.mfu) == ("ok", None, None)
        assert None not in (done.throughput.tokens_per_s, done.memory)
        assert done.promises
        assert any(line.startswith("operations are not counted") for line in done.unmodelled)

    def test_without_a_trace_there_is_time_alone(self) -> None:
        """The CPU's allocator keeps no account of its own."""
        done = measure(run_of("llama", "lora"), Options(device="cpu", steps=1, warmup=1, trace=False))
        assert (done.memory, done.ledger, done.phases, done.timeline) == (None, None, (), ())
        assert done.throughput.tokens_per_s is not None

    def test_a_pass_before_training_is_told(self) -> None:
        """LoRA-GA's takes place, in phases of its own; what else is measured is LoRA's step, to the byte."""
        options = Options(device="cpu", steps=1, warmup=1)
        done, plain = (measure(run_of("llama", method), options) for method in ("lora-ga", "lora"))
        assert done.memory is not None
        before = {phase: done.memory.moments[phase] for phase in PASS}
        training = {phase: peak for phase, peak in done.memory.moments.items() if phase not in PASS}
        assert replace(done.memory, moments=training) == plain.memory
        assert [phase.phase for phase in done.phases] == [*PASS, *(phase.phase for phase in plain.phases)]
        told = f"pass ran before it, in which up to {format_bytes(max(before.values()))} were allocated"
        assert any(told in line for line in done.assumptions)

    @pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "", "mps"])
    def test_an_unknown_device_is_named(self, name: str) -> None:
        """With those there are."""
        with pytest.raises(BadInputError, match="cuda, cuda:1 and cpu are"):
            open_device(name)
