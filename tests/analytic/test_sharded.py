"""Closed forms of several GPUs against arithmetic done by hand: the paper's sharded base, ZeRO's stages, rings."""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError, ContradictionError, UnsupportedError
from lorafa_prof.sharding import sent_bytes
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.units import allocated

GB = 10**9
LLAMA = load_model("llama2-7b")


def shared(shard: str, method: str = "lora", gpus: int = 8, name: str = "llama2-7b") -> Any:
    """The prediction; what a test asks of it is there, or the test fails."""
    run = RunSpec(
        model=load_model(name), method=MethodSpec(name=method), bs=2, seq=512, gpus=gpus, shard=shard,
        optimizer="adamw",
    )  # type: ignore[arg-type]  # fmt: skip
    return predict(run)


def test_frozen_weights_of_65b_over_eight_gpus() -> None:
    """The paper's section E.4: 65B in 16 bits are 16.32 GB a GPU, and a layer that is gathered is 1.619 GB.

    Adapters, gradients and states are as whole as with DDP.
    """
    found, alone = shared("frozen", "lora-fa", name="llama-65b"), shared("ddp", "lora-fa", name="llama-65b")
    assert round(found.memory.weights_bytes / GB, 2) == 16.32
    gathered = max(item.nbytes for item in found.ledger.items if item.tensor == "all-gather buffer")
    assert round(gathered / GB, 3) == 1.619
    for part in ("adapter_bytes", "optimizer_bytes", "trained_gradients_bytes"):
        assert getattr(found.memory, part) == getattr(alone.memory, part)


def test_ddp_pays_for_adapters_alone() -> None:
    """2 g phi (G-1)/G: fp32 gradients of the adapters, twice around the ring."""
    found = shared("ddp")
    trained = found.parameters["trainable"]
    assert found.communication_bytes["all_reduce"] == 2 * 4 * trained * 7 // 8


def test_fsdp_of_full_fine_tuning_sends_three_times_the_weights() -> None:
    """3 p_w Psi (G-1)/G, but for what is outside the blocks: that is gathered once."""
    found = shared("fsdp", "full")
    outside = 2 * LLAMA.vocab_size * LLAMA.hidden_size + LLAMA.hidden_size
    whole = (3 * found.parameters["total"] - outside) * 2
    assert sum(found.communication_bytes.values()) == whole * 7 // 8


#: Llama-2-7B's weights: two tables, seven matrices and two norms a layer, the last norm. All but the norms have more
#: elements than ZeRO-3 leaves whole.
TABLE, MATRICES, NORM = 32000 * 4096, (4 * [4096 * 4096] + 3 * [4096 * 11008]) * 32, 4096
NORMS = 2 * 32 + 1
ELEMENTS = 2 * TABLE + sum(MATRICES) + NORMS * NORM
#: The last weights of ZeRO-3's forward, after which fewer than half of 10^9 elements come: the head, the last layer,
#: and of the one before the MLP and two of attention's matrices. They stay gathered.
STAYING = TABLE + 4 * 4096 * 4096 + 3 * 4096 * 11008 + 3 * 4096 * 11008 + 2 * 4096 * 4096
#: The rotary embedding's frequencies, fp32, of half a head, as they are and as they were.
FREQUENCIES = 2 * allocated(4 * 64)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_of_zero(stage: int) -> None:
    """Of n trained elements n/G: 12 bytes each of states, and 2 of gradients when the optimizer steps.

    In stages 1 and 2 there is room for parameters on the borders between two parts as a whole. What ZeRO-3 gathers for
    the forward and does not keep it gathers for the backward too.
    """
    found = shared(f"zero{stage}", "full")
    assert found.parameters["trainable"] == ELEMENTS
    assert found.memory.optimizer_bytes == 3 * allocated(4 * ELEMENTS // 8)
    borders = found.memory.trained_gradients_bytes - 2 * ELEMENTS // 8
    assert borders == 0 if stage == 3 else 0 < borders < 2 * 2 * TABLE
    parts = 8 if stage == 3 else 1
    weights = sum(allocated(2 * n // parts) for n in (TABLE, TABLE, *MATRICES)) + NORMS * allocated(2 * NORM)
    weights += NORMS * allocated(2 * NORM // 8) if stage == 3 else 0  # whole, and this GPU's part
    assert found.memory.weights_bytes == weights + FREQUENCIES
    dealt_out = ELEMENTS - NORMS * NORM
    gathered = 2 * (2 * dealt_out - STAYING) + 2 * NORMS * NORM if stage == 3 else 2 * ELEMENTS
    reduced = {"reduce_scatter": 2 * ELEMENTS} if stage == 3 else {"all_reduce": 2 * 2 * ELEMENTS}
    sent = {kind: nbytes * 7 // 8 for kind, nbytes in {"all_gather": gathered, **reduced}.items()}
    assert found.communication_bytes == sent
    assert any("DeepSpeed on CUDA" in line for line in found.unmodelled)


def test_one_gpu_sends_nothing() -> None:
    assert sent_bytes([("all_gather", 10), ("all_reduce", 10)], 1) == {"all_gather": 0, "all_reduce": 0}
    assert shared("none", gpus=1).communication_bytes is None


@pytest.mark.parametrize(
    ("shard", "method", "error", "said"),
    [
        ("none", "lora", BadInputError, "--shard ddp or fsdp"),
        ("frozen", "full", ContradictionError, "trains all"),
        ("fsdp", "qlora", UnsupportedError, "--shard ddp"),
        ("fsdp", "adalora", UnsupportedError, "--shard ddp"),
        ("zero3", "qlora", UnsupportedError, "--shard zero2"),
        ("zero1", "lora-plus", UnsupportedError, "--optimizer adamw"),
    ],
)
def test_what_does_not_go_together(shard: str, method: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        shared(shard, method)
