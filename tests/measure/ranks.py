"""Processes for the tests: `python -m tests.measure.ranks FOLDER` does all of `DEEDS`, each by two ranks or by four.

One interpreter imports the libraries, and its children are the ranks, with an environment as torchrun makes it. In
FOLDER are then DEED.json, which rank 0 writes, what each rank prints, DEED-R.out and DEED-R.err, and ended.json.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed import TCPStore
from torch.utils._python_dispatch import TorchDispatchMode

from lorafa_prof.cli import main as cli
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
        "llama",
        method,
        changes={"vocab_size": 251, **options.pop("changes", {})},
        dtype="fp32",
        **{"gpus": 2, "shard": shard, **options},
    )


#: Frozen bf16 weights beside trained fp32 adapters, in one group of FSDP2's, are among them.
RUNS = {
    "ddp full": run_of("ddp", "full"),
    "fsdp full": run_of("fsdp", "full"),
    "ddp lora": run_of("ddp", "lora"),
    "ddp lora in three micro-batches, clipped": run_of("ddp", "lora", accumulation=3, clip=True),
    "fsdp lora bf16": run_of("fsdp", "lora").replace(dtype="bf16"),
    "fsdp full checkpointed": run_of("fsdp", "full", checkpointing="full"),
    "frozen lora bf16": run_of("frozen", "lora").replace(dtype="bf16"),
    "frozen lora-fa": run_of("frozen", "lora-fa"),
    "fsdp lora-fa": run_of("fsdp", "lora-fa"),
    "fsdp-grad-op lora": run_of("fsdp-grad-op", "lora"),
    "fsdp tied": run_of("fsdp", "full", changes={"tie_word_embeddings": True}),
}


#: What four ranks do: 251 rows leave one of them with less, 48 do not.
FOUR = {
    name: RUNS[name].replace(gpus=4)
    for name in ("ddp lora", "fsdp lora bf16", "fsdp full", "frozen lora bf16", "fsdp-grad-op lora", "fsdp tied")
} | {"fsdp rank 2": run_of("fsdp", "lora", rank=2, gpus=4)}


def _measured(runs: Mapping[str, RunSpec] = RUNS) -> Any:
    found = {name: distributed.measure_in_group(run, OPTIONS) for name, run in runs.items()}
    return {name: measurements_to_json(seen) for name, seen in found.items() if seen is not None}


class Sent(TorchDispatchMode):
    """Notes what the collectives that run are about, in bytes: [kind, bytes]."""

    #: Which of the arguments has all of it: what is gathered, what is to be scattered, what is reduced or told.
    _KINDS: ClassVar = {
        "_allgather_base_": ("all_gather", 0), "_reduce_scatter_base_": ("reduce_scatter", 1),
        "allreduce_": ("all_reduce", 0), "broadcast_": ("broadcast", 0),
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind, place = self._KINDS[func._schema.name.removeprefix("c10d::")]
            tensors = args[place] if isinstance(args[place], (list, tuple)) else [args[place]]
            self.found.append((kind, sum(tensor.nbytes for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def _sent(runs: Mapping[str, RunSpec]) -> dict[str, Any]:
    """What the third step of each run sends."""
    member = distributed._Member.of(os.environ)
    found = {}
    for name, run in runs.items():
        with member.joined("cpu"):
            work = Workload.build(run, "cpu", member.group)
            for _ in range(2):
                training_step(work)
            with Sent() as sent:
                training_step(work)
        found[name] = sent.found
    return found


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
            if kind == "hang":
                time.sleep(200)
            raise torch.OutOfMemoryError("CUDA out of memory") if kind == "full" else RuntimeError("a fault")
        training_step(*args)

    with mock.patch.object(harness, "training_step", step):
        timeout = 2.0 if kind == "hang" else None
        seen = distributed.measure_in_group(RUNS["ddp lora"], OPTIONS, timeout_s=timeout)
    return None if seen is None else measurements_to_json(seen)


def _command(folder: Path) -> int:
    model = folder / f"model-{os.environ['RANK']}"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(RUNS["ddp lora"].model.config), "utf-8")
    run = ["--model", str(model), "--method", "lora", "--rank", "4", "--seq", "16", "--gpus", "2", "--shard", "ddp"]
    short = ["--device", "cpu", "--steps", "1", "--warmup", "1"]
    return cli(["measure", *run, *short, "-o", str(folder / "command.json")])


#: "four" measures with four ranks. "sent" keeps what they tell each other, "train" what training is judged by. In the
#: second timed step rank R raises, runs out of memory, is killed, or waits until time is over.
DEEDS = ("measure", "four", "sent", "sent by four", "train", "command", "fail-0", "full-1", "die-1", "hang-1")


def size_of(deed: str) -> int:
    """How many ranks a deed has."""
    return 4 if deed in ("four", "sent by four") else 2


def _do(deed: str, folder: Path) -> int:
    if deed == "command":
        return _command(folder)
    deeds = {
        "measure": _measured, "four": lambda: _measured(FOUR), "train": _trained, "sent": lambda: _sent(RUNS),
        "sent by four": lambda: _sent(FOUR),
    }  # fmt: skip
    answer = deeds.get(deed, lambda: _failing(deed))()
    if os.environ["RANK"] == "0":
        (folder / f"{deed}.json").write_text(json.dumps(answer), "utf-8")
    return 0


def _rank(deed: str, rank: int, port: int, folder: Path) -> NoReturn:
    """Be a rank, in a process of its own."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size_of(deed)), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{deed}-{rank}.{name}", os.O_CREAT | os.O_WRONLY), number)
        code = _do(deed, folder)
    except BaseException:  # noqa: BLE001 - the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(folder: Path) -> None:
    """Do all deeds side by side."""
    torch.set_num_threads(1)
    ports = {deed: _free_port() for deed in DEEDS}
    children = {}
    for deed, port in ports.items():
        for rank in range(size_of(deed)):
            child = os.fork()
            if not child:
                _rank(deed, rank, port, folder)
            children[f"{deed}-{rank}"] = child
    # torchrun's agent holds the store through which ranks find each other; its threads would not survive a fork.
    stores = [TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) for port in ports.values()]
    codes = {name: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for name, child in children.items()}
    del stores
    (folder / "ended.json").write_text(json.dumps(codes), "utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
