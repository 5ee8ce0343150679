"""The work of a step in closed form against that of a recorded step: the same products, the same bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.works import StepWorks, step_works
from lorafa_prof.catalog import load_model
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.works import step_works as recorded_works
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.speed.work import OpWork
from tests.analytic.runs import run_of

A100 = DeviceTraits((8, 0), 108)
#: What the closed forms leave out of the bytes: masks, labels, rotary tables, one number a token in the backward of
#: norms. None of it depends on the width (48 here, 4096 for a model that is used).
TINY, REAL = 0.07, 2e-5

PASSES = ("forward", "loss", "backward", "recompute")


def recorded(run: RunSpec) -> list[OpWork]:
    """The work of a recorded step's passes."""
    found = recorded_works(record(run, Cuda(A100, "2.13.0"), notes_all=True), A100)
    return [work for work in found if work.phase in PASSES]


def shapes(works: list[OpWork]) -> Counter[Any]:
    """Products and attention by phase, dtype and shape; AdaLoRA's regulariser counts as forward or as loss."""
    phases = {"loss": "forward"}
    return Counter(
        (phases.get(w.phase, w.phase), w.dtype, w.product or w.attention) for w in works if w.kind != "memory"
    )


def moved(works: list[OpWork], kind: str) -> dict[str, int]:
    """Bytes of one kind by phase."""
    found = dict.fromkeys(PASSES, 0)
    for work in works:
        found[work.phase] += work.moved_bytes if work.kind == kind else 0
    return found


def compare(run: RunSpec, tolerance: float) -> None:
    """The multiset of shapes is equal, so are the bytes of products and of attention without a mask, and the number of
    their kernels; all other bytes are within the tolerance.
    """
    closed, seen = [work for work in step_works(run) if work.phase in PASSES], recorded(run)
    assert shapes(closed) == shapes(seen)
    assert sum(moved(closed, "matmul").values()) == sum(moved(seen, "matmul").values())
    if all(work.attention.causal for work in closed if work.attention is not None):
        assert moved(closed, "attention") == moved(seen, "attention")
    assert sum(w.waits for w in closed) == sum(w.waits for w in seen if w.op.startswith("bitsandbytes"))
    for kind in ("matmul", "attention"):
        assert sum(w.kernels for w in closed if w.kind == kind) == sum(w.kernels for w in seen if w.kind == kind)
    ours, theirs = (sum(moved(works, "memory").values()) for works in (closed, seen))
    assert ours == pytest.approx(theirs, rel=tolerance)


TINY_RUNS = [
    ("llama", "lora", {}), ("llama", "lora-fa", {"checkpointing": "full"}), ("llama", "vera", {}),
    ("llama-bias", "full", {}), ("qwen3", "lora", {"attn": "eager"}), ("llama", "lora", {"amp": True, "dtype": "fp32"}),
    ("gpt2", "lora", {}), ("t5", "lora", {}), ("mistral-window", "lora", {}), ("llama", "dora", {}),
    ("llama", "lora", {"loss": "fused"}), ("llama", "full", {"loss": "fused"}), ("mixtral", "lora", {}),
    ("llama", "adalora", {}), ("gpt2", "full", {}), ("gpt2", "lora-fa", {"adapter_dtype": "bf16"}),
    ("llama", "lora-fa", {"dropout": 0.1}), ("llama", "lora-fa-peft", {}), ("llama", "full", {"dtype": "fp32"}),
    ("llama", "lora", {"quant": "int8"}), ("gpt2", "lora-fa", {"quant": "int8", "dtype": "fp16"}),
    ("llama", "lora", {"quant": "int8", "amp": True, "dtype": "fp32", "checkpointing": "full"}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "options"), TINY_RUNS)
def test_the_work_is_that_of_a_recorded_step(family: str, method: str, options: dict[str, Any]) -> None:
    """Grouped heads and not, adapters, recomputation, unfused attention, autocast; biases and full fine-tuning; 8 bits.
    Layers of 8 bits let the host wait as often.
    """
    if "quant" in options:
        pytest.importorskip("bitsandbytes")
    compare(run_of(family, method, **options), TINY)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "lora-fa", "qlora", "vera"])
def test_llama2_7b(method: str) -> None:
    """32 layers: four are traced."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    compare(RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name=method), bs=8, seq=1024), REAL)


def test_flops_add_up_to_those_of_the_prediction() -> None:
    """Of all models that are traced in part: the operators' FLOPs are the plan's, by phase and by name."""
    for name, method in (
        ("llama3-8b", "lora"),
        ("gpt2", "full"),
        ("mixtral-8x7b", "lora-fa-peft"),
        ("t5-base", "lora"),
    ):
        run = RunSpec(model=load_model(name), method=MethodSpec(name=method), bs=2, seq=256, checkpointing="full")
        works = [work for work in step_works(run) if work.phase != "optimizer"]  # no model's arithmetic
        said = predict(run).throughput
        once = [work for work in works if work.phase != "recompute"]
        assert sum(work.flops for work in works) == said.executed_flops
        assert sum(work.needed_flops for work in once) == said.model_flops
        assert sum(work.causal_flops for work in works) == said.executed_flops_causal


def test_another_shape_needs_no_other_trace() -> None:
    """One trace stands for every batch from two on and every length."""
    run = RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name="lora"), bs=8, seq=1024)
    assert StepWorks(run).at(3, 512) == step_works(run.replace(bs=3, seq=512))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-fused", "sgd"])
def test_the_optimizer_moves_what_it_moves(optimizer: str) -> None:
    """Operators in order, their bytes and launches; step counters on the device, 4 bytes each, are left out."""
    run = run_of("llama", "lora", optimizer=optimizer)
    seen = recorded_works(record(run, Cuda(A100, "2.13.0"), notes_all=True), A100)
    closed = [work for work in step_works(run) if work.phase == "optimizer"]
    theirs = [work for work in seen if work.phase == "optimizer" and work.moved_bytes > 1000]
    assert [(w.op, w.dtype, w.kernels) for w in closed] == [(w.op, w.dtype, w.kernels) for w in theirs]
    for ours, other in zip(closed, theirs, strict=True):
        assert other.moved_bytes - ours.moved_bytes in (0, 4 * 28)


#: Optimizers that go through the parameters one by one, with moments in 8 bits and small ones in 32, weights in 16 bits
#: and 32, matrices and vectors; AdaLoRA's importances.
ONE_BY_ONE = [
    ("llama", "lora", {"optimizer": "adamw-8bit", "rank": 128}), ("llama", "lora", {"optimizer": "adamw-8bit"}),
    ("llama", "lora", {"optimizer": "paged-adamw-8bit", "rank": 3000}),
    ("llama", "lora", {"optimizer": "paged-adamw", "rank": 3000}), ("llama-bias", "full", {"optimizer": "paged-adamw"}),
    ("llama", "lora-plus", {"optimizer": "adamw-8bit"}),
    ("llama-bias", "full", {"optimizer": "adafactor"}), ("llama", "lora", {"optimizer": "adafactor"}),
    ("llama", "lora-fa-peft", {}),
    ("llama", "lora-fa-peft", {"adapter_dtype": "bf16"}), ("llama", "adalora", {}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "options"), ONE_BY_ONE)
def test_the_optimizer_moves_what_it_moves_tensor_by_tensor(family: str, method: str, options: dict[str, Any]) -> None:
    """Every operator that moves anything, with its shapes, its bytes and its kernels."""
    if options.get("optimizer", "").endswith(("8bit", "paged-adamw")):
        pytest.importorskip("bitsandbytes")
    run = run_of(family, method, **options)
    seen = recorded_works(record(run, Cuda(A100, "2.13.0"), notes_all=True), A100)

    def told(works: list[OpWork]) -> Counter[Any]:
        return Counter(
            (w.op, w.dtype, w.read_bytes, w.written_bytes, w.kernels, w.flops, w.product)
            for w in works
            if w.phase == "optimizer" and w.moved_bytes
        )

    assert told(step_works(run)) == told(seen)


def test_clipping_moves_all_gradients_twice() -> None:
    """The norms of all gradients, and their scaling; what it does with the norms themselves is left out."""
    run = run_of("llama", "lora", clip=True)
    seen = recorded_works(record(run, Cuda(A100, "2.13.0"), notes_all=True), A100)
    ours, theirs = (
        [(w.op, w.read_bytes, w.written_bytes, w.kernels) for w in works if w.phase == "optimizer"][:count]
        for works, count in ((step_works(run), 2), ([w for w in seen if w.moved_bytes > 1000], 2))
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("family", "options"), [("llama", {}), ("gpt2", {"adapter_dtype": "bf16"}), ("roberta", {"targets": ("query",)})]
)
def test_lora_fa_steps_module_by_module_of_one_shape(family: str, options: dict[str, Any]) -> None:
    """Stacked gradients by stacked corrections, and the fused kernel; copies of 16-bit weights; a head of no pair."""
    run = run_of(family, "lora-fa", **options)
    seen = recorded_works(record(run, Cuda(A100, "2.13.0"), notes_all=True), A100)
    theirs = [work for work in seen if work.phase == "optimizer" and work.moved_bytes > 0]
    closed = [work for work in step_works(run) if work.phase == "optimizer"]

    def all_of(works: list[OpWork]) -> Counter[Any]:
        return Counter((w.op, w.dtype, w.flops, w.product, w.written_bytes, w.kernels) for w in works)

    assert all_of(closed) == all_of(theirs)
    read, others = sum(work.read_bytes for work in closed), sum(work.read_bytes for work in theirs)
    counts = 4 * sum(w.read_bytes > 0 and w.op == "aten._fused_adamw_" for w in closed)
    assert 0 <= others - read <= 20 * counts  # the count of steps that each parameter is given


def test_micro_batches_are_listed_each() -> None:
    """Three of them are three times the operators of one."""
    run = run_of("llama", "lora", accumulation=3)
    assert sum(work.phase != "optimizer" for work in step_works(run)) % 3 == 0
    assert sum(work.flops for work in step_works(run)) == predict(run).throughput.executed_flops
