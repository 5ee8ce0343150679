"""Floating-point operations against PyTorch's own counter, and the paper's model by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.plan import plan
from lorafa_prof.catalog import load_model
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.analytic.runs import EXPERTS, attentions, methods_of, run_of
from tests.support import observe

FAMILIES = (
    "llama",
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "granite",
    "gpt2",
    "gpt_bigcode",
    "bert",
    "roberta",
    *EXPERTS,
)
METHODS = ("full", "lora", "lora-fa", "lora-fa-peft", "lora-fb", "lora-qv", "vera")
LINEAR = ("mm", "addmm")


def split(counted: dict[str, int]) -> tuple[int, int]:
    """Return the counter's FLOPs of linear layers and of attention (matrix products over heads, fused kernels)."""
    linear = sum(number for name, number in counted.items() if name.split(".")[0] in LINEAR)
    return linear, sum(counted.values()) - linear


def ours(flops: dict[tuple[str, str], int], where: str) -> tuple[int, int]:
    """Return the engine's FLOPs of linear layers and of attention in one pass, as they are executed."""
    linear = flops.get((where, "linear"), 0)
    return linear, sum(number for (place, _), number in flops.items() if place == where) - linear


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_of_the_counter(family: str, method: str, attn: str) -> None:
    """Forward and backward, linear layers and attention, to the last operation.

    The counter takes flash attention's backward as five products where the forward has two; so does the engine, which
    says apart how much of that is the scores made again.
    """
    if attn not in attentions(family):
        pytest.skip("transformers refuses sdpa for capped scores, CUDA's fused kernels heads that are not aligned")
    if method == "lora-fa" and method not in methods_of(family):
        pytest.skip("our LoRA-FA does not adapt fused experts")
    run = run_of(family, method, attn=attn)
    counted = observe.flops(run)
    flops = plan(run).flops(run.bs, run.seq)
    if (
        family in EXPERTS
    ):  # the backward of adapters on experts is made of products that the counter takes for attention
        assert [sum(ours(flops, where)) for where in ("forward", "backward")] == [
            counted.total_forward,
            counted.total_backward,
        ]
        return
    assert ours(flops, "forward") == split(counted.forward)
    assert ours(flops, "backward") == split(counted.backward)


@pytest.mark.parametrize("family", ["llama", "llama-bias", "gpt2", "phi3", "roberta"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dora_multiplies_identity_matrices(family: str, dropout: float) -> None:
    """Both adapters run on one in every forward; with dropout the base's product comes twice."""
    run = run_of(family, "dora", dropout=dropout)
    counted, flops = observe.flops(run), plan(run).flops(run.bs, run.seq)
    assert ours(flops, "forward") == split(counted.forward)
    assert ours(flops, "backward") == split(counted.backward)


@pytest.mark.parametrize("method", ["full", "lora", "lora-fa"])
def test_checkpointing_runs_the_forward_of_the_layers_again(method: str) -> None:
    """All that the counter sees in the backward is the backward and the recomputation."""
    run = run_of("llama", method, checkpointing="full")
    counted = observe.flops(run)
    flops = plan(run).flops(run.bs, run.seq)
    again, backward = ours(flops, "recompute"), ours(flops, "backward")
    assert ours(flops, "forward") == split(counted.forward)
    assert tuple(map(sum, zip(again, backward, strict=True))) == split(counted.backward)


@pytest.mark.parametrize(
    ("family", "method", "attn"),
    [("llama", "full", "sdpa"), ("llama", "lora", "eager"), ("gpt2", "lora-fa", "eager"), ("mixtral", "lora", "sdpa")],
)
def test_selective_checkpointing_runs_no_product_again(family: str, method: str, attn: str) -> None:
    """The counter sees as much in the backward as without a recomputation."""
    run = run_of(family, method, checkpointing="selective", attn=attn)
    counted, flops = observe.flops(run), plan(run).flops(run.bs, run.seq)
    assert ours(flops, "recompute") == (0, 0)
    assert [sum(ours(flops, where)) for where in ("forward", "backward")] == [
        counted.total_forward,
        counted.total_backward,
    ]


def llama_flops(method: str, **options: Any) -> tuple[Fraction, Fraction]:
    """Model and executed FLOP a token of Llama2-7B at 8 x 1024 tokens and rank 64, by the method."""
    run = RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name=method), bs=8, seq=1024, **options)
    found: Any = predict(run).throughput
    return Fraction(found.model_flops, 8 * 1024), Fraction(found.executed_flops, 8 * 1024)


#: Llama2-7B: frozen products a token and pass, M = 32 (4 d^2 + 3 d f) + v d; attention 32 * 4 s d; sums of widths.
D, F, V, S, LAYERS, RANK = 4096, 11008, 32000, 1024, 32, 64
M = LAYERS * (4 * D * D + 3 * D * F) + V * D
ATTENTION = LAYERS * 4 * S * D
WIDTH_IN, WIDTH_OUT = LAYERS * (6 * D + F), LAYERS * (5 * D + 2 * F)
#: Nothing before layer 0 is trained, so its q, k and v compute no input gradient: neither the frozen products nor, in
#: the adapter, the one through A.
NO_FIRST_INPUT = 3 * 2 * D * D


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("full", 6 * M + 3 * ATTENTION),
        ("lora", 4 * M + 6 * RANK * (WIDTH_IN + WIDTH_OUT) + 3 * ATTENTION - NO_FIRST_INPUT - 3 * 2 * RANK * D),
        # A is frozen: no gradient of A anywhere, and in layer 0 none through A or B either
        (
            "lora-fa",
            4 * M + 4 * RANK * WIDTH_IN + 6 * RANK * WIDTH_OUT + 3 * ATTENTION - NO_FIRST_INPUT - 3 * 4 * RANK * D,
        ),
    ],
)
def test_llama2_7b_a_token(method: str, expected: int) -> None:
    """6 M for full fine-tuning; 4 M and the adapters' own products where the base is frozen."""
    model, executed = llama_flops(method)
    assert model == expected
    # flash attention makes the scores again in its backward: one of the forward's two products
    assert executed - model == ATTENTION // 2


def test_the_figures_in_gflop_a_token() -> None:
    """41.25 for full fine-tuning; adapters take away the weights' gradients, about a third."""
    methods = ("full", "lora", "lora-fa", "vera")
    assert [round(float(llama_flops(m)[0]) / 1e9, 2) for m in methods] == [41.25, 28.9, 28.75, 28.58]


def test_unfused_attention_repeats_nothing() -> None:
    """It keeps the scores."""
    model, executed = llama_flops("lora", attn="eager")
    assert model == executed == llama_flops("lora")[0]


def test_checkpointing_repeats_the_layers_forward() -> None:
    """All of it but what follows the last tensor that a layer keeps, which is what its last B multiplies.

    PEFT makes the embedding's output a trained leaf then, so that layer 0 computes input gradients as all others do.
    """
    model, executed = llama_flops("lora", checkpointing="full")
    assert model == 4 * M + 6 * RANK * (WIDTH_IN + WIDTH_OUT) + 3 * ATTENTION
    forward = 2 * (M - V * D) + 2 * RANK * (WIDTH_IN + WIDTH_OUT) + ATTENTION
    last_product = LAYERS * 2 * RANK * D
    assert executed - model == ATTENTION // 2 + forward - last_product
