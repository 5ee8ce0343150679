"""One of two real ranks under DeepSpeed's ZeRO, over gloo on the CPU: `python -m tests.zero.rank FILE`.

Rank 0 writes into FILE what it holds and sends, for each stage and method. DeepSpeed's own kernels are not needed: it
is given torch's AdamW, as the closed forms have it.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.op_builder import cpu as op_builder

from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.models import batch
from lorafa_prof.workload.step import build_model
from tests.zero.runs import RUNS

#: Collectives by the names that sharding has for them, and where their arguments hold all that they are about.
_COLLECTIVES = {
    "all_reduce": ("all_reduce", "tensor"), "all_gather_into_tensor": ("all_gather", "output_tensor"),
    "all_gather_single": ("all_gather", "output_tensor"), "reduce_scatter_tensor": ("reduce_scatter", "input"),
    "broadcast": ("broadcast", "tensor"), "reduce": ("reduce", "tensor"),
}  # fmt: skip


def watch_collectives(sent: Counter[str]) -> None:
    """Count the bytes that collectives are about from now on; scalars (norms, overflows) are left out."""
    for name, (kind, argument) in _COLLECTIVES.items():
        if hasattr(dist, name):
            setattr(dist, name, _watched(getattr(dist, name), kind, argument, sent))


def _watched(collective: Callable[..., Any], kind: str, argument: str, sent: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(collective)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensor = kwargs.get(argument, args[0] if args else None)
        if kind == "reduce_scatter" and argument not in kwargs and len(args) > 1:
            tensor = args[1]
        if isinstance(tensor, torch.Tensor) and tensor.numel() > 1:
            sent[kind] += tensor.nbytes
        return collective(*args, **kwargs)

    return call


def held(tensors: Iterable[Any]) -> int:
    """Bytes of the storages of tensors, each once."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor) and t.numel()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def take_steps(run: RunSpec, stage: int, sent: Counter[str]) -> dict[str, Any]:
    """Take two steps, and return what this rank holds in and after the second."""
    model = build_model(run.replace(gpus=1, shard="none"), "cpu")
    trained = [p for p in model.parameters() if p.requires_grad]
    config = {
        "train_micro_batch_size_per_gpu": run.bs, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    engine, zero, _, _ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(trained, lr=1e-4), config=config, model_parameters=trained
    )
    found: dict[str, Any] = {}
    in_backward: list[int] = []
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(
            lambda _: in_backward.append(held([*(p.grad for p in trained), *_buckets(zero)]))
        )
    data = batch(run, "cpu", part=dist.get_rank())
    for _ in range(2):
        sent.clear()
        in_backward.clear()
        engine.backward(engine(**data).loss)
        found["at the step"] = held([*_reduced(zero), *(p.grad for p in trained)])
        engine.step()
    states = [value for state in zero.optimizer.state.values() for value in state.values()]
    parameters = list(model.parameters())
    masters = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    return found | {
        "states": held([*(v for v in states if isinstance(v, torch.Tensor) and v.dim()), *masters]),
        "in the backward": max(in_backward),
        "weights": held([*(p.data for p in parameters), *(getattr(p, "ds_tensor", None) for p in parameters)]),
        "dtypes": sorted({str(p.dtype) for p in trained}),
        "sent": dict(sent),
    }


def _buckets(zero: Any) -> list[torch.Tensor]:
    """The buffers that gradients are reduced in."""
    found = [b.buffer for b in getattr(zero, "ipg_buckets", {}).values()]
    return [tensor for each in found for tensor in (each if isinstance(each, list) else [each])]


def _reduced(zero: Any) -> list[torch.Tensor]:
    """What this rank keeps of the gradients when it steps."""
    flat = getattr(zero, "grad_partitions_flat_buffer", None)
    if flat is not None:
        return [flat]
    return [tensor for group in zero.averaged_gradients.values() for tensor in group or ()]


def main() -> None:
    """Be a rank."""
    sent: Counter[str] = Counter()
    watch_collectives(sent)
    # DeepSpeed's own way through shared memory, which it would compile first, is for reductions of its inference
    with mock.patch.object(op_builder.ShareMemCommBuilder, "load", return_value=None):
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    found = {name: take_steps(run, int(run.shard.removeprefix("zero")), sent) for name, run in RUNS.items()}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
