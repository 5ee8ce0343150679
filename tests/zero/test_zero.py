"""The closed forms of ZeRO against two real ranks under DeepSpeed, over gloo on the CPU (`make test-zero`)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.ledger import Category
from lorafa_prof.sharding import sent_bytes
from lorafa_prof.specs import ITEMSIZE, RunSpec
from lorafa_prof.units import allocated
from lorafa_prof.workload.step import build_model
from tests.zero.runs import RUNS

ROOT = Path(__file__).resolve().parents[2]
#: Seconds; without other load it takes half a minute.
LONGEST = 280

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: make test-zero")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What rank 0 of two wrote of each run."""
    file = tmp_path_factory.mktemp("zero") / "rank.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.zero.rank", str(file)]
    ranks = [
        subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert [rank.wait(LONGEST) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def unrounded_parameters(run: RunSpec) -> int:
    """What the closed forms say a GPU has of parameters from step to step, before the allocator rounds."""
    ledger: Any = predict(run).ledger
    items = [i for i in ledger.items if i.category in (Category.WEIGHTS, Category.ADAPTERS)]
    sizes = ((math.prod(map(int, re.findall(r"\d+", i.shape))) * ITEMSIZE[i.dtype] * i.count, i.tensor) for i in items)
    return sum(nbytes for nbytes, tensor in sizes if "inv_freq" not in tensor)  # no parameter


def largest_trained(run: RunSpec) -> int:
    """Elements of the largest parameter that is trained."""
    model = build_model(run.replace(gpus=1, shard="none"), "meta")
    return max(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", RUNS)
def test_what_a_rank_holds(seen: dict[str, Any], name: str) -> None:
    """States to the byte, and all that is there of weights, parts and whole ones.

    Gradients at the step too, but for the parameters on the borders between two parts: in stages 1 and 2 DeepSpeed
    makes room for these as a whole.
    """
    memory, real = predict(RUNS[name]).memory, seen[name]
    assert real["dtypes"] == ["torch.bfloat16"]  # of adapters too
    assert memory.optimizer_bytes == 3 * allocated(real["states"] // 3)
    more = real["at the step"] - (memory.trained_gradients_bytes or 0)
    assert 0 <= more <= (2 * largest_trained(RUNS[name]) if "stage 3" not in name else 0)
    assert unrounded_parameters(RUNS[name]) == real["weights"]


@pytest.mark.parametrize("name", RUNS)
def test_what_a_rank_sends(seen: dict[str, Any], name: str) -> None:
    """Of each kind of collective as many bytes; broadcasts of bookkeeping are left out."""
    sent = {kind: nbytes for kind, nbytes in seen[name]["sent"].items() if kind != "broadcast"}
    assert predict(RUNS[name]).communication_bytes == sent_bytes(sent.items(), 2)
    assert seen[name]["sent"].get("broadcast", 0) < 4096
