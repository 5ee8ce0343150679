"""The prediction for the CPU against a real step there, as PyTorch's profiler hears it from the allocator itself."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.results import PART_FIELDS, Prediction
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.workload import Workload, training_step
from lorafa_prof.workload.architectures import runnable_model
from tests.analytic.runs import run_of
from tests.support.profiled import kernels_of_known_size, profile_step
from tests.support.reachable import storage_bytes

THREADS = 2
CASES = [
    (family, method)
    for family in ("llama", "gpt2", "roberta", "t5")
    for method in ("full", "lora", "lora-fa", "lora-fa-peft", "lora-fb", "vera")
]


def cpu_run(family: str, method: str, **options: Any) -> RunSpec:
    """T5's bias of positions has another kernel with sdpa (see test_real_cpu_step)."""
    return run_of(family, method, **({"attn": "eager"} if family == "t5" else {}), **options)


@functools.cache
def predicted(family: str, method: str) -> Prediction:
    return predict_on_cpu(cpu_run(family, method), THREADS)


def bytes_before_the_second_step(run: RunSpec) -> int:
    """The storages of the real model, batch and optimizer after one real step, each once."""
    work = Workload.build(run, "cpu")
    training_step(work)
    return storage_bytes(work)


@pytest.mark.parametrize(("family", "method"), CASES)
def test_the_peak_is_the_profiler_s(family: str, method: str) -> None:
    """To the byte: what was there before the step, counted tensor by tensor, and what the allocator reports beyond."""
    run = cpu_run(family, method)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
    memory = predicted(family, method).memory
    assert memory.peak_allocated_bytes == bytes_before_the_second_step(run) + step.peak.live


@pytest.mark.parametrize(("family", "method"), CASES)
def test_the_parts_are_the_peak(family: str, method: str) -> None:
    """The parts add up, nothing is rounded or reserved, and the largest moment is the peak."""
    memory = predicted(family, method).memory
    assert sum(getattr(memory, field) for field in PART_FIELDS) == memory.peak_allocated_bytes
    assert memory.peak_requested_bytes == memory.peak_allocated_bytes
    assert memory.peak_reserved_bytes is None
    assert memory.peak_device_bytes is None
    assert max(memory.moments.values()) == memory.peak_allocated_bytes
    assert set(memory.moments) == {"forward", "loss", "backward", "optimizer step", "zero_grad"}


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_what_our_lora_fa_keeps(family: str) -> None:
    """Of each trained tensor two fp32 moments, a copy if it has 16 bits (RoBERTa's classifier) and a counter.

    Beside them of each pair the inverse, r x r, and one number for all. PEFT's optimizer keeps no inverse.
    """
    model = Workload.build(cpu_run(family, "lora-fa"), "meta").model
    trained = {path: p for path, p in model.named_parameters() if p.requires_grad}
    pairs, rank = sum("lora_B" in path for path in trained), 4
    states = sum((8 if p.dtype == torch.float32 else 12) * p.numel() + 4 for p in trained.values())
    assert predicted(family, "lora-fa").memory.optimizer_bytes == states + pairs * 4 * rank**2 + 4


def test_gradients_are_there_at_the_step() -> None:
    """An fp32 gradient for each value of the adapters."""
    found = predicted("llama", "lora")
    assert found.memory.trained_gradients_bytes == 4 * found.parameters["trainable"]
    assert found.memory.peak_moment.startswith(("forward", "loss", "backward", "optimizer"))


def test_a_rank_has_buckets_beside_what_one_process_has() -> None:
    """DDP keeps each gradient once more and shares nothing out: weights and states are those of a process alone."""
    alone, rank = predicted("llama", "lora"), predict_on_cpu(cpu_run("llama", "lora", gpus=2, shard="ddp"), THREADS)
    for field in ("weights_bytes", "adapter_bytes", "optimizer_bytes"):
        assert getattr(rank.memory, field) == getattr(alone.memory, field)
    bucket = 4 * rank.parameters["trainable"]
    assert rank.memory.peak_allocated_bytes >= alone.memory.peak_allocated_bytes + bucket
    assert rank.communication_bytes is not None
    assert rank.communication_bytes["all_reduce"] == bucket


def test_adalora_over_fp32_in_several_processes_is_refused() -> None:
    """What is trained is not what the same model trains elsewhere, and DDP is told before that is seen to."""
    with pytest.raises(UnsupportedError, match="several processes"):
        predict_on_cpu(cpu_run("llama", "adalora", dtype="fp32", gpus=2, shard="ddp"), THREADS)


def test_threads_count() -> None:
    """Flash attention on the CPU has a block of scores for each thread: with enough of them they are the peak."""
    run = cpu_run("llama", "lora")
    one, many = (predict_on_cpu(run, threads).memory for threads in (1, 64))
    assert (many.peak_allocated_bytes or 0) > (one.peak_allocated_bytes or 0)
    assert (many.workspace_bytes or 0) > (one.workspace_bytes or 0)


def test_int8_weights_are_refused() -> None:
    """bitsandbytes has kernels of its own for them on the CPU, whose buffers nobody has modelled here."""
    with pytest.raises(UnsupportedError, match="only for CUDA"):
        predict_on_cpu(cpu_run("llama", "lora", quant="int8"), THREADS)


def test_what_nobody_compared_is_said() -> None:
    """Kernels that no model of the catalog runs may hold buffers: said for a model outside of it, and for it alone."""
    config = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "vocab_size": 128, "max_position_embeddings": 32, "word_embed_proj_dim": 32}  # fmt: skip
    outside = RunSpec(model=runnable_model("my-opt", config, folder=None), method=MethodSpec(name="full"), bs=1, seq=8)
    told = [
        line for line in predict_on_cpu(outside, 1).unmodelled if line.startswith("buffers inside CPU kernels")
    ]  # fmt: skip
    assert len(told) == 1
    assert "my-opt" in told[0]
    inside = predict_on_cpu(run_of("llama", "full", bs=1, seq=8), 1).unmodelled
    assert not any(line.startswith("buffers inside CPU kernels") for line in inside)
