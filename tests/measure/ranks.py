"""What each process of a group does for the tests: `python -m tests.measure.ranks DEED FILE`; rank 0 writes FILE.

Deeds: "measure" all of `RUNS`; "train" `SHARDS` and keep what training is judged by; "fail-R", "full-R", "die-R": in
the second timed step rank R raises, runs out of memory, or is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from lorafa_prof.measure import distributed, harness
from lorafa_prof.results import measurements_to_json
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.step import training_step
from tests.support.configs import tiny_run

SHARDS = ("ddp", "fsdp")
OPTIONS = harness.Options(device="cpu", steps=2, warmup=1)
STEPS = 3


def run_of(shard: str, method: str, **options: Any) -> RunSpec:
    """A run over two processes; 251 rows of the vocabulary cannot be halved."""
    return tiny_run(
        "llama", method, changes={"vocab_size": 251}, dtype="fp32", **{"gpus": 2, "shard": shard, **options}
    )


#: Frozen bf16 weights beside trained fp32 adapters, in one group of FSDP2's, are among them.
RUNS = {
    "ddp full": run_of("ddp", "full"),
    "fsdp full": run_of("fsdp", "full"),
    "ddp lora": run_of("ddp", "lora"),
    "fsdp lora bf16": run_of("fsdp", "lora").replace(dtype="bf16"),
    "fsdp full checkpointed": run_of("fsdp", "full", checkpointing="full"),
}


def _measured() -> Any:
    found = {name: distributed.measure_in_group(run, OPTIONS) for name, run in RUNS.items()}
    return {name: measurements_to_json(seen) for name, seen in found.items() if seen is not None}


def whole(tensor: torch.Tensor) -> list[float]:
    """All elements of a tensor, sharded or not."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().flatten().tolist()


def _trained() -> Any:
    member = distributed._Member.of(os.environ)
    found = {}
    for shard in SHARDS:
        with member.joined("cpu"):
            work = Workload.build(run_of(shard, "full"), "cpu", member.group)
            losses = []
            for _ in range(STEPS):
                losses.append(float(work.loss().detach()))
                training_step(work)
            work.loss().backward()
            mine = {
                "losses": losses,
                "weights": {name: whole(p) for name, p in work.model.named_parameters()},
                "gradients": {name: whole(p.grad) for name, p in work.model.named_parameters()},
            }
            ranks: list[Any] = [None, None]
            dist.all_gather_object(ranks, mine)
            found[shard] = ranks
    return found


def _failing(deed: str) -> Any:
    kind, _, rank = deed.partition("-")
    calls = iter(range(100))

    def step(*args: Any) -> None:
        if next(calls) == OPTIONS.warmup + 1 and os.environ["RANK"] == rank:
            if kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError("CUDA out of memory") if kind == "full" else RuntimeError("a fault")
        training_step(*args)

    with mock.patch.object(harness, "training_step", step):
        seen = distributed.measure_in_group(RUNS["ddp lora"], OPTIONS)
    return None if seen is None else measurements_to_json(seen)


def main(deed: str, path: str) -> None:
    """Do it."""
    torch.set_num_threads(1)
    answer = {"measure": _measured, "train": _trained}.get(deed, lambda: _failing(deed))()
    if os.environ["RANK"] == "0":
        with open(path, "w", encoding="utf-8") as file:
            json.dump(answer, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
