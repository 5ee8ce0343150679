"""Advice: each change is judged by the engine, what it refuses is left out, and the cheapest that fits comes first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafa_prof.advice import with_advice
from lorafa_prof.analytic import predict
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.analytic.timer import Timer
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.results import Axis, Change, Threshold
from lorafa_prof.specs import DeviceSpec, MethodSpec, RunSpec, Shard
from lorafa_prof.thresholds import Verdict, find_threshold

CARD = load_device("rtx4090")


def advised(method: str, axis: Axis = "bs", card: DeviceSpec = CARD, **options: Any) -> Threshold:
    forms = ClosedForms()
    run = RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name=method), **{"seq": 1024, **options})
    return with_advice(forms, find_threshold(forms, run, axis, card), card, forms.executed_flops, Timer().ratio)


def by_options(threshold: Threshold) -> dict[str, Change]:
    return {change.options: change for change in threshold.advice}


def test_each_change_is_what_predict_says_of_it() -> None:
    """Bytes saved, whether it fits, the new threshold, time and arithmetic, each against a prediction of its own."""
    found = advised("lora", seq=2048)
    first_oom = found.at(1)
    before = predict(first_oom, [CARD], timed=True)
    changed = {
        "--method lora-fa": first_oom.replace(method=MethodSpec(name="lora-fa")),
        "--checkpointing full": first_oom.replace(checkpointing="full"),
        "--adapter-dtype bf16": first_oom.replace(adapter_dtype="bf16"),
        "--quant nf4": first_oom.replace(quant="nf4"),
        "--optimizer adamw-8bit": first_oom.replace(optimizer="adamw-8bit"),
        "--amp": first_oom.replace(amp=True),
    }
    told = by_options(found)
    assert set(changed) <= set(told)
    for options, run in changed.items():
        after, change = predict(run, [CARD], timed=True), told[options]
        assert change.saved_bytes == after.fit[0].headroom_bytes - before.fit[0].headroom_bytes
        assert change.fits == after.fit[0].fits
        assert change.max == (after.fit[0].max_bs if change.fits else None)
        executed = (after.throughput.executed_flops, before.throughput.executed_flops)
        assert executed[0] is not None
        assert executed[1] is not None
        assert change.flops_ratio == pytest.approx(executed[0] / executed[1])
        assert change.time_ratio == pytest.approx((after.fit[0].step_s or 0) / (before.fit[0].step_s or 1))


def test_a_time_that_nobody_knows_is_left_out() -> None:
    """PEFT's LoRA-FA optimizer decomposes a matrix a module: its time without that cannot be compared."""
    peft_s, lora, ours = (
        RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name=name), seq=1024)
        for name in ("lora-fa-peft", "lora", "lora-fa")
    )
    assert Timer().ratio(peft_s, lora, CARD) is None
    assert Timer().ratio(lora, peft_s, CARD) is None
    assert Timer().ratio(ours, lora, CARD) is not None


def test_the_cheapest_that_fits_comes_first() -> None:
    """What fits stands before what does not, cheaper before dearer, and of equals what leaves the result as it is."""
    for method in ("full", "lora", "lora-fa", "qlora", "vera"):
        advice = advised(method, card=load_device("a100-80gb")).advice
        fitting = [change for change in advice if change.fits]
        assert list(advice[: len(fitting)]) == fitting
        costs = [99.0 if c.time_ratio is None else max(0.0, (c.time_ratio - 1) // 0.02) for c in fitting]
        cards = [int(c.options.split()[1]) if c.options.startswith("--gpus") else 1 for c in fitting]
        assert list(zip(cards, costs, strict=True)) == sorted(zip(cards, costs, strict=True))
        assert fitting[0].alters is None
        assert all(change.saved_bytes is not None and change.saved_bytes > 0 for change in advice)


def test_a_card_without_data_is_judged_by_arithmetic() -> None:
    """Nobody knows how fast a card is of which only the memory is: no time is given, and FLOPs decide the order."""
    card = replace(CARD, name="some card", bandwidth=None, peak_flops={})
    advice = advised("lora-fa", card=card).advice
    assert all(change.time_ratio is None for change in advice)
    ratios = [change.flops_ratio or 0 for change in advice if change.fits and change.options[:6] != "--gpus"]
    costs = [max(0.0, (ratio - 1) // 0.001) for ratio in ratios]
    assert costs == sorted(costs)


def test_accumulation_keeps_the_batch() -> None:
    """One sequence more than fits, in two passes that fit, at no arithmetic: every sequence is in one of them."""
    found = advised("lora-fa")
    change = next(change for change in found.advice if change.what.startswith("gradient accumulation"))
    assert (found.max, found.first_oom) == (2, 3)
    assert change.options == "--bs 2 --accumulation 2"
    assert change.what == "gradient accumulation: 2 micro-batches of 2 at most"
    assert (change.fits, change.alters, change.max) == (True, None, None)
    assert change.flops_ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shard", "other", "adds_up"), [("ddp", "--shard fsdp", True), ("fsdp", "--checkpointing full", False)]
)
def test_micro_batches_are_advised_on_several_cards_where_closed_forms_take_them(
    shard: Shard, other: str, adds_up: bool
) -> None:
    """Whole gradients add up on each card; of sharded ones closed forms refuse it, and other advice is there."""
    found = advised("lora", card=load_device("a100-80gb"), gpus=2, shard=shard)
    assert found.max > 0
    options = by_options(found)
    assert other in options
    micro = [
        change
        for each, change in options.items()
        if "--accumulation" in each and "--" not in each.split("--accumulation")[1]
    ]
    assert bool(micro) is adds_up
    assert all(change.fits for change in micro)


def test_shorter_sequences_are_the_longest_that_fit() -> None:
    """At the batch that does not fit; one token more does not fit either. It is said that the data are others."""
    found = advised("lora-fa")
    change = next(change for change in found.advice if change.what.startswith("sequences"))
    seq = int(change.options.removeprefix("--seq "))
    assert change.alters == f"{seq:,} instead of 1,024 tokens"
    beyond = found.at(3)
    assert predict(beyond.replace(seq=seq), [CARD]).fit[0].fits
    assert not predict(beyond.replace(seq=seq + 1), [CARD]).fit[0].fits


def test_what_the_engine_refuses_is_left_out() -> None:
    """AdaLoRA cannot be checkpointed selectively; PEFT's LoRA-FA optimizer takes no sharded weights."""
    options = " ".join(change.options for change in advised("lora").advice)
    assert "selective" in options
    assert "selective" not in " ".join(change.options for change in advised("adalora").advice)
    assert "--loss fused" in options
    assert "--shard fsdp" in options
    assert "--shard fsdp" in " ".join(change.options for change in advised("lora-fa").advice)
    assert "--shard" not in " ".join(change.options for change in advised("lora-fa-peft").advice)


def test_changes_of_the_result_are_marked() -> None:
    """Another method, fewer bits; checkpointing and another attention code alter nothing."""
    told = by_options(advised("lora", attn="eager"))
    assert told["--checkpointing full"].alters is None
    assert told["--loss fused"].alters is None
    assert told["--attn sdpa"].alters is None
    assert told["--method lora-fa"].alters == "another method: A is frozen"
    assert told["--quant nf4"].alters == "base weights in 4 bits"


def test_flash_attention_is_for_cards_that_have_it() -> None:
    """Turing has none."""
    assert "--attn flash" not in by_options(advised("lora", attn="eager", card=load_device("t4")))
    assert "--attn flash" in by_options(advised("lora", attn="eager"))


def test_where_one_change_is_not_enough_several_are() -> None:
    """A card that is smaller than the 16-bit weights: 4 bits alone are not enough for 4,096 tokens, nor is anything
    else; together with checkpointing they are, and neither of the two is idle.
    """
    small = replace(load_device("a6000"), total_bytes=12 * 2**30)
    found = advised("lora", card=small, seq=4096)
    alone = [change for change in found.advice if " and " not in change.what]
    assert not any(change.fits for change in alone)
    joint = found.advice[0]
    assert joint.fits
    assert sorted(joint.options.split(" --")) == ["--checkpointing full", "quant nf4"]
    assert joint.saved_bytes is not None
    assert joint.saved_bytes > max(change.saved_bytes or 0 for change in alone)


def test_nothing_to_advise() -> None:
    """Where nothing fails there is no advice."""
    assert advised("lora-fa", "seq", load_device("a100-80gb")).advice == ()


@pytest.mark.parametrize("axis", ["seq", "rank"])
def test_advice_along_other_axes(axis: Axis) -> None:
    """The new threshold is along the axis that was asked about."""
    found = advised("lora", axis, bs=1)
    assert found.first_oom is not None
    fitting = [change for change in found.advice if change.fits and change.max is not None]
    assert fitting
    assert all(change.max >= found.first_oom for change in fitting if change.max is not None)


class Silent:
    """An engine that says whether a run fits, and never how much it needs: a device that was really full."""

    name = "measure"
    largest_batch = 64
    is_quick = False

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        if run.quant != "none":
            raise UnsupportedError("no such thing here")
        fits = run.bs * (1 if run.checkpointing == "full" else 2) <= 8
        return Verdict(
            fits=fits, headroom_bytes=5 if fits else None, memory=None, capacity_bytes=8, context_bytes=None,
            versions={}, assumptions=(), unmodelled=(), oom=None if fits else "full",
        )  # fmt: skip

    def headroom(self, run: RunSpec, device: DeviceSpec) -> int | None:
        return self.verdict(run, device).headroom_bytes

    def largest(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        return 7  # wrong: the verdicts have to find that out

    def gap(self, run: RunSpec, axis: Axis, device: DeviceSpec, below: int) -> int | None:
        return None


def test_a_search_that_errs_is_put_right_by_verdicts() -> None:
    """The engine's search said 7; its verdicts say 4, and advice goes by them, with unknown savings."""
    run = RunSpec(model=load_model("gpt2"), method=MethodSpec(name="lora"))
    found = with_advice(Silent(), find_threshold(Silent(), run, "bs", CARD), CARD, lambda run: None, lambda *_: None)
    assert (found.max, found.first_oom) == (4, 5)
    assert {change.options for change in found.advice} == {"--checkpointing full", "--bs 3 --accumulation 2"}
    assert all(change.saved_bytes is None and change.fits and change.flops_ratio is None for change in found.advice)
    assert Threshold.from_json(found.to_json()) == found


def test_more_cards_are_judged_like_any_other_change() -> None:
    """FSDP2 over two and eight cards: what it saves is the difference of two predictions; fewer cards come first."""
    threshold = advised("lora")
    run, card = threshold.run.replace(bs=threshold.first_oom), load_device("rtx4090")
    found = [change for change in threshold.advice if change.options.startswith("--gpus")]
    assert [change.options for change in found] == [f"--gpus {n} --shard fsdp" for n in (2, 8)]
    alone = predict(run, [card]).fit[0].headroom_bytes
    for change, gpus in zip(found, (2, 8), strict=True):
        shared = predict(run.replace(gpus=gpus, shard="fsdp"), [card]).fit[0].headroom_bytes
        assert change.saved_bytes == shared - alone
        assert change.fits is (shared >= 0)
