"""Options that do not go together are refused by every engine in the same words; and what a real step would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.export import steps_of
from lorafa_prof.contradictions import refuse_contradictions
from lorafa_prof.errors import ContradictionError
from lorafa_prof.simulate.engine import predict as simulate
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload
from tests.analytic.runs import run_of

ENGINES: dict[str, Callable[[RunSpec], Any]] = {
    "analytic": predict, "simulate": simulate, "measure": lambda run: Workload.build(run, "cpu"),
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "fp16 over bf16": ("lora", {"adapter_dtype": "fp16"}, "base weights or in fp32: not fp16 over bf16"),
    "bf16 over fp32": ("vera", {"adapter_dtype": "bf16", "dtype": "fp32"}, "in fp32: not bf16 over fp32"),
    "fp16 over nf4": ("qlora", {"adapter_dtype": "fp16", "dtype": "fp16"}, "over nf4 weights in bf16, .*not fp16"),
    "bf16 over int8": ("lora", {"adapter_dtype": "bf16", "quant": "int8"}, "over int8 weights in fp32: not bf16"),
    "TRL without autocast": ("qlora", {"prepare_kbit": "trl"}, "SFTTrainer leaves with bf16=True.*add --amp"),
    "full over nf4": ("full", {"quant": "nf4"}, "full fine-tuning cannot train nf4 weights"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, engine: str) -> None:
    """Before anything is built."""
    method, options, said = REFUSED[name]
    with pytest.raises(ContradictionError, match=said):
        ENGINES[engine](run_of("llama", method, **options))


@pytest.fixture
def _unrefused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the real step show what it does."""
    monkeypatch.setattr("lorafa_prof.workload.step.refuse_contradictions", lambda run: None)


@pytest.mark.usefixtures("_unrefused")
@pytest.mark.parametrize(
    ("quant", "dtype", "asked", "made"),
    [
        ("none", "bf16", "fp16", torch.bfloat16),
        ("none", "fp32", "bf16", torch.float32),
        ("none", "fp16", "fp16", torch.float16),
        ("nf4", "fp16", "fp16", torch.bfloat16),
        ("nf4", "fp32", "bf16", torch.bfloat16),
        ("int8", "bf16", "bf16", torch.float32),
    ],
)
def test_what_peft_makes(quant: Any, dtype: Any, asked: Any, made: torch.dtype) -> None:
    """The dtype of adapters over real weights on the CPU; what is made as asked is not refused, all else is."""
    run = run_of("llama", "lora", quant=quant, dtype=dtype, adapter_dtype=asked)
    model = Workload.build(run, "cpu").model
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {made}
    if made is {"bf16": torch.bfloat16, "fp16": torch.float16}[asked]:
        refuse_contradictions(run)
    else:
        with pytest.raises(ContradictionError):
            refuse_contradictions(run)


@pytest.mark.usefixtures("_unrefused")
def test_trl_s_weights_without_autocast() -> None:
    """A head in bf16 and norms in fp32: the product of the two is refused by PyTorch."""
    run = run_of("llama", "qlora", prepare_kbit="trl")
    with pytest.raises(RuntimeError, match="same dtype"):
        Workload.build(run, "cpu").loss()
    assert Workload.build(run.replace(amp=True), "cpu").loss().isfinite()


def test_the_planner_says_the_same() -> None:
    """Of the run that was asked for, not of the one whose sizes stand for it."""
    options = {"dtype": ("fp32",), "adapter_dtype": ("auto", "fp16"), "amp": (False,), "attn": ("eager",)}
    assert not isinstance(steps_of((run_of("llama", "lora").spec, "lora", options))[0], str)
    assert str(steps_of((run_of("llama", "lora").spec, "lora", options))[1]).endswith("not fp16 over fp32")
