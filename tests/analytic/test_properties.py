"""What must hold for every run: more of anything never costs less, parts add up, results survive JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.plan import plan
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.ledger import Category, MemoryItem
from lorafa_prof.results import PART_FIELDS, Prediction, predictions_to_json
from lorafa_prof.specs import MethodSpec, RunSpec

MODELS = ("llama2-7b", "llama3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b", "gemma2-2b", "gemma3-1b", "phi-4", "gpt2")
ADAPTERS = ("lora", "lora-fa", "lora-fb", "lora-qv", "qlora", "qlora-fa", "vera")

options = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "bs": st.integers(1, 9),
        "seq": st.integers(1, 1024),
        "rank": st.integers(1, 200),
        "dropout": st.sampled_from([0.0, 0.1]),
        "amp": st.booleans(),
        "adapter_dtype": st.sampled_from(["auto", "bf16"]),
        "attn": st.sampled_from(["sdpa", "eager"]),
        "checkpointing": st.sampled_from(["none", "full"]),
    }
)


def run_of(method: str, *, model: str, rank: int, dropout: float, **rest: Any) -> RunSpec:
    """A run of a catalog model."""
    return RunSpec(model=load_model(model), method=MethodSpec(name=method, rank=rank, dropout=dropout), **rest)


#: What each part of the peak in the JSON contract is made of.
PARTS = {
    "weights_bytes": [Category.WEIGHTS], "adapter_bytes": [Category.ADAPTERS], "gradients_bytes": [Category.GRADIENTS],
    "optimizer_bytes": [Category.OPTIMIZER], "activations_bytes": [Category.ACTIVATIONS],
    "logits_bytes": [Category.LOGITS], "temporaries_bytes": [Category.TEMPORARIES],
    "workspace_bytes": [Category.WORKSPACES],
}  # fmt: skip
WIDTHS = {"bool": 1, "uint8": 1, "bf16": 2, "fp32": 4, "int64": 8}


def bytes_of(item: MemoryItem, bs: int, seq: int) -> int:
    """Bytes of one tensor, by its shape and dtype alone, in blocks of 512."""
    sizes = [{"b": bs, "s": seq}.get(dim) or int(dim) for dim in item.shape.strip("()").split(", ") if dim.strip(",")]
    return -(-math.prod(sizes) * WIDTHS[item.dtype] // 512) * 512


def peak(run: RunSpec) -> int:
    """Peak allocated bytes of a run."""
    return plan(run).peak(run.bs, run.seq).allocated


@given(options=options, method=st.sampled_from(("full", *ADAPTERS)), more=st.integers(1, 300))
@settings(max_examples=40)
def test_more_of_anything_never_costs_less(options: dict[str, Any], method: str, more: int) -> None:
    """A larger batch, a longer sequence or a higher rank each need at least as much memory."""
    run = run_of(method, **options)
    base = peak(run)
    assert peak(run.replace(bs=run.bs + more)) >= base
    assert peak(run.replace(seq=min(run.seq + more, 1024))) >= base
    assert peak(run_of(method, **{**options, "rank": options["rank"] + more})) >= base


@given(options=options, pair=st.sampled_from([("lora", "lora-fa"), ("qlora", "qlora-fa")]))
@settings(max_examples=40)
def test_lora_fa_is_never_above_lora(options: dict[str, Any], pair: tuple[str, str]) -> None:
    """Not in what it saves, not in what it trains, and not at the peak with the same optimizer."""
    lora, frozen = (plan(run_of(method, optimizer="adamw", **options)) for method in pair)
    bs, seq = options["bs"], options["seq"]
    assert frozen.saved_activation_bytes(bs, seq) <= lora.saved_activation_bytes(bs, seq)
    assert frozen.parameters.trainable < lora.parameters.trainable
    assert frozen.parameters.total == lora.parameters.total
    assert frozen.peak(bs, seq).allocated <= lora.peak(bs, seq).allocated


@given(options=options, method=st.sampled_from(("full", *ADAPTERS)))
@settings(max_examples=30)
def test_the_parts_add_up_to_the_peak(options: dict[str, Any], method: str) -> None:
    """Of the ledger, tensor by tensor from its shape and dtype, and of the JSON; the peak is the largest phase."""
    found: Any = predict(run_of(method, **options))
    total = found.memory.peak_allocated_bytes
    by_category = Counter[Category]()
    for item in found.ledger.items:
        if item.category is not Category.WORKSPACES:
            assert item.nbytes == item.count * bytes_of(item, options["bs"], options["seq"])
        by_category[item.category] += item.nbytes
    assert by_category.total() == total
    assert {name: getattr(found.memory, name) for name in PART_FIELDS} == {
        name: sum(by_category[category] for category in parts) for name, parts in PARTS.items()
    }
    assert max(found.memory.moments.values()) == total


@given(options=options, method=st.sampled_from(("full", *ADAPTERS)), cards=st.sampled_from([(), ("t4", "h100")]))
@settings(max_examples=20)
def test_predictions_survive_json(options: dict[str, Any], method: str, cards: tuple[str, ...]) -> None:
    """Everything: the run, its model, the ledger, the verdicts."""
    found = predict(run_of(method, **options), [load_device(card) for card in cards])
    data = json.loads(predictions_to_json([found]))["predictions"][0]
    assert Prediction.from_json(data) == found
    assert Prediction.from_json(data).run.model.config == found.run.model.config


@pytest.mark.parametrize(
    ("options", "saving"),
    [
        ({"adapter_dtype": "bf16"}, 2 * (2 * 4096 + 11008)),
        ({"adapter_dtype": "bf16", "attn": "eager"}, 2 * (3 * 4096 + 11008)),
        ({"amp": True}, 2 * (6 * 4096 + 11008)),
        ({}, 4 * (6 * 4096 + 11008)),
    ],
    ids=["shared inputs", "shared inputs, eager", "autocast copies", "fp32 copies"],
)
def test_what_lora_fa_saves_on_llama2_7b(options: dict[str, Any], saving: int) -> None:
    """The four ways to count the paper's "at least 18 GB" at 8 x 1024 tokens: 10.07, 12.21, 18.66 and 37.31 GB.

    Bytes a token and layer are the widths of the inputs that only A's gradient needs: q, k and v share one, gate and
    up share one, and fused attention keeps o's input anyway; with fp32 adapters or autocast each has a copy of its own.
    Under autocast LoRA keeps three weight casts more than PEFT's LoRA-FA, 2 r k bytes each: those of layer 0's q, k and
    v B, whose input needs a gradient only where A is trained. Ours keeps no cast at all: not A's and B's of the 7
    modules of 32 layers, of which LoRA has none of layer 0's q, k and v A, whose input needs no gradient. And of fp32
    adapters it keeps A x in bf16.
    """
    tokens, rank = 8 * 1024, 64
    lora, of_peft, ours = (
        plan(run_of(method, model="llama2-7b", rank=rank, dropout=0.0, bs=8, seq=1024, **options))
        .saved_activation_bytes(8, 1024)
        for method in ("lora", "lora-fa-peft", "lora-fa")
    )  # fmt: skip
    of_first = 3 * 2 * rank * 4096
    widths = (6 * 4096 + 11008) + (5 * 4096 + 2 * 11008)  # of all inputs and all results of a layer
    autocast, narrower = options.get("amp", False), 0 if options else 2 * 7 * rank
    assert lora - of_peft == 32 * tokens * saving + (of_first if autocast else 0)
    assert lora - ours == 32 * tokens * (saving + narrower) + (32 * 2 * rank * widths - of_first if autocast else 0)
