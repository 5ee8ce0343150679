"""Adapters in a share of the layers, in closed forms: layers are now of up to three kinds, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.plan import plan
from lorafa_prof.analytic.ranks import SENTINEL, WITNESS, same_step
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.analytic.repeated import check_repeated_layers
from tests.analytic.runs import EXPERTS, FAMILIES, WINDOWED, run_of
from tests.analytic.test_figures import computed, told
from tests.analytic.test_flops import ours, split
from tests.support import observe

DEPTH = 14
#: With more than four layers in a row of each kind, and with fewer.
PATTERNS: dict[str, tuple[int, ...]] = {
    "last": tuple(range(7, 14)), "first": tuple(range(7)), "middle": (5, 6, 7, 8, 9), "one": (13,),
    "scattered": (1, 2, 8), "two left out": (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "checkpointing": {"checkpointing": "full"}, "autocast": {"amp": True, "dtype": "fp32"},
    "eager": {"attn": "eager"},
}  # fmt: skip


def adapted(family: str, method: str, layers: tuple[int, ...], **options: Any) -> RunSpec:
    """A run of a tiny model; experts, which PEFT adapts in all layers, are left out."""
    targets = {"targets": ("qv",)} if family in EXPERTS else {}
    return run_of(family, method, layers=DEPTH, adapted=layers, **targets, **options)


def cases(families: Sequence[str]) -> list[Any]:
    """Each family with two patterns by default; the others are left to the slow tests."""
    return [
        pytest.param(family, pattern, id=f"{family}-{pattern}", marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
        for i, family in enumerate(families)
        for j, pattern in enumerate(PATTERNS)
    ]


@pytest.mark.parametrize(("family", "pattern"), cases([*FAMILIES, *WINDOWED]))
def test_the_repeated_layers_stand_for_all(family: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak, phases, what is saved, FLOPs and parameters are those of a plan in which every layer was traced."""
    number = list(PATTERNS).index(pattern) + len(family)
    options = list(OPTIONS.values())[number % 4]
    run = adapted(family, ("lora", "lora-fa", "vera")[number % 3], PATTERNS[pattern], **options)
    check_repeated_layers(run, monkeypatch)


@pytest.mark.parametrize(("family", "pattern"), cases(["llama", "gpt2", "roberta", "qwen3", "gemma2", "mixtral"]))
def test_flops_are_those_of_the_counter(family: str, pattern: str) -> None:
    """No backward is counted beneath the lowest layer with adapters, and one of inputs alone in bare ones above it."""
    method = ("lora", "lora-fa", "vera")[(len(family) + len(pattern)) % 3]
    run = adapted(family, method, PATTERNS[pattern])
    counted, flops = observe.flops(run), plan(run).flops(run.bs, run.seq)
    assert ours(flops, "forward") == split(counted.forward)
    assert ours(flops, "backward") == split(counted.backward)


@pytest.mark.parametrize(("family", "pattern"), cases(["llama", "t5", "roberta"]))
def test_parameters_are_those_of_the_model(family: str, pattern: str) -> None:
    """All of them, and those that are trained."""
    run = adapted(family, "lora", PATTERNS[pattern])
    counted, ours_ = observe.parameter_counts(run), plan(run).parameters
    assert (ours_.total, ours_.trainable) == (counted.total, counted.trainable)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "t5"])
def test_arrays_of_sizes_are_those_of_predict(family: str) -> None:
    """For many batches and lengths at once every figure is the one of each alone."""
    run = adapted(family, "lora-fa", PATTERNS["scattered"])
    sizes = [(1, 1), (1, 16), (2, 9), (3, 64), (7, 63), (1000, 40)]
    assert computed(run, sizes) == [told(run, *size) for size in sizes]


def test_the_rank_is_a_factor_of_sizes() -> None:
    """So that a plan in which it is a symbol holds for these layers too."""
    runs = [adapted("llama", "lora", PATTERNS["middle"], rank=rank) for rank in (SENTINEL, WITNESS)]
    assert same_step(plan(runs[0]), plan(runs[1]))


def llama(layers: tuple[int, ...] | None, **options: Any) -> RunSpec:
    method = MethodSpec(name="lora-fa", layers=layers)
    return RunSpec(model=load_model("llama2-7b"), method=method, bs=1, seq=1024, **options)


def test_the_lowest_layer_decides() -> None:
    """Nothing is kept and no backward runs beneath it: the last half takes half, the first half nearly all.

    A step of 32 layers keeps what 16 keep twice, but for what comes after the layers: the last norm, the loss.
    """
    saved = {
        name: predict(llama(layers)).memory.saved_activations_bytes or 0
        for name, layers in {
            "all": None, "last": tuple(range(16, 32)), "first": tuple(range(16)), "lowest": (0,), "highest": (31,)
        }.items()
    }  # fmt: skip
    a_layer = (saved["last"] - saved["highest"]) / 15
    assert saved["all"] - saved["last"] == pytest.approx(16 * a_layer, rel=1e-3)
    assert 0.97 * saved["all"] < saved["lowest"] < saved["first"] < saved["all"]


def test_with_checkpointing_gradients_go_to_the_embedding() -> None:
    """Every layer is run once more in the backward, though only the last one has adapters.

    Of a layer without, the recomputation stops before down_proj (a fifth of it), whose product keeps nothing new.
    """
    flops = plan(llama((31,), checkpointing="full")).flops(1, 1024)
    without = plan(llama((31,))).flops(1, 1024)
    assert flops["recompute", "linear"] == pytest.approx(0.77 * flops["forward", "linear"], rel=0.03)
    assert flops["backward", "linear"] > 8 * without["backward", "linear"]


@pytest.mark.parametrize(
    ("family", "targets", "error", "said"),
    [
        ("llama", ("q_proj", "lm_head"), BadInputError, "no module 'lm_head' is in the layers 1-2 of 14"),
        ("mixtral", ("all-linear",), UnsupportedError, "whatever layers_to_transform says"),
        ("mixtral", ("q_proj", "w1", "w2", "w3"), UnsupportedError, "whatever layers_to_transform says"),
    ],
)
def test_what_has_no_adapters_in_some_layers(
    family: str, targets: tuple[str, ...], error: type[Exception], said: str
) -> None:
    """A head is in no layer; experts are parameters, of which PEFT adapts all."""
    run = run_of(family, "lora", layers=DEPTH, adapted=(1, 2), targets=targets)
    with pytest.raises(error, match=said):
        predict(run)
