"""One rank alone: the group it is in, the streams that FSDP2 allocates on, and what it leaves behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from lorafa_prof.allocator.replay import replay
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.sharding import sent_bytes
from lorafa_prof.simulate.engine import predict
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.ranks import first_of
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.parallel import transformer_blocks
from lorafa_prof.workload.step import build_model
from tests.analytic.runs import run_of

PLATFORM = Cuda(DeviceTraits((8, 0), 108), "2.13.0")


def run(shard: str, method: str = "full", **options: Any) -> RunSpec:
    return run_of("llama", method, layers=3, **{"gpus": 4, "shard": shard, **options})


def parameters_of(run: RunSpec) -> tuple[int, int]:
    """Bytes of all trained parameters in blocks, and of those outside; tiny models have rows that four can share."""
    model = build_model(run.replace(gpus=1, shard="none"), "meta")
    inside = [p for block in transformer_blocks(model) for p in block.parameters()]
    every = sum(p.numel() * p.itemsize for p in model.parameters())
    blocks = sum(p.numel() * p.itemsize for p in inside)
    return blocks, every - blocks


@pytest.fixture(scope="module")
def sharded() -> Recording:
    return record(run("fsdp", changes={"vocab_size": 252}), PLATFORM)


def test_what_a_rank_sends_is_twice_the_blocks_and_once_the_root(sharded: Recording) -> None:
    """Each block is gathered in the forward and in the backward, what is outside once; gradients are scattered once."""
    blocks, root = parameters_of(sharded.run)
    sent = sent_bytes(sharded.collectives, 4)
    assert sent == {"all_gather": (2 * blocks + root) * 3 // 4, "reduce_scatter": (blocks + root) * 3 // 4}


def test_fsdp_allocates_on_streams_of_its_own(sharded: Recording) -> None:
    """Gathers in one stream's pool, reduced gradients in another's; whole gradients and gathered weights in the main's.

    In the backward a block is gathered in the same stream as in the forward.
    """
    trace = sharded.trace(2, PLATFORM)
    streams: dict[str, Counter[int]] = {}
    for block in trace.blocks:
        streams.setdefault(block.name.partition(" of ")[0].partition(" weight")[0], Counter())[block.stream] += 1
    assert list(streams["all-gather buffer"]) == [1]
    assert list(streams["gradients"]) == [3]
    for name in ("gathered", "whole gradient", "reduce-scatter buffer", ""):
        assert list(streams[name]) == [0]


def test_a_pool_for_each_stream_takes_memory(sharded: Recording) -> None:
    """Blocks that are free in one stream's pool serve no other: more is reserved than where all are on one."""
    trace = sharded.trace(3, PLATFORM)
    apart = replay(trace.events, trace.sizes, streams=trace.streams)
    together = replay(trace.events, trace.sizes)
    assert apart.allocated.size == pytest.approx(together.allocated.size, rel=0.01)
    assert apart.reserved.size > together.reserved.size


def test_ddp_keeps_each_gradient_once_more() -> None:
    """In buckets, from the second step on in the order in which gradients have come; they are never freed again."""
    recording = record(run("ddp", "lora"), PLATFORM)
    trace = recording.trace(3, PLATFORM)
    alive = [trace.blocks[number] for number in trace.alive_at(len(trace.events) - 1)]
    buckets = [block for block in alive if block.name == "DDP bucket"]
    assert sum(block.nbytes for block in buckets) == recording.parameters["trainable"] * 4
    assert {block.phase for block in buckets} == {"rebuild"}


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_nothing_is_left_behind(shard: str) -> None:
    """No process group, and no device module for meta: the same process simulates other groups afterwards."""
    for gpus in (2, 3):
        record(run(shard, "lora", gpus=gpus), PLATFORM)
        assert not torch.distributed.is_initialized()
        assert not hasattr(torch, "meta")


def test_a_process_in_a_group_is_no_rank_of_another() -> None:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(UnsupportedError, match="group already"), first_of(run("ddp")):
            pass
    finally:
        torch.distributed.destroy_process_group()


def test_more_gpus_take_less_of_each() -> None:
    """Weights, gradients and states of a rank fall with the number of ranks, activations stay."""
    few, many = (predict(run("fsdp", gpus=gpus, changes={"vocab_size": 256})) for gpus in (2, 16))
    assert few.memory.weights_bytes is not None
    assert few.memory.weights_bytes > 4 * (many.memory.weights_bytes or 0)
    assert few.memory.saved_activations_bytes == many.memory.saved_activations_bytes
