"""Thresholds by closed forms: on both sides `predict` says the same, and no value in between says otherwise.

Each verdict is asked of `predict` anew, with plans of its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.engine import outside_plan
from lorafa_prof.analytic.frontier import Plans, Stretch, stretches
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.catalog import device_names, load_device, load_model
from lorafa_prof.errors import BadInputError, ContradictionError
from lorafa_prof.reports.oom import threshold_table
from lorafa_prof.reports.prediction import comparison_table
from lorafa_prof.results import Axis, Threshold, along
from lorafa_prof.specs import DeviceSpec, MethodSpec, RunSpec
from lorafa_prof.thresholds import find_threshold, limit_of
from tests.analytic.runs import run_of

METHODS = ("full", "lora", "lora-fa", "qlora", "vera")
MODELS = ("qwen2.5-0.5b", "llama2-7b", "mistral-7b")
CARDS = ("t4", "rtx4090", "a100-40gb", "h100")


def run(model: str, method: str, **options: Any) -> RunSpec:
    return RunSpec(model=load_model(model), method=MethodSpec(name=method), **{"seq": 1024, **options})


def verdict(run: RunSpec, device: DeviceSpec) -> bool:
    return predict(run, [device], largest_batch=False).fit[0].fits


def check(found: Threshold, device: DeviceSpec) -> None:
    """The proof: `max` fits and `max + 1` does not."""
    assert found.max == 0 or verdict(found.at(found.max), device)
    if found.first_oom is None:
        assert found.max == found.limit
    else:
        assert found.first_oom == found.max + 1
        assert not verdict(found.at(found.first_oom), device)


# -- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_the_largest_batch_fits_and_one_more_does_not(model: str, method: str) -> None:
    """Three models, five methods, cards from 15 to 79 GiB; it is also what `predict` gives for the largest batch."""
    engine = ClosedForms()
    for name in CARDS:
        device = load_device(name)
        found = find_threshold(engine, run(model, method), "bs", device)
        check(found, device)
        if name == "rtx4090":
            assert predict(run(model, method), [device]).fit[0].max_bs == found.max


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["bs", "seq", "rank"])
@pytest.mark.parametrize("model", MODELS)
def test_every_card_of_the_catalog(model: str, axis: Axis) -> None:
    """The whole product, along every axis."""
    engine = ClosedForms()
    for method in METHODS[axis == "rank" :]:
        for name in device_names():
            check(find_threshold(engine, run(model, method), axis, load_device(name)), load_device(name))


@pytest.mark.parametrize(("axis", "method"), [("seq", "lora"), ("seq", "qlora"), ("rank", "qlora")])
def test_sequence_and_rank_on_every_card(axis: Axis, method: str) -> None:
    """Along the other axes too, on all cards of the catalog: some stop between none and all that there are, and not
    all cards do. The judge has plans of its own, which it keeps from card to card.
    """
    engine, judge, ended = ClosedForms(), Plans(), set()
    for name in device_names():
        device = load_device(name)
        found = find_threshold(engine, run("llama2-7b", method, bs=2), axis, device)
        for value, fits in ((found.max, True), (found.first_oom, False)):
            if value:
                told = predict(found.at(value), [device], plans=judge, largest_batch=False)
                assert told.fit[0].fits == fits, f"{name}: {axis} {value}"
        assert found.first_oom == (None if found.max == found.limit else found.max + 1)
        ended.add("all" if found.first_oom is None else "between" if found.max else "none")
    assert ended > {"between"}


def test_what_was_not_looked_for_is_no_threshold() -> None:
    """A model of some thousand weights fits with every batch that is looked for: no first failure, and the table says
    "all to", where a threshold has its number.
    """
    tiny = run_of("llama", "lora-fa", seq=1)
    found = find_threshold(ClosedForms(), tiny, "bs", load_device("b200"))
    assert (found.max, found.first_oom, found.limit) == (2**20, None, 2**20)
    (row,) = threshold_table([found]).rows
    assert "all to 1,048,576" in [getattr(cell, "text", cell) for cell in row]
    table = comparison_table([predict(tiny, [load_device("b200")])])
    (cell,) = (row[1] for row in table.rows if row[0] == "largest batch")
    assert getattr(cell, "text", cell) == "all to 1,048,576"
    real = find_threshold(ClosedForms(), run("llama2-7b", "lora-fa"), "bs", load_device("a100-80gb"))
    assert str(real.max) in [getattr(cell, "text", cell) for cell in threshold_table([real]).rows[0]]


# -- memory does not always rise -------------------------------------------------------------------------------------


def card_of(total: int, **changes: Any) -> DeviceSpec:
    return replace(load_device("a100-80gb"), name="made up", total_bytes=total, context_bytes=None, **changes)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2", "t5"])
def test_the_longest_sequence_is_the_longest_by_trying_all(family: str, attn: str) -> None:
    """Every length from 1 to 200 is tried: lengths that are padded take more than the next multiple of 16, and past the
    window (of 9 here, and of 100) there is a mask. The largest that fits, and the smallest that does not, are found for
    a card that just holds any one of them.
    """
    positions = {"gpt2": {"n_positions": 200}, "t5": {}}.get(family, {"max_position_embeddings": 200})
    changes = [positions, {**positions, "sliding_window": 100}] if family == "mistral-window" else [positions]
    for change in changes:
        base, plans = run_of(family, "lora", changes=change, attn=attn, bs=40), Plans()
        needed = {n: plans.peak(base.replace(seq=n)).allocated for n in range(1, 201)}
        for n in (1, 8, 9, 15, 16, 17, 31, 32, 33, 99, 100, 101, 150, 160, 161, 175, 199, 200):
            device = card_of(needed[n] + outside_plan(card_of(2**30)))
            fitting = [s for s in needed if needed[s] <= needed[n]]
            failing = [s for s in needed if needed[s] > needed[n]]
            limit = 200 if family != "t5" else 2**20
            best = ClosedForms().largest(base, "seq", device, 200)
            assert best == max(fitting)
            gap = ClosedForms().gap(base, "seq", device, best)
            assert gap == (min(failing) if failing and min(failing) < best else None)
            assert limit_of(base, "seq", 1).most == limit


def test_a_length_that_is_padded_may_not_fit_where_a_longer_one_does() -> None:
    """T5's bias of 1,001 tokens is copied to be padded, that of 1,008 is not: it is said that there is a gap."""
    base = run_of("t5", "lora", bs=2)
    plans = Plans()
    longer = plans.peak(base.replace(seq=1008)).allocated
    assert plans.peak(base.replace(seq=1001)).allocated > longer
    device = card_of(longer + outside_plan(card_of(2**30)))
    found = find_threshold(ClosedForms(), base, "seq", device)
    check(found, device)
    failing = [seq for seq in range(1, 1009) if plans.peak(base.replace(seq=seq)).allocated > longer]
    assert (found.max, found.fails_from) == (1008, failing[0])
    assert failing == [seq for seq in range(failing[0], 1008) if seq % 16]
    assert not verdict(base.replace(seq=failing[0]), device)
    assert verdict(base.replace(seq=failing[0] - 1), device)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 15), (16, 16), (3, 200), (17, 31), (1, 1000)])
@pytest.mark.parametrize("padded", [None, True, False])
def test_a_stretch_lists_its_values(first: int, last: int, padded: bool | None) -> None:
    """In order, each once: all, those that are a multiple of 16, or the others."""
    part = Stretch(first=first, last=last, padded=padded)
    wanted = [n for n in range(first, last + 1) if padded is None or bool(n % 16) == padded]
    assert [part[i] for i in range(len(part))] == wanted


@pytest.mark.parametrize("axis", ["bs", "seq", "rank"])
def test_stretches_cover_everything_once(axis: Axis) -> None:
    """Whatever the window."""
    base = run_of("mistral-window", "lora")
    values = [part[i] for part in stretches(base, axis, 64) for i in range(len(part))]
    assert sorted(values) == list(range(1, 65))


# -- limits ----------------------------------------------------------------------------------------------------------


def test_learned_positions_end() -> None:
    """GPT-2's table has 1,024 rows: on a large card that is the threshold, nothing fails, and it is said why."""
    found = find_threshold(ClosedForms(), run("gpt2", "lora"), "seq", load_device("a100-80gb"))
    assert (found.max, found.first_oom, found.at_first_oom, found.advice) == (1024, None, None, ())
    assert found.limited_by == "the table of positions of gpt2 ends at 1,024: no longer step runs"
    check(found, load_device("a100-80gb"))
    with pytest.raises(BadInputError, match="sequence length 1025 is beyond the 1024 positions of gpt2"):
        found.at(1025)


def test_rotary_positions_go_on() -> None:
    """The limit is what the model is made for, and the way further is named; such a model is searched further."""
    found = find_threshold(ClosedForms(), run("llama2-7b", "lora-fa"), "seq", load_device("a100-80gb"))
    assert (found.max, found.first_oom) == (4096, None)
    assert "larger max_position_embeddings" in found.limited_by
    longer = replace(load_model("llama2-7b"), max_positions=2**17)
    again = RunSpec(model=longer, method=MethodSpec(name="lora-fa"))
    further = find_threshold(ClosedForms(), again, "seq", load_device("a100-80gb"))
    assert further.max > 4096
    check(further, load_device("a100-80gb"))


def test_a_rank_beyond_the_width_is_not_looked_for() -> None:
    """No update has a rank beyond the narrower side of its weight; full fine-tuning has no rank at all."""
    found = find_threshold(ClosedForms(), run("qwen2.5-0.5b", "lora"), "rank", load_device("a100-80gb"))
    assert (found.max, found.first_oom) == (896, None)
    with pytest.raises(ContradictionError, match="no rank"):
        find_threshold(ClosedForms(), run("qwen2.5-0.5b", "full"), "rank", load_device("a100-80gb"))


def test_nothing_fits() -> None:
    """Max 0, the first failure is 1, and what it lacks is known: AdamW's two states of 6,738,415,616 bf16 parameters,
    their gradients, the weights with RoPE's frequencies (twice 64 fp32 numbers), and at the optimizer's step the square
    roots that `foreach` makes of all second moments; beside them the batch, its labels and the loss are alive. What
    would help is another matter.
    """
    device, parameters = load_device("rtx4090"), 6_738_415_616
    found = find_threshold(ClosedForms(), run("llama2-7b", "full"), "bs", device)
    assert (found.max, found.first_oom, found.at_max) == (0, 1, None)
    edge = found.at_first_oom
    assert edge is not None
    assert edge.memory is not None
    assert (edge.largest_part, edge.memory.peak_moment) == ("optimizer_bytes", "optimizer step")
    parts = (edge.memory.optimizer_bytes, edge.memory.gradients_bytes, edge.memory.temporaries_bytes)
    assert parts == (4 * parameters, 2 * parameters, 2 * parameters)
    assert edge.memory.weights_bytes == 2 * parameters + 2 * 512
    assert device.context_bytes is not None
    batch, loss = 3 * 8 * 1024, 512  # ids, labels and mask of int64
    assert (edge.memory.activations_bytes, edge.memory.logits_bytes) == (batch, loss)
    needed = 10 * parameters + 2 * 512 + 2 * 8_519_680 + batch + loss  # with cuBLAS's two workspaces of 8.125 MiB
    assert edge.headroom_bytes == device.total_bytes - device.context_bytes - needed


# -- the LoRA-FA paper -----------------------------------------------------------------------------------------------

#: How the adapters may have been run: the paper does not say.
PRECISIONS: tuple[dict[str, Any], ...] = ({"adapter_dtype": "bf16"}, {"amp": True}, {})


@pytest.mark.parametrize("precision", PRECISIONS, ids=["bf16 adapters", "autocast", "fp32 adapters"])
def test_the_papers_long_sequences(precision: dict[str, Any]) -> None:
    """Llama2-7B, FlashAttention, batch 1, rank 64 on all linear layers (the paper's appendix E.1): with LoRA-FA 2,048
    tokens fit an RTX 4090 and 4,096 fit 40 GB; with LoRA 2,048 do not fit the RTX 4090. Whatever the adapters' dtype.
    """
    engine, cards = ClosedForms(), {name: load_device(name) for name in ("rtx4090", "a100-40gb")}

    def longest(method: str, card: str) -> int:
        asked = run("llama2-7b", method, attn="flash", **precision)
        return find_threshold(engine, asked, "seq", cards[card]).max

    assert longest("lora-fa", "rtx4090") >= 2048
    assert longest("lora-fa", "a100-40gb") == 4096
    assert longest("lora", "rtx4090") < 2048


def test_the_papers_ranks() -> None:
    """Ranks from 1 to 128 at 1 x 1,024 tokens run "without OOM" (appendix E): on an RTX 4090 ours goes beyond them."""
    found = find_threshold(ClosedForms(), run("llama2-7b", "lora-fa", attn="flash"), "rank", load_device("rtx4090"))
    assert found.max >= 128


def test_the_papers_only_method_that_fits() -> None:
    """Figure 2, one A800 of 80 GB, batches of 8 to 12: "the only method capable of running". At 1,024 tokens and PEFT's
    fp32 adapters without autocast that is so from 9 on. At 8 ours lets QLoRA in, whose norms, embeddings and head the
    paper's tool casts to fp32 (`prepare_model_for_kbit_training`); closed forms do not model that.
    """
    engine, card = ClosedForms(), load_device("a800-80gb")
    largest = {m: find_threshold(engine, run("llama2-7b", m, attn="flash"), "bs", card).max for m in METHODS}
    assert largest["lora-fa"] >= 12
    assert {m for m, bs in largest.items() if bs >= 9} == {"lora-fa"}
    assert {m for m, bs in largest.items() if bs >= 8} == {"lora-fa", "qlora"}


def test_absurd_sizes_are_beyond_every_card() -> None:
    """A batch of a million with the scores of a million tokens each: exact integers, and no fit."""
    base = run_of("t5", "lora", attn="eager", bs=2**20, seq=2**20)
    found = find_threshold(ClosedForms(), base, "seq", load_device("b200"))
    assert math.log2(found.max + 1) < 16
    check(found, load_device("b200"))
    assert along(base, "bs", 1).bs == 1
