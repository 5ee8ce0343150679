"""Mixtures of experts and latent attention: every phase of the step to the byte, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.plan import OPTIMIZER_STEP, StepPlan, plan
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError, ContradictionError, LorafaProfError, UnsupportedError
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.analytic.runs import EXPERTS, METHODS, attentions, methods_of, run_of
from tests.analytic.test_peaks import HIDDEN
from tests.support import observe

DTYPES: tuple[dict[str, Any], ...] = (
    {"dtype": "bf16"},
    {"dtype": "bf16", "adapter_dtype": "bf16"},
    {"dtype": "bf16", "amp": True},
    {"dtype": "fp32"},
    {"dtype": "fp32", "amp": True},
    {"dtype": "fp16"},
)


def phases(planned: StepPlan, run: RunSpec) -> dict[str, int]:
    """The highest allocated bytes of each phase, without what kernels hold inside themselves."""
    values = symbol_values(run.bs, run.seq)
    timeline, live = planned.timeline, planned.static_bytes
    highest: dict[str, int] = {}
    for number, change, at in timeline.events:
        kind = timeline.kinds[number]
        if not kind.name.startswith(HIDDEN):
            live += rounded(kind.size[0] * product_of(kind.size[1], values)) * change
        phase = {"loss": "forward", "recompute": "backward"}.get(timeline.places[at].phase, timeline.places[at].phase)
        highest[phase] = max(live, highest.get(phase, 0))
    stepping = live + sum(rounded(kind.size[0]) * count for kind, count in planned.step_temporaries)
    highest["optimizer"] = max(highest.pop(OPTIMIZER_STEP, 0), stepping)
    return highest


def observed_phases(run: RunSpec) -> dict[str, int]:
    """The same of the real step. An event holds what is alive after it, and an optimizer's first may be a death."""
    seen = observe.step_timeline(run)
    highest = {"optimizer": seen.after_backward}
    for event in seen.events:
        highest[event.phase] = max(event.live, highest.get(event.phase, 0))
    return highest


def check(run: RunSpec) -> None:
    """All phases are as high as those of the real step."""
    assert phases(plan(run), run) == observed_phases(run)


def product() -> list[Any]:
    """Family x method x dtypes x attention x checkpointing; one in seventeen by default."""
    made: list[Any] = []
    for family, at, dtypes, checkpointing in itertools.product(EXPERTS, range(len(METHODS)), DTYPES, ("none", "full")):
        method = methods_of(family)[at]
        if method == "full" and "adapter_dtype" in dtypes:
            continue
        for attn in attentions(family):
            options = {"attn": attn, "checkpointing": checkpointing, **dtypes}
            # a prime, so that the quick ones go round through all values of every option
            marks = () if len(made) % 17 == 0 else pytest.mark.slow
            name = f"{family}-{method}-{'-'.join(str(value) for value in options.values())}"
            made.append(pytest.param(family, method, options, id=name, marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), product())
def test_every_phase(family: str, method: str, options: dict[str, Any]) -> None:
    """Six layers, of which four are traced."""
    check(run_of(family, method, layers=6, optimizer="adamw", **options))


VARIATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("mixtral", "lora-qv", {"dropout": 0.1}),
    ("mixtral", "lora", {"targets": ("w1", "w3", "k_proj")}),
    ("mixtral", "lora-fa-peft", {"targets": ("gate",)}),
    ("mixtral", "lora", {"targets": ("q_proj", "o_proj"), "dropout": 0.1}),
    ("mixtral", "lora", {"changes": {"num_experts_per_tok": 1}}),
    ("mixtral", "full", {"changes": {"attention_dropout": 0.1}, "attn": "eager"}),
    ("mixtral", "lora", {"changes": {"sliding_window": 9}}),
    ("mixtral", "full", {"changes": {"num_local_experts": 1, "num_experts_per_tok": 1}}),
    ("mixtral", "lora", {"bs": 1}),
    ("mixtral", "qlora", {}),
    ("deepseek_v2-groups", "qlora-fa", {"targets": ("o_proj", "kv_b_proj")}),
    ("deepseek_v2-groups", "vera", {"dropout": 0.1}),
    ("deepseek_v2-groups", "lora-fa-peft", {"targets": ("down_proj",)}),
    ("deepseek_v2-groups", "full", {"changes": {"num_attention_heads": 1, "num_key_value_heads": 1}}),
    ("deepseek_v2-groups", "lora", {"changes": {"num_experts_per_tok": 1, "attention_dropout": 0.1}, "bs": 1}),
    ("deepseek_v2-flash", "full", {"changes": {"tie_word_embeddings": True}, "bs": 1}),
]


def variations() -> list[Any]:
    """Each with and without checkpointing; by default each with one of the two in turn."""
    return [
        pytest.param(
            *variation, checkpointing, id=f"{number}-{'-'.join(variation[:2])}-{checkpointing}",
            marks=() if (number + turn) % 2 == 0 else pytest.mark.slow,
        )
        for number, variation in enumerate(VARIATIONS)
        for turn, checkpointing in enumerate(("none", "full"))
    ]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "options", "checkpointing"), variations())
def test_variations(family: str, method: str, options: dict[str, Any], checkpointing: str) -> None:
    """Dropout, named targets, one expert a token, one head, quantised linear layers, one sequence."""
    if method.startswith("q"):
        pytest.importorskip("bitsandbytes")
    check(run_of(family, method, layers=6, checkpointing=checkpointing, **{"optimizer": "adamw", **options}))


@pytest.mark.parametrize(
    ("family", "options", "error", "message"),
    [
        ("mixtral", {"changes": {"output_router_logits": True}}, UnsupportedError, "its router's auxiliary loss"),
        ("mixtral", {"changes": {"router_jitter_noise": 0.1}}, UnsupportedError, "noise on its router's input"),
        ("mixtral", {"changes": {"intermediate_size": 116}}, UnsupportedError, "not a multiple of 16 bytes"),
        ("mixtral", {"changes": {"num_local_experts": 1, "num_experts_per_tok": 1}}, UnsupportedError, "single expert"),
        ("mixtral", {"dropout": 0.1}, ContradictionError, "PEFT has no dropout on the adapters of fused experts"),
        ("mixtral", {"targets": ("w1",)}, BadInputError, "PEFT adapts w1 and w3 only together"),
        ("mixtral", {"method": "lora-fa"}, UnsupportedError, "built for linear layers, and lora-fa-peft"),
        ("deepseek_v2", {"attn": "sdpa"}, UnsupportedError, "sdpa where heads are not a multiple of 16 bytes wide"),
        ("deepseek_v2-flash", {"attn": "flash"}, UnsupportedError, "with flash attention"),
    ],
)
def test_what_is_refused(family: str, options: dict[str, Any], error: type[LorafaProfError], message: str) -> None:
    """Each by its reason."""
    with pytest.raises(error, match=message):
        plan(run_of(family, **{"method": "lora", **options}))


def test_real_models_of_the_catalog() -> None:
    """Mixtral 8x7B's weights alone are 87 GiB in bf16; its LoRA needs them and a little more."""
    for name, total in (("mixtral-8x7b", 46_702_792_704), ("deepseek-v2-lite", 15_706_484_224)):
        found = predict(RunSpec(model=load_model(name), method=MethodSpec(name="lora"), bs=1, seq=512))
        adapters = found.parameters["trainable"]
        assert found.parameters["total"] == total + adapters
        assert found.memory.peak_allocated_bytes > 2 * total + (4 + 8) * adapters
