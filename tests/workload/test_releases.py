"""What the workload does whatever releases of transformers and PEFT are installed; `make test-matrix` has several."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import Category
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.models import base_model
from lorafa_prof.workload.step import build_model
from lorafa_prof.workload.versions import release
from tests.support.configs import tiny_run

#: What the heads of early releases are as wide as, whatever a configuration of Qwen2 or Granite says.
NARROW = {"head_dim": 8}
FLASH = "aten._scaled_dot_product_flash_attention.default"


def recorded(run: RunSpec) -> Recording:
    return record(run, Cuda(DeviceTraits((8, 0), 108), "2.13.0"))


def with_model_type(run: RunSpec, model_type: str) -> RunSpec:
    config = {**run.model.config, "model_type": model_type}
    return run.replace(model=dataclasses.replace(run.model, config=config))


@pytest.mark.parametrize(("checkpointing", "amp"), [("none", False), ("full", True)])
@pytest.mark.parametrize("method", ["full", "lora", "lora-fa"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "granite", "gpt2", "gpt_bigcode", "t5"])
def test_a_step_leaves_weights_and_states(family: str, method: str, checkpointing: str, amp: bool) -> None:
    """After a step weights, adapters, AdamW's two states a trained parameter and the batch are left, nothing else."""
    changes = NARROW if family in ("qwen2", "granite") else {}
    options: dict[str, Any] = {"checkpointing": checkpointing, "amp": amp, "optimizer": "adamw"}
    recording = recorded(tiny_run(family, method, changes=changes, **options))
    trace = recording.trace(2, Cuda(DeviceTraits((8, 0), 108), "2.13.0"))
    left = [trace.blocks[number] for number in trace.alive_at(len(trace.events) - 1)]
    itemsize = 2 if method == "full" else 4  # PEFT keeps adapters over bf16 in fp32
    states = sum(block.nbytes for block in left if block.category is Category.OPTIMIZER)
    assert states == 2 * itemsize * recording.parameters["trainable"]
    others = {Category.WEIGHTS, Category.ADAPTERS, Category.OPTIMIZER, Category.WORKSPACES}
    assert {block.module for block in left if block.category not in others} == {"batch"}


def test_casts_of_a_forward_without_gradient_are_kept() -> None:
    """Autocast keeps its cast of a trained weight until it exits, also in the forward that checkpointing repeats."""
    run = tiny_run("llama", "lora", checkpointing="full", amp=True, optimizer="adamw", targets=("q_proj",))
    trace = recorded(run).trace(1, Cuda(DeviceTraits((8, 0), 108), "2.13.0"))
    forward, backward = trace.position("forward", 0), trace.position("backward", 0)
    born = {event for event in trace.events[forward:backward] if event >= 0}
    casts = [n for n in born if trace.blocks[n].op == "_to_copy" and "lora_" in trace.blocks[n].module]
    weights = [n for n in casts if trace.blocks[n].shape in ((4, 48), (96, 4))]
    assert len(weights) == 4  # A and B of two layers, each cast once
    loss = next(i for i in range(forward, backward) if _named(trace, i, "nll_loss"))
    assert set(weights) <= set(trace.alive_at(loss))


def _named(trace: Any, position: int, op: str) -> bool:
    event = trace.events[position]
    return event >= 0 and op in trace.blocks[event].op


class TestAttention:
    """Which attention is built."""

    @pytest.mark.parametrize("window", [24, 9])
    @pytest.mark.parametrize("attn", ["flash", "sdpa"])
    def test_only_sdpa_has_a_mask_of_a_window(self, attn: Any, window: int) -> None:
        """For sdpa transformers makes a mask, even at equal length, where nothing is left out; for flash none."""
        recording = recorded(tiny_run("mistral", "lora", attn=attn, seq=24, changes={"sliding_window": window}))
        masks = [block for block in recording.blocks if block.shape[-2:] in ((24, 24), (24, 25))]
        assert (FLASH in recording.operators, bool(masks)) == ((True, False) if attn == "flash" else (False, True))

    @pytest.mark.parametrize("family", ["gemma2", "t5", "llama"])
    def test_sdpa_where_it_is_offered(self, family: str) -> None:
        """Asked for sdpa, a model that has none runs transformers' eager code."""
        model: Any = base_model(tiny_run(family), "meta")
        assert model.config._attn_implementation == ("sdpa" if type(model)._supports_sdpa else "eager")

    def test_flash_is_not_replaced_by_eager(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Asked for flash, a model that has only eager attention is refused."""
        run = tiny_run("llama", attn="flash")
        monkeypatch.setattr(type(base_model(run, "meta")), "_supports_sdpa", False)
        with pytest.raises(UnsupportedError, match="--attn eager"):
            base_model(run, "meta")


def test_an_unknown_architecture_is_named() -> None:
    """An architecture that the installed transformers does not have is refused with both names."""
    with pytest.raises(UnsupportedError, match=r"transformers \d.* no model of the type nosuch"):
        base_model(with_model_type(tiny_run("llama"), "nosuch"), "meta")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_t5_keeps_wo_wide(dtype: Any) -> None:
    """T5's `wo` is not quantised; beside layers that are it is loaded in fp32, from transformers 5 on only in fp16."""
    model = build_model(tiny_run("t5", "qlora", targets=("q", "v"), dtype=dtype), "meta")
    kept = {module.weight.dtype for path, module in model.named_modules() if path.endswith(".wo")}
    wide = dtype == "fp16" or release("transformers") < (5,)
    assert kept == {torch.float32 if wide else torch.bfloat16}
