"""Four traced layers stand for any number, and an array of configurations is each of them alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorafa_prof.analytic.plan import StepPlan, plan
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.analytic.repeated import check_repeated_layers
from tests.analytic.runs import run_of

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "full", {}),
    ("llama", "lora", {"amp": True}),
    ("llama", "lora-fa", {"checkpointing": "full"}),
    ("llama", "lora", {"checkpointing": "full", "amp": True, "dtype": "fp32"}),
    ("llama", "full", {"checkpointing": "full", "amp": True, "dtype": "fp32"}),
    ("llama", "lora", {"checkpointing": "selective"}),
    ("gpt2", "full", {"checkpointing": "selective", "attn": "eager", "amp": True}),
    ("llama-bias", "qlora", {"attn": "eager"}),
    ("mistral-window", "lora", {}),
    ("qwen3", "vera", {"dropout": 0.1}),
    ("gemma2", "lora-fb", {}),
    ("gemma3_text", "lora-fa", {}),
    ("phi3", "lora-qv", {"adapter_dtype": "bf16"}),
    ("granite", "qlora-fa", {"amp": True}),
    ("gpt2", "full", {"config_dropout": True}),
    ("gpt_bigcode", "lora", {}),
]


@pytest.mark.parametrize("layers", [5, 6, 33])
@pytest.mark.parametrize(("family", "method", "options"), CASES)
def test_the_repeated_layer_stands_for_all(
    family: str, method: str, options: dict[str, Any], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak, phases, what is saved, FLOPs and parameters are those of a plan in which every layer was traced."""
    run = run_of(family, method, layers=layers, **options)
    check_repeated_layers(run, monkeypatch)


def catalog_plan(model: str, method: str, **options: Any) -> StepPlan:
    """The plan of a catalog model for batches of more than one."""
    return plan(RunSpec(model=load_model(model), method=MethodSpec(name=method), bs=2, **options))


@pytest.mark.parametrize("method", ["full", "lora", "lora-fa", "qlora", "vera"])
@pytest.mark.parametrize(("model", "options"), [("llama2-7b", {}), ("qwen2.5-0.5b", {"checkpointing": "full"})])
def test_an_array_is_each_configuration_alone(model: str, method: str, options: dict[str, Any]) -> None:
    """To the byte, with sizes that are no multiples of anything."""
    planned = catalog_plan(model, method, **options)
    random = np.random.default_rng(7)
    bs, seq = random.integers(2, 70, 300), random.integers(1, 4096, 300)
    alone = [planned.peak(int(b), int(s)).allocated for b, s in zip(bs, seq, strict=True)]
    assert planned.peak_allocated(bs, seq).tolist() == alone


def test_arrays_are_broadcast_and_checked() -> None:
    """A row of batches against a column of lengths is a grid; what is below 1 or beyond all memory is refused."""
    planned = catalog_plan("llama2-7b", "lora-fa")
    grid = planned.peak_allocated(np.arange(2, 6)[None, :], np.array([[512], [1024]]))
    assert grid.shape == (2, 4)
    assert grid[1, 2] == planned.peak(4, 1024).allocated
    assert planned.peak_allocated([], []).shape == (0,)
    for bs, seq in ((0, 8), (2, 0), (-1, 8)):
        with pytest.raises(BadInputError, match="at least 1"):
            planned.peak_allocated([bs], [seq])
    with pytest.raises(BadInputError, match="too large"):
        planned.peak_allocated([2**40], [2**30])
