"""What must hold of step times whatever the run: of both engines, of every card, under every change of a profile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from lorafa_prof.analytic.step_times import with_dtypes
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.analytic.timer import Timer
from lorafa_prof.analytic.works import StepWorks
from lorafa_prof.catalog import device_names, load_device, load_model, spec_from_config
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.results import Throughput
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.works import step_works as recorded_works
from lorafa_prof.specs import METHODS, MethodSpec, ModelSpec, RunSpec
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.profile import AttentionRates, Curve, DeviceProfile, HostTimes, MatmulRates
from lorafa_prof.speed.step import StepTime
from lorafa_prof.speed.timeline import StepTimeline, timeline
from lorafa_prof.speed.work import OpWork
from tests.analytic.runs import run_of

A100 = default_profile(load_device("a100-80gb"))
#: Rounding of a sum of some thousand times.
EXACT = 1e-9


@cache
def small_llama() -> ModelSpec:
    """Llama-2-7B with two layers: its shapes, at a sixteenth of the operations."""
    return spec_from_config("llama2-7b of two layers", {**load_model("llama2-7b").config, "num_hidden_layers": 2})


def run_with(method: str, **options: Any) -> RunSpec:
    return RunSpec(model=small_llama(), method=MethodSpec(name=method), **{"bs": 2, "seq": 512, **options})


@cache
def traced(method: str) -> StepWorks:
    return StepWorks(run_with(method))


def closed(method: str, bs: int, seq: int) -> list[OpWork]:
    return with_dtypes(traced(method).at(bs, seq), run_with(method))


@cache
def simulated(bs: int, seq: int = 22) -> tuple[OpWork, ...]:
    traits = DeviceTraits((8, 0), 108)
    run = run_of("llama", "lora", bs=bs, seq=seq, changes={"max_position_embeddings": 512})
    return tuple(recorded_works(record(run, Cuda(traits, "2.13.0"), notes_all=True), traits))


WORKS: dict[str, Callable[[], list[OpWork]]] = {
    "closed forms": lambda: closed("lora", 4, 512),
    "simulation": lambda: list(simulated(4)),
}


@settings(max_examples=30, deadline=None)
@given(
    method=st.sampled_from(["full", "lora", "lora-fa", "vera", "dora"]),
    bs=st.integers(2, 64), more=st.integers(1, 64), blocks=st.integers(1, 128), longer=st.integers(0, 64),
)  # fmt: skip
def test_more_tokens_are_never_faster(method: str, bs: int, more: int, blocks: int, longer: int) -> None:
    """A larger batch of sequences as long or longer; lengths are multiples of 32, which no kernel pads by a copy."""
    seq = 32 * blocks
    before = timeline(closed(method, bs, seq), A100).step_s
    assert timeline(closed(method, bs + more, seq + 32 * longer), A100).step_s >= before * (1 - EXACT)


def test_more_tokens_are_never_faster_in_a_simulation() -> None:
    """Recorded steps of growing batches and lengths."""
    sizes = [(2, 32), (4, 32), (4, 64), (16, 64), (16, 512)]
    times = [timeline(list(simulated(*size)), A100).step_s for size in sizes]
    assert times == sorted(times)


def faster(profile: DeviceProfile, part: str, factor: float) -> DeviceProfile:
    """The profile with one of its figures better by a factor."""

    def curve(old: Curve) -> Curve:
        return Curve(tuple((size, rate * factor) for size, rate in old.points))

    def attention(old: AttentionRates) -> AttentionRates:
        return AttentionRates(
            forward=curve(old.forward), backward=curve(old.backward), causal_forward=curve(old.causal_forward),
            causal_backward=curve(old.causal_backward),
        )  # fmt: skip

    host = profile.host
    assert profile.bandwidth is not None
    assert profile.on_chip_bytes_per_s is not None
    changes: dict[str, Any] = {
        "matmul": {d: MatmulRates(flops_per_s=r.flops_per_s * factor) for d, r in profile.matmul.items()},
        "attention": {d: attention(rates) for d, rates in profile.attention.items()},
        "bandwidth": curve(profile.bandwidth),
        "on_chip_bytes_per_s": profile.on_chip_bytes_per_s * factor,
        "kernel_s": profile.kernel_s / factor,
        "latency_s": profile.latency_s / factor,
        "host": HostTimes(
            op_s={phase: s / factor for phase, s in host.op_s.items()}, view_s=host.view_s / factor,
            kernel_s=host.kernel_s / factor,
        ),
    }  # fmt: skip
    return replace(profile, **{part: changes[part]})


PARTS = ("matmul", "attention", "bandwidth", "on_chip_bytes_per_s", "kernel_s", "latency_s", "host")


@settings(max_examples=40, deadline=None)
@given(
    engine=st.sampled_from(sorted(WORKS)), parts=st.lists(st.sampled_from(PARTS), min_size=1, unique=True),
    factor=st.floats(1, 100), kind=st.sampled_from(["cuda", "cpu"]),
)  # fmt: skip
def test_a_faster_device_is_never_slower(engine: str, parts: list[str], factor: float, kind: Any) -> None:
    """Whichever figures of a profile get better, of a card or of a CPU, and by how much."""
    works, profile = WORKS[engine](), replace(A100, kind=kind)
    better = profile
    for part in parts:
        better = faster(better, part, factor)
    assert timeline(works, better).step_s <= timeline(works, profile).step_s * (1 + EXACT)


def check(found: StepTimeline, works: list[OpWork], profile: DeviceProfile) -> None:
    """Nothing is faster than the peak, nor than the host; every moment is accounted for once."""
    at_peak = 0.0
    for work in works:
        peak = profile.peak_flops.get(work.dtype)
        at_peak += work.causal_flops / peak if peak else 0.0
    assert found.step_s >= max(at_peak, found.host_s, found.device_s) * (1 - EXACT)
    assert sum(found.by_kind.values()) == pytest.approx(found.step_s)
    assert sum(found.by_phase.values()) == pytest.approx(found.step_s)
    assert min(*found.by_kind.values(), *found.by_phase.values()) >= -EXACT * found.step_s


@settings(max_examples=30, deadline=None)
@given(bs=st.integers(2, 128), blocks=st.integers(1, 128), card=st.sampled_from(["a100-80gb", "h100", "rtx4090"]))
def test_no_step_is_faster_than_its_work_at_the_peak(bs: int, blocks: int, card: str) -> None:
    """Of attention by a causal kernel the scores up to the diagonal count: it computes no others."""
    profile, works = default_profile(load_device(card)), closed("lora", bs, 32 * blocks)
    check(timeline(works, profile), works, profile)


def test_nor_is_a_simulated_one() -> None:
    """The same of recorded steps, small and large."""
    for size in ((2, 32), (16, 512)):
        works = list(simulated(*size))
        check(timeline(works, A100), works, A100)


def test_small_batches_take_as_long_as_their_launches() -> None:
    """Below some batch nothing but the host counts: twice the batch takes as long. Far beyond, it takes twice."""
    times = {bs: timeline(list(simulated(bs, 32)), A100) for bs in (2, 4, 8)}
    for found in times.values():
        assert found.launch_bound > 0.5
        assert found.step_s == pytest.approx(found.host_s, rel=0.02)
    assert times[8].step_s == pytest.approx(times[2].step_s, rel=0.02)
    large, double = (timeline(closed("lora", bs, 2048), A100) for bs in (16, 32))
    assert large.launch_bound < 0.01
    assert double.step_s == pytest.approx(2 * large.step_s, rel=0.03)


@pytest.mark.parametrize("card", device_names())
def test_utilisation_is_below_one_on_every_card(card: str) -> None:
    """MFU <= HFU <= 1 for every method and batch on every card with data, and a sentence on all others.

    Both count attention in full, so that this is of sequences that are short enough: see docs/speed.md.
    """
    profile, seen = default_profile(load_device(card)), 0
    for run, works, flops in steps_of_every_method():
        time = StepTime.of(works, profile)
        if time.timeline is None:
            assert time.why_not is not None
            assert card in time.why_not
            continue
        rates = time.throughput(flops, run)
        assert rates.mfu is not None
        assert rates.hfu is not None
        assert 0 < rates.mfu <= rates.hfu <= 1, (run.method.name, run.bs, run.dtype, rates)
        seen += 1
    assert seen > 0 or profile.bandwidth is None or not {"bf16", "fp32"} & set(profile.matmul)


@cache
def steps_of_every_method() -> list[tuple[RunSpec, list[OpWork], Throughput]]:
    """A small batch and a large one of each method, in bf16 and in fp32, as far as it takes them."""
    forms, timer, found = ClosedForms(), Timer(), []
    for method in METHODS:
        for bs, dtype in ((1, "bf16"), (16, "bf16"), (16, "fp32")):
            with contextlib.suppress(LorafaProfError):
                run = run_with(method, bs=bs, seq=1024, dtype=dtype)
                found.append((run, timer.works(run), forms.arithmetic(run)))
    assert {run.method.name for run, _, _ in found} == set(METHODS)
    return found
