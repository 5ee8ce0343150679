"""The closed forms of ZeRO against two and four real ranks under DeepSpeed, over gloo on the CPU (`make test-zero`)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.analytic import predict, zero
from lorafa_prof.ledger import Category
from lorafa_prof.results import Prediction
from lorafa_prof.sharding import sent_bytes
from lorafa_prof.specs import ITEMSIZE
from lorafa_prof.units import allocated
from tests.zero.runs import RUNS

ROOT = Path(__file__).resolve().parents[2]
#: Seconds; without other load it takes a minute.
LONGEST = 900
#: DeepSpeed's settings, and what the closed forms call them.
SETTINGS = {
    "reduce_bucket_size": "REDUCE_BUCKET_SIZE", "stage3_prefetch_bucket_size": "PREFETCH_BUCKET_SIZE",
    "stage3_max_reuse_distance": "MAX_REUSE_DISTANCE", "stage3_max_live_parameters": "MAX_LIVE_PARAMETERS",
}  # fmt: skip
#: Of each phase, the moments that closed forms tell apart in it.
PHASES = {"forward": ("forward", "loss"), "backward": ("backward",), "optimizer": ("optimizer step",)}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: make test-zero")

Seen = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each rank wrote of each run, in the ranks' order."""
    folder = tmp_path_factory.mktemp("zero")
    shared = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.zero.rank", str(folder)], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, env={**os.environ, **shared},
    )  # fmt: skip
    try:
        assert process.wait(LONGEST) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text("utf-8")) for rank in range(asked.run.gpus)]
        for name, asked in RUNS.items()
    }


@pytest.fixture
def predicted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Prediction:
    """The closed forms of a run, with its settings."""
    asked = RUNS[request.node.callspec.params["name"]]
    for setting, value in asked.settings.items():
        monkeypatch.setattr(zero, SETTINGS[setting], value)
    return predict(asked.run)


def unrounded_parameters(prediction: Prediction) -> int:
    """What the closed forms say a GPU has of parameters from step to step, before the allocator rounds."""
    ledger: Any = prediction.ledger
    items = [i for i in ledger.items if i.category in (Category.WEIGHTS, Category.ADAPTERS)]
    sizes = ((math.prod(map(int, re.findall(r"\d+", i.shape))) * ITEMSIZE[i.dtype] * i.count, i.tensor) for i in items)
    return sum(nbytes for nbytes, tensor in sizes if "inv_freq" not in tensor)  # no parameter


@pytest.mark.parametrize("name", RUNS)
def test_what_a_rank_holds(seen: Seen, predicted: Prediction, name: str) -> None:
    """States, weights, parts and whole ones, and what is kept of gradients for the step: to the byte.

    Of gradients the rank that has most: of parameters on the border between two parts both ranks keep all.
    """
    memory, ranks = predicted.memory, seen[name]
    for real in ranks:
        assert real["dtypes"] == ["torch.bfloat16"]  # of adapters too
        assert memory.optimizer_bytes == 3 * allocated(real["states"] // 3)
        assert unrounded_parameters(predicted) == real["weights"]
    assert memory.trained_gradients_bytes == max(real["at the step"] for real in ranks)


@pytest.mark.parametrize("name", RUNS)
def test_what_a_rank_sends(seen: Seen, predicted: Prediction, name: str) -> None:
    """Of each kind of collective as many bytes; broadcasts of bookkeeping are left out.

    Where ZeRO-3 gathers little ahead, it lets its first weight go before it looks as far as the backward.
    """
    gpus = RUNS[name].run.gpus
    for real in seen[name]:
        sent = {kind: nbytes for kind, nbytes in real["sent"].items() if kind != "broadcast"}
        if name.startswith("near"):
            sent["all_gather"] -= FIRST_WEIGHT
        assert predicted.communication_bytes == sent_bytes(sent.items(), gpus)
        assert real["sent"].get("broadcast", 0) < 4096


@pytest.mark.parametrize("name", RUNS)
def test_what_is_alive_at_most(seen: Seen, predicted: Prediction, name: str) -> None:
    """The most of forward, backward and optimizer step, on the rank that has most; storages rounded up to 512 bytes.

    In stages 1 and 2 within 8 KiB and what CUDA's flash attention makes for a moment, which the CPU's does not. Of the
    weights that ZeRO-3 gathers the most that may be there is counted: never less than there is, and no more than a
    twelfth beyond it, the bucket that it always has not counted.
    """
    asked = RUNS[name]
    cublas = sum(i.nbytes for i in predicted.ledger.items if i.tensor == "cuBLAS workspaces")
    bucket = 2 * asked.settings.get("reduce_bucket_size", zero.REDUCE_BUCKET_SIZE)
    for phase, moments in PHASES.items():
        said = (
            max(predicted.memory.moments[moment] for moment in moments if moment in predicted.memory.moments) - cublas
        )
        real = max(rank["alive"][phase]["bytes"] for rank in seen[name])
        if asked.run.shard == "zero3":
            assert real - SMALL <= said <= real + (real - bucket) / 12
        else:
            assert -SMALL <= said - real <= FLASH


#: Bytes of the embedding table.
FIRST_WEIGHT = 2 * 1000 * 128
#: Bytes: rounding, counters and the like; the accumulator of flash attention's backward at these sizes.
SMALL, FLASH = 8192, 65536
