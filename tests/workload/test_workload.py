"""A run made real: what is trained, quantised and cast, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.workload import Workload, training_step
from lorafa_prof.workload.quantized import quantization_state
from lorafa_prof.workload.step import PHASES
from lorafa_prof.workload.versions import release
from tests.analytic.runs import run_of


def dtypes(work: Workload) -> dict[str, torch.dtype]:
    return {name.rpartition("base_model.model.")[2]: p.dtype for name, p in work.model.named_parameters()}


def trained(work: Workload) -> set[str]:
    return {
        name.rpartition(".default")[0].rpartition(".")[2]
        for name, p in work.model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize(
    ("method", "expected"),
    [("lora", {"lora_A", "lora_B"}), ("lora-fa", {"lora_B"}), ("lora-fb", {"lora_A"}), ("qlora-fa", {"lora_B"})],
)
def test_what_is_trained(method: str, expected: set[str]) -> None:
    """The frozen matrix of LoRA-FA and LoRA-FB is frozen, whichever optimizer is asked for."""
    work = Workload.build(run_of("llama", method, optimizer="adamw"), "meta")
    assert trained(work) == expected


def test_a_real_step_on_the_cpu() -> None:
    """Phases are told in order; the adapters move, the base does not."""
    work = Workload.build(run_of("llama", "lora-fa"), "cpu")
    before = {name: p.detach().clone() for name, p in work.model.named_parameters()}
    phases: list[str] = []
    training_step(work, phases.append)
    assert phases == [*PHASES, "end"]
    moved = {name for name, p in work.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_B" in name}


@pytest.mark.parametrize(
    ("preparation", "norm", "head"),
    [
        ("none", torch.bfloat16, torch.bfloat16),
        ("peft", torch.float32, torch.float32),
        ("trl", torch.float32, torch.bfloat16),
    ],
)
def test_the_rest_of_a_quantised_model(preparation: Any, norm: torch.dtype, head: torch.dtype) -> None:
    """PEFT casts norms, embeddings and head to fp32; TRL casts the last two back."""
    work = Workload.build(run_of("llama", "qlora", prepare_kbit=preparation, amp=preparation == "trl"), "meta")
    found = dtypes(work)
    assert found["model.norm.weight"] == norm
    assert found["lm_head.weight"] == found["model.embed_tokens.weight"] == head


def test_int8_weights() -> None:
    """One byte a weight and an fp32 scale a row, kept beside it."""
    if release("peft") < (0, 14):
        pytest.skip("PEFT before 0.14 adapts int8 weights of earlier bitsandbytes only")
    work = Workload.build(run_of("llama", "lora", quant="int8"), "meta")
    layers = [m for m in work.model.modules() if type(m).__module__.startswith("bitsandbytes")]
    assert len(layers) == 7 * 2
    for layer in layers:
        weight: Any = layer.weight
        kept = dict(quantization_state("x", layer))
        assert weight.dtype == torch.int8
        assert (kept["x.weight.SCB"].dtype, kept["x.weight.SCB"].shape) == (torch.float32, weight.shape[:1])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "lora-ga", "quant": "nf4"}, UnsupportedError, "nf4 weights have none"),
        ({"method": "lora", "loss": "fused", "targets": ("lm_head",)}, UnsupportedError, "adapted head"),
        ({"method": "lora", "optimizer": "lorafa"}, BadInputError, "freezes A"),
        ({"method": "lora", "adapter_dtype": "fp16"}, BadInputError, "fp16"),
        ({"method": "full", "quant": "nf4"}, BadInputError, "nf4"),
        ({"method": "lora", "targets": ("nowhere",)}, BadInputError, "nowhere"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], said: str) -> None:
    """What is not built is refused by name."""
    with pytest.raises(error, match=said):
        Workload.build(run_of("llama", **options), "meta")
