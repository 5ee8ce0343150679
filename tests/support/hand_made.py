"""Results with figures that are chosen by hand, so that a test can say what has to come out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorafa_prof.ledger import Category, Ledger, MemoryItem
from lorafa_prof.results import PART_FIELDS, Measurement, Memory, Prediction, Throughput
from lorafa_prof.specs import MethodSpec, ModelSpec, RunSpec

MIB = 2**20

RUN = RunSpec(
    model=ModelSpec(
        name="small", architecture="llama", task="causal-lm", hidden_size=48, num_layers=2, num_heads=6,
        num_kv_heads=2, head_dim=16, intermediate_size=112, vocab_size=250, max_positions=64,
        tie_word_embeddings=False, hidden_act="silu",
    ),
    method=MethodSpec(name="lora", rank=4),
    bs=2,
    seq=32,
)  # fmt: skip
VERSIONS = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"}
CARD = {"device": "NVIDIA A100-SXM4-80GB", "device_type": "cuda", "total_bytes": 80 * 2**30}


def memory(moment: str = "loss backward: loss", **figures: Any) -> Memory:
    """100 MiB of weights, 8 of adapters, 60 of activations, 20 of logits, 12 of workspaces: 200 MiB in all."""
    parts: dict[str, Any] = dict.fromkeys(PART_FIELDS, 0)
    parts |= {
        "weights_bytes": 100 * MIB, "adapter_bytes": 8 * MIB, "activations_bytes": 60 * MIB, "logits_bytes": 20 * MIB,
        "workspace_bytes": 12 * MIB,
    }  # fmt: skip
    known: dict[str, Any] = {
        "peak_allocated_bytes": 200 * MIB, "peak_requested_bytes": 199 * MIB, "peak_reserved_bytes": 220 * MIB,
        "fragmentation_bytes": 20 * MIB, "context_bytes": None, "peak_device_bytes": None, "peak_moment": moment,
        "saved_activations_bytes": 61 * MIB, "trained_gradients_bytes": 8 * MIB,
        "moments": {"forward": 190 * MIB, "loss": 200 * MIB, "backward": 180 * MIB},
    }  # fmt: skip
    return Memory(**parts | known | figures)


def measurement(seen: Memory | None = None, **figures: Any) -> Measurement:
    known: dict[str, Any] = {
        "outcome": "ok", "versions": {**VERSIONS, "python": "3.12.1"}, "environment": CARD, "run": RUN,
        "memory": memory() if seen is None else seen, "parameters": {"total": 88_496, "trainable": 7_424},
        "throughput": Throughput(step_s=0.5, tokens_per_s=128.0, model_flops=1_000_000, mfu=0.4),
    }  # fmt: skip
    return Measurement(**known | figures)


def prediction(said: Memory | None = None, engine: str = "simulate", **figures: Any) -> Prediction:
    known: dict[str, Any] = {
        "engine": engine, "versions": {"engine": engine, **VERSIONS}, "run": RUN,
        "memory": memory() if said is None else said, "parameters": {"total": 88_496, "trainable": 7_424},
        "throughput": Throughput(),
    }  # fmt: skip
    return Prediction(**known | figures)


def without_memory(outcome: str, **figures: Any) -> Measurement:
    """A run that did not come as far as its traced step."""
    return replace(measurement(), outcome=outcome, memory=None, throughput=Throughput(), **figures)


def ledger(*items: tuple[Category, str, str, int]) -> Ledger:
    """(category, module, tensor, bytes) of each item."""
    return Ledger(
        "loss backward: loss",
        tuple(
            MemoryItem(
                module=module, tensor=tensor, category=category, shape="", dtype="", formula="", count=1, nbytes=nbytes
            )
            for category, module, tensor, nbytes in items
        ),
    )
