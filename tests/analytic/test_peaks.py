"""Peaks against the live storages of the real model's step: transformers and PEFT on meta tensors, CUDA's kernels."""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic.plan import StepPlan, plan
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.specs import RunSpec
from tests.analytic.runs import EXPERTS, run_of
from tests.support import observe

#: What kernels hold inside themselves and meta tensors do not show.
HIDDEN = ("attention backward", "gradient of expanded", "dequantised weight")

#: A vocabulary large enough that the loss is the peak, and one so small that a layer is.
LOSS, LAYER = {"vocab_size": 6000}, {"vocab_size": 260}

FAMILIES = (
    "llama", "llama-bias", "mistral", "mistral-window", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3_text-window",
    "phi3", "granite", "gpt2", "gpt_bigcode", "bert", "roberta", "t5", *EXPERTS,
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one sequence": {"bs": 1},
    "eager": {"attn": "eager"},
    "autocast": {"amp": True, "dtype": "fp32"},
    "checkpointing": {"checkpointing": "full"},
    "checkpointing, autocast": {"checkpointing": "full", "amp": True},
    "selective": {"checkpointing": "selective"},
    "selective, autocast": {"checkpointing": "selective", "amp": True, "dtype": "fp32"},
    "family's own dropout": {"config_dropout": True},
}


def hidden_bytes(planned: StepPlan, run: RunSpec) -> int:
    """Bytes alive at the peak that are inside kernels."""
    values = symbol_values(run.bs, run.seq)
    alive = planned.alive(planned.peak(run.bs, run.seq).position)
    return sum(
        int(rounded(kind.size[0] * product_of(kind.size[1], values))) * count
        for kind, count in alive
        if kind.name.startswith(HIDDEN)
    )


def check(run: RunSpec) -> None:
    """The engine's peak is the observed one, or higher by no more than what a kernel hides there."""
    planned = plan(run)
    peak = planned.peak(run.bs, run.seq)
    observed = observe.step_timeline(run, "meta")
    assert peak.allocated - hidden_bytes(planned, run) <= observed.peak <= peak.allocated
    if not hidden_bytes(planned, run):
        assert peak.allocated == observed.peak


def cases() -> list[Any]:
    """Every family, method and option. By default plain LoRA of each family, other methods of three, options of two.

    Those of experts are left to the slow tests: `test_experts` holds each of their phases.
    """
    made = []
    for family in FAMILIES:
        for method in ("full", "lora", "lora-fa"):
            for name, options in OPTIONS.items():
                if family == "deepseek_v2" and name == "eager":
                    continue  # as plain
                quick = name == "plain" and (method == "lora" or family in ("llama", "gpt2", "t5"))
                quick = quick or (family in ("gpt2", "gemma3_text") and method == "lora-fa")
                quick = quick and family not in EXPERTS
                marks = () if quick else pytest.mark.slow
                made.append(pytest.param(family, method, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), cases())
def test_every_family(family: str, method: str, options: dict[str, Any]) -> None:
    """Six layers, of which four are traced; to the byte."""
    check(run_of(family, method, layers=6, changes=LOSS, optimizer="adamw", **options))


@pytest.mark.parametrize("vocabulary", [LOSS, pytest.param(LAYER, marks=pytest.mark.slow)], ids=["loss", "layer"])
@pytest.mark.parametrize(
    ("dropout", "adapter_dtype"),
    [
        (0.0, "auto"),
        (0.1, "bf16"),
        pytest.param(0.1, "auto", marks=pytest.mark.slow),
        pytest.param(0.0, "bf16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "method", ["lora", "lora-fa", "lora-fb", "lora-qv", "lora-plus", "dora", "vera", "qlora", "qlora-fa"]
)
def test_every_method(method: str, dropout: float, adapter_dtype: str, vocabulary: dict[str, int]) -> None:
    """Adapters in fp32 as PEFT makes them, and in bf16; with and without their dropout."""
    options = {"dropout": dropout, "adapter_dtype": adapter_dtype, "optimizer": "adamw"}
    check(run_of("llama", method, layers=6, changes=vocabulary, **options))


@pytest.mark.parametrize(
    ("family", "amp"),
    [
        pytest.param(family, amp, marks=() if amp is (number % 2 == 0) else pytest.mark.slow)
        for number, family in enumerate(("gpt2", "llama-bias", "phi3", "roberta", "t5"))
        for amp in (False, True)
    ],
)
def test_dora_s_matrices(family: str, amp: bool) -> None:
    """Biases, fused and transposed projections; a batch so small that the matrices of a weight's size are the peak."""
    check(run_of(family, "dora", layers=6, changes=LAYER if family != "t5" else {}, bs=1, seq=3, amp=amp, rank=2))


@pytest.mark.parametrize("rank", [2, 64])
def test_lora_plus_steps_group_by_group(rank: int) -> None:
    """At a high rank the optimizer's step is the peak: its temporaries are those of one group at a time."""
    planned = plan(run := run_of("llama", "lora-plus", layers=6, changes=LAYER, bs=1, seq=2, rank=rank))
    assert (planned.peak(1, 2).place.phase == "optimizer step") is (rank == 64)
    check(run)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-fused", "sgd"])
@pytest.mark.parametrize("family", ["llama", "llama-bias"])
def test_every_optimizer(family: str, optimizer: str) -> None:
    """Full fine-tuning of untied and tied tables: the step, or the sum of the table's two gradients, is the peak."""
    check(run_of(family, "full", layers=6, changes={"vocab_size": 3000}, optimizer=optimizer, bs=1, seq=8))


def test_flash_attention_s_backward_is_seen_by_the_engine_alone() -> None:
    """Where the peak is inside it, the engine is higher by its row sums, dq accumulator and expanded gradients."""
    run = run_of("llama", "lora-fa", layers=6, changes=LAYER, optimizer="adamw", bs=2, seq=16, checkpointing="full")
    planned = plan(run)
    assert planned.peak(2, 16).place.module.endswith("self_attn")
    # row sums (b, h, 128) and dq (b, 128, h, 32) in fp32; dk and dv for each of 6 query heads of width 16 in bf16
    assert hidden_bytes(planned, run) == 2 * 6 * 128 * 4 + 2 * 128 * 6 * 32 * 4 + 2 * (2 * 16 * 6 * 16 * 2)
    check(run)
