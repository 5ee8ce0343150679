"""LoRA-GA's pass, its initialisation and its training: closed forms and the libraries' own code on meta tensors."""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.plan import plan
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import INITIALISATION, PRE_PASS, PRE_PASS_BACKWARD, Category
from lorafa_prof.simulate.engine import predict as simulate
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import allocated
from tests.analytic.runs import run_of
from tests.simulate.test_against_analytic import A100, Parts, closed_form
from tests.support.supported import ARCHITECTURES, architecture_run

BEFORE = (PRE_PASS, PRE_PASS_BACKWARD, INITIALISATION)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"attn": "eager"},
    "fp32, where an A is a part of what it is made of": {"attn": "eager", "dtype": "fp32", "rank": 8},
    "autocast": {"attn": "eager", "dtype": "fp32", "amp": True},
    "checkpointing": {"attn": "eager", "checkpointing": "full"},
    "selective, two micro-batches": {"attn": "eager", "checkpointing": "selective", "accumulation": 2},
    "two tokens, where the initialisation is the peak": {"attn": "eager", "bs": 1, "seq": 2, "optimizer": "sgd"},
    "bf16 adapters, query and value": {"attn": "eager", "adapter_dtype": "bf16", "targets": ("qv",)},
    "sdpa, the loss": {"changes": {"vocab_size": 6000}},
}


def cases() -> list[Any]:
    """Wide and tall weights, transposed ones, two stacks; one in seven by default."""
    made = []
    families = ("llama", "llama-bias", "qwen3", "gpt2", "phi3", "gemma2", "t5", "mixtral", "deepseek_v2", "qwen3_moe")
    for i, family in enumerate(families):
        for k, (name, options) in enumerate(OPTIONS.items()):
            if family == "deepseek_v2" and "sdpa" in name:
                continue  # no fused kernel takes its value heads
            marks = () if (i + k) % 7 == 0 else pytest.mark.slow
            made.append(pytest.param(family, "lora-ga", options, id=f"{family}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), cases())
def test_every_phase(family: str, method: str, options: dict[str, Any]) -> None:
    """The most that is allocated in each part of what comes before training, and all parts of the peak of all."""
    run = run_of(family, method, layers=5, **{"optimizer": "adamw", **options})
    highest, parts = simulated(run)
    assert closed_forms(run) == highest
    assert closed_form(run) == parts


def architectures() -> list[Any]:
    """Those of the catalog but for Qwen 2 with experts, whose gate has a single row; one in six by default."""
    able = [name for name in ARCHITECTURES if name != "qwen2_moe"]
    return [
        pytest.param(name, "lora-ga", id=name, marks=() if i % 6 == 1 else pytest.mark.slow)
        for i, name in enumerate(able)
    ]


@pytest.mark.parametrize(("architecture", "method"), architectures())
def test_every_architecture(architecture: str, method: str) -> None:
    """Classifiers, whose head has no gradient, and experts, which have none either, among them."""
    run = architecture_run(architecture, method, layers=5, attn="eager", optimizer="adamw")
    highest, parts = simulated(run)
    assert closed_forms(run) == highest
    assert closed_form(run) == parts


def simulated(run: RunSpec) -> tuple[dict[str, int], Parts]:
    """The highest of each phase before training, and the parts of the peak; without what is inside kernels."""
    platform = Cuda(A100, "2.13.0")
    trace = record(run, platform).trace(2, platform)
    sizes = [0 if b.category is Category.WORKSPACES else allocated(b.nbytes) for b in trace.blocks]
    begins = [*(trace.position(phase) for phase in BEFORE), trace.position("forward", 0), len(trace.events)]
    live = top = peak = 0
    highest = dict.fromkeys(BEFORE, 0)
    for position, event in enumerate(trace.events):
        live += sizes[event] if event >= 0 else -sizes[~event]
        for phase, first, last in zip(BEFORE, begins, begins[1:], strict=False):
            if first <= position < last:
                highest[phase] = max(highest[phase], live)
        if position >= begins[0] and live > top:
            top, peak = live, position
    parts = dict.fromkeys(Category, 0)
    for number in trace.alive_at(peak):
        parts[trace.blocks[number].category] += sizes[number]
    return highest, parts


def closed_forms(run: RunSpec) -> dict[str, int]:
    """The same of the plan's timeline."""
    planned, values = plan(run), symbol_values(run.bs, run.seq)
    timeline, live = planned.timeline, planned.static_bytes
    sizes = [rounded(kind.size[0] * product_of(kind.size[1], values)) for kind in timeline.kinds]
    highest = dict.fromkeys(BEFORE, 0)
    for kind, change, place in timeline.events:
        live += sizes[kind] * change
        phase = timeline.places[place].phase
        if phase in highest:
            highest[phase] = max(highest[phase], live)
    return highest


def test_what_is_told() -> None:
    """Which peak is whose, in the words of the simulation; what autograd keeps and the gradients are training's."""
    run = run_of("llama", "lora-ga", attn="eager", optimizer="adamw", bs=1)
    ours, theirs = predict(run), simulate(run)
    told = [[line for line in p.assumptions if line.startswith("LoRA-GA's gradient pass")] for p in (ours, theirs)]
    assert len(told[0]) == 1
    assert told[0][0].partition(" up to ")[0] == told[1][0].partition(" up to ")[0]
    assert told[0][0].partition(", ")[2] == told[1][0].partition(", ")[2]
    assert ours.memory.moments is not None
    assert set(BEFORE) <= set(ours.memory.moments)
    assert ours.memory.saved_activations_bytes == theirs.memory.saved_activations_bytes
    assert ours.memory.trained_gradients_bytes == theirs.memory.trained_gradients_bytes
    assert ours.parameters == theirs.parameters


def test_more_layers_are_as_many_gradients() -> None:
    """Of layers that are alike one stands for all: each takes a gradient of every weight, the first is the highest."""
    few, many = (closed_forms(run_of("llama", "lora-ga", layers=n, attn="eager")) for n in (12, 13))
    assert {phase: many[phase] - few[phase] for phase in BEFORE[1:]}[INITIALISATION] > 0
    assert simulated(run_of("llama", "lora-ga", layers=9, attn="eager"))[0] == closed_forms(
        run_of("llama", "lora-ga", layers=9, attn="eager")
    )


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("llama", {"quant": "nf4"}, "nf4 weights have none"),
        ("llama", {"loss": "fused"}, "the fused loss"),
        ("llama", {"gpus": 2, "shard": "ddp"}, "several GPUs"),
        ("llama", {"rank": 17}, "k_proj has 32: --rank 16 at most"),
        ("mixtral", {"targets": ("w1", "w3")}, "lora-ga does not adapt the parameters that experts"),
        ("qwen2_moe", {}, "shared_expert_gate has 1: name --targets without it"),
    ],
)
def test_refusals(family: str, options: dict[str, Any], said: str) -> None:
    """What the real pass is not built for, ranks that PEFT's decomposition has no vectors for, experts."""
    with pytest.raises(UnsupportedError, match=said):
        predict(run_of(family, "lora-ga", **options))
