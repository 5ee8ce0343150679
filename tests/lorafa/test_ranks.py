"""DDP and FSDP2 by two real ranks, under gloo, against one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafa_prof import lorafa
from tests.lorafa import ranks
from tests.lorafa.models import prepared

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.lorafa.ranks", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks.RANKS)]


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
@pytest.mark.parametrize("dtype", ranks.DTYPES)
def test_the_ranks_train_what_one_process_does(results: list[dict[str, Any]], shard: str, dtype: str) -> None:
    """The same adapters on both ranks to the bit, and within rounding those of one process; A is as it was."""
    model = prepared(ranks.DTYPES[dtype])
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    ranks.steps(model, lorafa.LoraFA(model, lr=1e-2, weight_decay=0.1), ranks.DTYPES[dtype])
    ours, other = (result[f"{shard} {dtype}"] for result in results)
    assert ours.keys() == other.keys() == before.keys()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        assert torch.equal(ours[name], other[name]), name
        assert torch.equal(ours[name], before[name]) == ("lora_A" in name), name
        # bf16 gradients of half batches round otherwise, and Adam's first steps look at little but their signs
        limit = 1e-4 if dtype == "fp32" else 0.1
        assert (ours[name] - parameter).norm() <= limit * parameter.norm(), name


def test_lora_fb_over_sharded_rows_is_refused(results: list[dict[str, Any]]) -> None:
    """The correction mixes the rows of A, of which each rank has some."""
    assert all("model.up: A is sharded along its rank" in result["refused"] for result in results)
