"""Two ranks of a LoRA-FA training: `python -m tests.lorafa.ranks FOLDER`; each writes what it trained to FOLDER.

The batch of a step is halved between the ranks, whose gradients are averaged: the parameters are those of one process
that takes the whole batch.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lorafa_prof import lorafa
from lorafa_prof.errors import UnsupportedError
from tests.lorafa.models import WIDTH, prepared

RANKS, STEPS = 2, 4
#: How a model is prepared, by the name of its file.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def batch(step: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step)).to(dtype)


def loss_of(model: Any, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x[..., :8].sin()).float().square().mean()


def steps(model: Any, optimizer: torch.optim.Optimizer, dtype: torch.dtype, rank: int | None = None) -> None:
    for step in range(STEPS):
        x = batch(step, dtype)
        loss_of(model, x if rank is None else x.chunk(RANKS)[rank]).backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensor: Any) -> torch.Tensor:
    found: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach().clone()


def sharded(dtype: torch.dtype, trains: str) -> Any:
    model = prepared(dtype, trains=trains)
    for layer in (model.base_model.model.up, model.base_model.model.left):
        fully_shard(layer)
    return fully_shard(model)


def train(shard: str, dtype: torch.dtype, rank: int) -> dict[str, torch.Tensor]:
    model = DistributedDataParallel(prepared(dtype)) if shard == "ddp" else sharded(dtype, "B")
    optimizer = lorafa.LoraFA(model, lr=1e-2, weight_decay=0.1)
    steps(model, optimizer, dtype, rank)
    if shard == "fsdp":  # states are sharded as the parameters are, and what is saved can be loaded
        states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        assert all(hasattr(value, "placements") for value in states)
        optimizer.load_state_dict(optimizer.state_dict())
        states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        assert all(value.dtype == torch.float32 and hasattr(value, "placements") for value in states)
    found = {name: whole(p) for name, p in model.named_parameters() if "lora_" in name}
    return {name.removeprefix("module."): value for name, value in found.items()}


def refused() -> str:
    """LoRA-FB over A sharded by rows."""
    try:
        lorafa.LoraFA(sharded(torch.float32, "A"))
    except UnsupportedError as error:
        return str(error)
    return ""


def rank_of(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    results: dict[str, Any] = {
        f"{shard} {name}": train(shard, dtype, rank) for shard in ("ddp", "fsdp") for name, dtype in DTYPES.items()
    }
    results["refused"] = refused()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                rank_of(rank, folder)
                status = 0
            except BaseException:  # noqa: BLE001 - it is the last thing that this process does
                traceback.print_exc()
            os._exit(status)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
