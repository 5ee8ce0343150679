"""What a prediction says of a step's time: known answers, and reasons where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.results import Fit, Throughput
from lorafa_prof.results.plain import build, plain
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.links import Link, Sharing
from lorafa_prof.speed.profile import Curve
from lorafa_prof.speed.step import StepTime, assumptions, products_dtype, uncompared, unmodelled
from tests.speed.made import memory, product, profile

#: A product in whole waves, and 10 ms of traffic; the host's 10 us before them, and two floors of 2 us.
WORKS = [product(12800, 12800, 3072), memory(10**10)]
STEP_S = 2 * 12800**2 * 3072 / 100e12 + 10e-3 + 10e-6 + 4e-6
#: A link of a gigabyte a second.
ROUND = Link(bytes_per_s=1e9, source="round")
FLOPS = Throughput(model_flops=10**12, executed_flops=2 * 10**12, model_flops_6n=3 * 10**12)
FIT = Fit(device="round", capacity_bytes=2**30, context_bytes=None, fits=True, headroom_bytes=1, max_bs=None)


def run(**changes: Any) -> RunSpec:
    """A run of 2000 tokens a step."""
    fields: dict[str, Any] = {
        "model": load_model("llama3.2-1b"),
        "method": MethodSpec(name="lora"),
        "bs": 2,
        "seq": 1000,
    }
    return RunSpec(**{**fields, **changes})


def test_utilisation_is_of_the_printed_peak() -> None:
    """And not of the rate that is achieved: 10^12 operations in some 20 ms, of 125 TFLOP/s."""
    rates = StepTime.of(WORKS, profile()).throughput(FLOPS, run())
    assert rates.step_s == pytest.approx(STEP_S)
    assert rates.tokens_per_s == pytest.approx(2000 / rates.step_s)
    assert rates.mfu == pytest.approx(10**12 / rates.step_s / 125e12)
    assert (rates.hfu, rates.mfu_6n) == (pytest.approx(2 * rates.mfu), pytest.approx(3 * rates.mfu))


def test_micro_batches_count_for_the_tokens_of_a_step() -> None:
    """Four of them are 8000 tokens."""
    rates = StepTime.of(WORKS, profile()).throughput(FLOPS, run(accumulation=4))
    assert rates.tokens_per_s == pytest.approx(8000 / (rates.step_s or 0))


def test_the_peak_is_that_of_most_operations() -> None:
    """Of bf16 where products are in it, whatever the run's dtype; without a peak there is a time alone."""
    fp32 = run(dtype="fp32")
    assert StepTime.of(WORKS, profile()).throughput(FLOPS, fp32).mfu == pytest.approx(0.4, rel=1e-2)
    rates = profile().matmul["bf16"]
    works = [replace(work, dtype="fp32") for work in WORKS]
    rates_of_both = StepTime.of(works, profile(matmul={"bf16": rates, "fp32": rates})).throughput(FLOPS, fp32)
    assert rates_of_both.mfu is None
    assert rates_of_both.step_s is not None
    assert products_dtype([*WORKS, *works, *works]) == "fp32"
    assert products_dtype([]) is None


def test_the_entry_of_a_device_has_it_all() -> None:
    """With the profile's kind, and where the time goes; it survives a file."""
    timed = StepTime.of(WORKS, profile(measured=True)).fit(FIT, FLOPS, run())
    assert timed.profile == "measured"
    assert timed.time_by_kind is not None
    assert sum(timed.time_by_kind.values()) == pytest.approx(timed.step_s)
    assert timed.time_by_phase == {"forward": pytest.approx(timed.step_s)}
    assert build(Fit, plain(timed)) == timed


@pytest.mark.parametrize(
    ("changes", "on", "said"),
    [
        ({}, {"bandwidth": None}, "no memory bandwidth of round is known"),
        ({}, {"matmul": {}}, "no rate of matrix products in bf16 is known for round"),
    ],
)
def test_without_data_there_is_no_time_but_a_sentence(changes: Any, on: Any, said: str) -> None:
    """Null, never another card's figure."""
    asked = run(**changes)
    time = StepTime.of(WORKS, profile(**on))
    fit = time.fit(FIT, FLOPS, asked)
    assert fit.step_s is None
    assert fit.mfu is None
    assert said in (fit.why_no_time or "")
    assert time.throughput(FLOPS, asked) == FLOPS
    assert any(said in line for line in unmodelled([time], asked))
    assert assumptions([time]) == ()


def shared(shard: str, gpus: int, sent: dict[str, int], link: Link | None = ROUND) -> Sharing:
    return Sharing(shard=shard, gpus=gpus, sent=sent, units=4, link=link)


def test_several_cards_wait_for_what_they_send() -> None:
    """ZeRO-1 hides nothing: 2 GB at 1 GB/s are two seconds on top, with a phase and a kind of their own."""
    alone = StepTime.of(WORKS, profile())
    time = StepTime.of(WORKS, profile(), shared("zero1", 2, {"all_reduce": 10**9, "all_gather": 10**9}))
    fit = time.fit(FIT, FLOPS, run(gpus=2, shard="zero1"))
    assert fit.step_s == pytest.approx(alone.timeline.step_s + 2.0)
    for parts in (fit.time_by_phase, fit.time_by_kind):
        assert parts["communication"] == pytest.approx(2.0)
        assert sum(parts.values()) == pytest.approx(fit.step_s)
    assert fit.tokens_per_s == pytest.approx(2000 / fit.step_s)  # this card's
    assert any("1 GB/s" in line for line in assumptions([time]))
    assert any("several cards" in line for line in unmodelled([time], run(gpus=2, shard="zero1")))


def test_what_is_sent_beside_the_computation_is_hidden() -> None:
    """FSDP2 that sends for less time than a pass takes waits for the first unit's weights and the last one's gradients.

    Four units: an eighth of all that is gathered, in two passes, and a quarter of what is scattered.
    """
    works = [product(12800, 12800, 3072), product(12800, 12800, 3072, phase="backward")]
    sent = {"all_gather": 8 * 10**5, "reduce_scatter": 4 * 10**5}
    alone = StepTime.of(works, profile()).timeline
    time = StepTime.of(works, profile(), shared("fsdp", 8, sent)).timeline
    assert time.step_s - alone.step_s == pytest.approx(1e-4 + 1e-4)


def test_cards_of_which_no_link_is_known_have_no_time() -> None:
    time = StepTime.of(WORKS, profile(), shared("ddp", 2, {"all_reduce": 1}, None))
    assert time.timeline is None
    assert "--link 25GB/s" in (time.why_not or "")


def test_what_a_time_rests_on_is_said() -> None:
    """The profile and where it comes from, and what no time contains."""
    default = StepTime.of(WORKS, profile())
    measured = StepTime.of(
        WORKS, profile(measured=True, environment={"date": "2026-11-30"}, bandwidth=Curve.level(1e12))
    )
    assert assumptions([default, measured]) == (
        "step time by the default profile of round: its peaks, and published micro-benchmarks",
        "step time by a profile measured on A round card on 2026-11-30",
    )
    lines = unmodelled([default], run(method=MethodSpec(name="full"), optimizer="paged-adamw-8bit"))
    assert any("data loading" in line for line in lines)
    assert any("pages of optimizer states" in line for line in lines)


def test_whose_times_nobody_has_compared_is_said() -> None:
    """All but the A100 by its default profile, held to published runs, and a CPU's, held to real steps."""
    a100, h100 = default_profile(load_device("a100-80gb")), default_profile(load_device("h100"))
    assert uncompared([a100]) == ()
    (line,) = uncompared([a100, h100])
    assert "on h100:" in line
    assert uncompared([replace(a100, measured=True)]) != ()
    assert uncompared([replace(a100, measured=True, kind="cpu")]) == ()
