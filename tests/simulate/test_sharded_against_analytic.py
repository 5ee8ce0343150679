"""Closed forms of a sharded step, and the step as torch's own DDP and FSDP2 run it on meta tensors, say the same bytes.

The closed forms follow torch's hooks by hand; the simulation runs them. Every storage is rounded up to 512 bytes.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.ledger import Category
from lorafa_prof.sharding import sent_bytes
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import allocated
from tests.analytic.runs import run_of
from tests.simulate.test_against_analytic import A100

Parts = dict[str, int]

#: Buffers of communication; other workspaces are inside kernels and libraries.
COMMUNICATION = ("all-gather buffer", "reduce-scatter buffer", "gathered", "DDP bucket")


def simulated(run: RunSpec) -> tuple[Parts, Recording]:
    """What is alive at the peak of the third step, by part, and the recording."""
    platform = Cuda(A100, "2.13.0")
    recording = record(run, platform)
    trace = recording.trace(3, platform)
    sizes = [
        0 if b.category is Category.WORKSPACES and not b.name.startswith(COMMUNICATION) else allocated(b.nbytes)
        for b in trace.blocks
    ]
    live = top = peak = 0
    last = trace.position("forward")
    for position, event in enumerate(trace.events):
        live += sizes[event] if event >= 0 else -sizes[~event]
        if position >= last and live > top:
            top, peak = live, position
    parts = {category.value: 0 for category in Category}
    for number in trace.alive_at(peak):
        parts[trace.blocks[number].category.value] += sizes[number]
    return parts, recording


def closed_form(run: RunSpec) -> Parts:
    """The analytic engine's parts without workspaces of kernels and libraries."""
    ledger = predict(run).ledger
    assert ledger is not None
    parts = {category.value: ledger.total(category) for category in Category}
    parts["workspaces"] = sum(
        i.nbytes for i in ledger.items if i.category is Category.WORKSPACES and i.tensor.startswith(COMMUNICATION)
    )
    return parts


FAMILIES = ("llama", "gemma2", "qwen3", "gpt2", "gpt_bigcode", "phi3", "t5")
WAYS: dict[str, dict[str, Any]] = {
    "fsdp-full": {"shard": "fsdp", "method": "full"},
    "fsdp-lora": {"shard": "fsdp", "method": "lora"},
    "fsdp-lora-checkpointed": {"shard": "fsdp", "method": "lora", "checkpointing": "full"},
    "fsdp-full-checkpointed": {"shard": "fsdp", "method": "full", "checkpointing": "full"},
    "fsdp-lora-selective": {"shard": "fsdp", "method": "lora", "checkpointing": "selective"},
    "fsdp-vera-3": {"shard": "fsdp", "method": "vera", "gpus": 3},
    "fsdp-autocast": {"shard": "fsdp", "method": "lora-fa", "amp": True, "dtype": "fp32", "gpus": 7},
    "fsdp-lora-top": {"shard": "fsdp", "method": "lora", "adapted": (4, 5)},
    "fsdp-lora-inner": {"shard": "fsdp", "method": "lora", "adapted": (1, 3), "checkpointing": "full"},
    "fsdp-lora-fa": {"shard": "fsdp", "method": "lora-fa", "optimizer": "lorafa"},
    "ddp-lora-fa": {"shard": "ddp", "method": "lora-fa", "optimizer": "lorafa", "adapter_dtype": "bf16"},
    "ddp-full": {"shard": "ddp", "method": "full"},
    "ddp-lora": {"shard": "ddp", "method": "lora"},
    "ddp-qlora": {"shard": "ddp", "method": "qlora"},
    "ddp-full-accumulated": {"shard": "ddp", "method": "full", "accumulation": 2, "clip": True},
    "ddp-lora-accumulated": {"shard": "ddp", "method": "lora", "accumulation": 5},
    "ddp-lora-fa-clipped": {"shard": "ddp", "method": "lora-fa", "optimizer": "lorafa", "clip": True},
    "grad-op-full": {"shard": "fsdp-grad-op", "method": "full"},
    "grad-op-lora-checkpointed": {"shard": "fsdp-grad-op", "method": "lora", "checkpointing": "full"},
    "frozen-lora": {"shard": "frozen", "method": "lora"},
    "frozen-lora-fa": {"shard": "frozen", "method": "lora-fa"},
    "frozen-lora-checkpointed": {"shard": "frozen", "method": "lora", "checkpointing": "full"},
    "fsdp-alone": {"shard": "fsdp", "method": "lora", "gpus": 1},
    "fsdp-more-than-rows": {"shard": "fsdp", "method": "lora", "gpus": 64},
}


#: Not left to the slow tests either.
_ALSO = {("llama", way) for way in ("grad-op-full", "frozen-lora", "fsdp-alone", "fsdp-more-than-rows", "ddp-lora-accumulated")}


def cases() -> list[Any]:
    """Every family with one way a time; the whole product is left to the slow tests."""
    made = []
    for i, family in enumerate(FAMILIES):
        for j, way in enumerate(WAYS):
            if (family, way) == ("t5", "ddp-qlora"):
                continue  # closed forms have no quantised T5
            chosen = (2 * i + j) % 11 == 0 or (family, way) in _ALSO
            marks = () if chosen else pytest.mark.slow
            made.append(pytest.param(family, way, id=f"{family}-{way}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "way"), cases())
def test_tiny_models(family: str, way: str) -> None:
    """The peak's parts, and what a GPU sends. Where layers are recomputed, the loss is made the peak: no kernel's."""
    vocabulary = 6001 if "checkpointing" in WAYS[way] else 601
    options = {"gpus": 4, "optimizer": "adamw", "changes": {"vocab_size": vocabulary}, **WAYS[way]}
    run = run_of(family, options.pop("method"), layers=6, **options)
    parts, recording = simulated(run)
    assert closed_form(run) == parts
    assert predict(run).communication_bytes == sent_bytes(recording.collectives, run.gpus)
