"""Real ranks under DeepSpeed's ZeRO, over gloo on the CPU: `python -m tests.zero.rank FOLDER`.

One interpreter imports the libraries; its children are the ranks, others for each run. Each writes into
FOLDER/RUN-RANK.json what it holds and sends and what is alive when. DeepSpeed's own kernels are not needed: it has
torch's AdamW, as the closed forms do. gloo's own copies are left out, for NCCL makes none, and a collective returns
when gloo's thread has let go of what it worked on.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import socket
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.op_builder import cpu as op_builder
from torch.utils._python_dispatch import _disable_current_modes

from lorafa_prof.workload.models import batch
from lorafa_prof.workload.step import build_model
from tests.support.tracking import Block, StorageTracker
from tests.zero.runs import RUNS, ZeroRun

#: Collectives by the names that sharding has for them, and where their arguments hold all that they are about.
_COLLECTIVES = {
    "all_reduce": ("all_reduce", "tensor"), "all_gather_into_tensor": ("all_gather", "output_tensor"),
    "all_gather_single": ("all_gather", "output_tensor"), "reduce_scatter_tensor": ("reduce_scatter", "input"),
    "broadcast": ("broadcast", "tensor"), "reduce": ("reduce", "tensor"),
}  # fmt: skip
#: Blocks that are told of at a peak.
_MOST = 40
#: Seconds within which gloo's thread has let go of what it worked on.
_LET_GO_S = 2.0


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
        storages = [each.untyped_storage() for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
        before = [_holders(storage) for storage in storages]
        with _disable_current_modes():
            result = collective(*args, **kwargs)
            if result is not None:
                result.wait()
        deadline = time.monotonic() + _LET_GO_S
        while result is None and _any_more(storages, before) and time.monotonic() < deadline:
            time.sleep(0.002)
        return result

    return call


def _holders(storage: Any) -> int:
    return int(torch._C._storage_Use_Count(storage._cdata))


def _any_more(storages: list[Any], before: list[int]) -> bool:
    return any(_holders(storage) > number for storage, number in zip(storages, before, strict=True))


def held(tensors: Iterable[Any]) -> int:
    """Bytes of the storages of tensors, each once."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor) and t.numel()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def take_steps(asked: ZeroRun, sent: Counter[str]) -> dict[str, Any]:
    """Take three steps, and return what this rank holds in and after the second, and what is alive in the third."""
    run = asked.run
    model = build_model(run.replace(gpus=1, shard="none"), "cpu")
    trained = [p for p in model.parameters() if p.requires_grad]
    config = {
        "train_micro_batch_size_per_gpu": run.bs, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": int(run.shard.removeprefix("zero")), **asked.settings},
    }  # fmt: skip
    engine, zero, _, _ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, lr=1e-4, foreach=True),
        config=config,
        model_parameters=trained,
    )
    found: dict[str, Any] = {}
    in_backward: list[int] = []
    hooks = [
        parameter.register_post_accumulate_grad_hook(
            lambda _: in_backward.append(held([*(p.grad for p in trained), *_buckets(zero)]))
        )
        for parameter in trained
    ]
    data = batch(run, "cpu", part=dist.get_rank())
    for _ in range(2):
        sent.clear()
        in_backward.clear()
        engine.backward(engine(**data).loss)
        found["at the step"] = held([*_reduced(zero), *(p.grad for p in trained)])
        engine.step()
    for hook in hooks:
        hook.remove()
    states = [value for state in zero.optimizer.state.values() for value in state.values()]
    parameters = list(model.parameters())
    masters = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    return found | {
        "states": held([*(v for v in states if isinstance(v, torch.Tensor) and v.dim()), *masters]),
        "in the backward": max(in_backward),
        "weights": held([*(p.data for p in parameters), *(getattr(p, "ds_tensor", None) for p in parameters)]),
        "dtypes": sorted({str(p.dtype) for p in trained}),
        "sent": dict(sent),
        "alive": _alive_in_a_step(engine, data),
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


# -- what is alive when ----------------------------------------------------------------------------------------------


def _alive_in_a_step(engine: Any, data: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Take a step and return, phase by phase, the most bytes that are alive, and the largest storages then."""
    gc.collect()
    standing = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and not each.is_meta]
    with StorageTracker(SimpleNamespace(current="")) as tracker:  # type: ignore[arg-type]
        tracker.adopt(standing, "held")
        del standing
        tracker.phase = "forward"
        loss = engine(**data).loss
        tracker.phase = "backward"
        engine.backward(loss)
        tracker.phase = "optimizer"
        engine.step()
    return {phase: _most(tracker, phase) for phase in ("forward", "backward", "optimizer")}


def _most(tracker: StorageTracker, phase: str) -> dict[str, Any]:
    position = max((i for i, e in enumerate(tracker.events) if e.phase == phase), key=lambda i: tracker.events[i].live)
    alive: set[Block] = set()
    for event in tracker.events[: position + 1]:
        alive.add(event.block) if event.delta > 0 else alive.discard(event.block)
    largest = sorted((block for block in alive if block.nbytes), key=lambda block: -block.nbytes)
    told = [(b.nbytes, str(b.dtype), list(b.shape), b.op, b.phase) for b in largest[:_MOST]]
    return {"bytes": tracker.events[position].live, "largest": told}


# -- ranks -----------------------------------------------------------------------------------------------------------


def _rank(name: str, asked: ZeroRun, rank: int, port: int, folder: Path) -> NoReturn:
    """Be a rank of a run, in a process of its own."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(asked.run.gpus), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    code = 1
    try:
        sent: Counter[str] = Counter()
        watch_collectives(sent)
        # DeepSpeed's own way through shared memory, which it would compile first, is for reductions of its inference
        with mock.patch.object(op_builder.ShareMemCommBuilder, "load", return_value=None):
            deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(take_steps(asked, sent)), "utf-8")
        dist.destroy_process_group()
        code = 0
    except BaseException:  # noqa: BLE001 - the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(folder: Path) -> None:
    """Take one run after the other, and end with the number of ranks that failed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    failed = 0
    for name, asked in RUNS.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(asked.run.gpus):
            child = os.fork()
            if not child:
                _rank(name, asked, rank, port, folder)
            children.append(child)
        failed += sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)
    sys.exit(failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
