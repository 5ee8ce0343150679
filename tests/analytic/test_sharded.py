"""Closed forms of several GPUs against arithmetic done by hand: the paper's sharded base, ZeRO's stages, rings."""

from __future__ import annotations

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError, ContradictionError, UnsupportedError
from lorafa_prof.results import Prediction
from lorafa_prof.sharding import sent_bytes, share_of
from lorafa_prof.specs import MethodSpec, RunSpec

GB = 10**9
LLAMA = load_model("llama2-7b")


def shared(shard: str, method: str = "lora", gpus: int = 8, name: str = "llama2-7b") -> Prediction:
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
    assert (found.memory.weights_bytes or 0) / GB == pytest.approx(16.32, abs=0.005)
    assert found.ledger is not None
    gathered = max(item.nbytes for item in found.ledger.items if item.tensor == "all-gather buffer")
    assert gathered / GB == pytest.approx(1.619, abs=0.0005)
    for part in ("adapter_bytes", "optimizer_bytes", "trained_gradients_bytes"):
        assert getattr(found.memory, part) == getattr(alone.memory, part)


def test_ddp_pays_for_adapters_alone() -> None:
    """2 g phi (G-1)/G: fp32 gradients of the adapters, twice around the ring."""
    found = shared("ddp")
    trained = found.parameters["trainable"]
    assert found.communication_bytes is not None
    assert found.communication_bytes["all_reduce"] == 2 * 4 * trained * 7 // 8


def test_fsdp_of_full_fine_tuning_sends_three_times_the_weights() -> None:
    """3 p_w Psi (G-1)/G, but for what is outside the blocks: that is gathered once."""
    found = shared("fsdp", "full")
    assert found.communication_bytes is not None
    outside = 2 * LLAMA.vocab_size * LLAMA.hidden_size + LLAMA.hidden_size
    whole = (3 * found.parameters["total"] - outside) * 2
    assert sum(found.communication_bytes.values()) == whole * 7 // 8


def test_stages_of_zero() -> None:
    """Of n trained elements: 12 bytes n/G of states in all stages; whole gradients in the first, n/G in the others."""
    for stage in (1, 2, 3):
        found = shared(f"zero{stage}", "full")
        n = found.parameters["trainable"]
        assert found.memory.optimizer_bytes == pytest.approx(12 * share_of(n, 8), abs=3 * 512)
        assert found.memory.trained_gradients_bytes == pytest.approx(2 * (n if stage == 1 else share_of(n, 8)), abs=2e5)
        whole = 2 * n if stage < 3 else 2 * n / 8
        assert found.memory.weights_bytes == pytest.approx(whole, rel=1e-3)
        assert any("DeepSpeed itself" in line for line in found.unmodelled)
    assert shared("zero3", "full").communication_bytes is not None


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
