"""Head and loss in one: it computes the same, and its chunks cost what the closed forms say and a real step takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.figures import RunFigures
from lorafa_prof.analytic.plan import plan, regime
from lorafa_prof.analytic.workspaces import cublas_workspaces
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.measure.flops import count_work
from lorafa_prof.simulate.engine import predict as simulate
from lorafa_prof.workload import Workload
from lorafa_prof.workload.fused_loss import chunk_of
from tests.analytic.runs import run_of
from tests.simulate.test_against_analytic import closed_form, simulated
from tests.simulate.test_real_cpu_step import THREADS, by_cascades, changes, live_at, reports, simulated as on_cpu
from tests.support.profiled import kernels_of_known_size, profile_step


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llama", "full", {"bs": 1}),
        ("llama", "lora", {}),
        ("gpt2", "full", {}),
        ("granite", "full", {}),
        ("mixtral", "lora", {}),
    ],
)
def test_it_is_the_same_loss(family: str, method: str, options: dict[str, Any]) -> None:
    """Loss and every gradient of transformers' own, some labels ignored; in fp32, to its rounding."""
    run = run_of(family, method, dtype="fp32", **options)
    found = []
    for loss in ("hf", "fused"):
        work = Workload.build(run.replace(loss=loss), "cpu")
        work.batch["labels"][:, 3:7] = -100
        value = work.loss()
        value.backward()  # type: ignore[no-untyped-call]  # torch's
        grads = {name: p.grad for name, p in work.model.named_parameters() if p.grad is not None}
        found.append((value.detach(), grads))
    (plain, plain_grads), (fused, fused_grads) = found
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=0.0)
    assert fused_grads.keys() == plain_grads.keys()
    for name, grad in plain_grads.items():
        torch.testing.assert_close(fused_grads[name], grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "hidden", "chunk"),
    [(16384, 32000, 4096, 2048), (4096, 128256, 4096, 128), (66, 6000, 48, 1), (66, 40, 48, 66), (7, 48, 48, 7)],
)
def test_chunks(tokens: int, vocabulary: int, hidden: int, chunk: int) -> None:
    """Liger's own example first: 16,384 tokens, 32,000 words, width 4096 are chunks of 2048."""
    assert chunk_of(tokens, vocabulary, hidden) == chunk


RUNS: list[Any] = [
    ("llama", "lora", {}),
    ("llama", "full", {}),
    ("llama", "full", {"dtype": "fp32", "bs": 1}),
    ("gpt2", "full", {}),
    ("gpt2", "lora", {"amp": True}),
    ("qwen3", "lora-fa", {"dtype": "fp32", "amp": True}),
    ("granite", "lora", {"checkpointing": "full"}),
    ("mixtral", "lora", {}),
    ("phi3", "qlora", {"quant": "nf4"}),
]


@pytest.mark.parametrize(("family", "method", "options"), RUNS)
@pytest.mark.parametrize("vocabulary", [6000, 300])
def test_both_engines_agree(family: str, method: str, options: dict[str, Any], vocabulary: int) -> None:
    """Parts at the peak, bytes kept by the forward, and the peak within the loss."""
    run = run_of(
        family, method, layers=1, changes={"vocab_size": vocabulary}, optimizer="sgd", attn="eager", loss="fused",
        **{"bs": 5, **options},
    )  # fmt: skip
    assert simulated(run)[0] == closed_form(run)
    closed, recorded = predict(run).memory, simulate(run).memory
    assert closed.saved_activations_bytes == recorded.saved_activations_bytes


def test_it_saves_the_logits() -> None:
    """Of many words the logits of all tokens are the peak; of chunks neither they nor their gradients are."""
    run = run_of("llama", "lora", changes={"vocab_size": 6000}, optimizer="adamw")
    plain, fused = predict(run).memory, predict(run.replace(loss="fused")).memory
    assert plain.peak_allocated_bytes is not None
    assert fused.peak_allocated_bytes is not None
    all_logits = 3 * 22 * 6000 * (2 + 4 + 4 + 4)
    assert plain.peak_allocated_bytes - fused.peak_allocated_bytes > all_logits // 2


@pytest.mark.parametrize(("method", "options"), [("full", {}), ("lora", {"dtype": "fp32"}), ("lora", {"bs": 1})])
def test_every_event_of_a_real_step(method: str, options: dict[str, Any]) -> None:
    """The allocator's reports of a real step on the CPU are the simulated ones."""
    run = run_of("llama", method, loss="fused", changes={"vocab_size": 300}, **options)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        trace, first = on_cpu(run)
    ends = live_at(trace, first)
    assert ends == {name: getattr(step, name) for name in list(ends)[:-1]} | {"peak": step.peak.live}
    assert by_cascades(changes(trace, first)) == by_cascades(reports(step))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_arithmetic(method: str) -> None:
    """The same products, those of the head's backward made in its forward: as torch's counter finds in a real step."""
    run = run_of("llama", method, loss="fused", attn="eager")
    counted = count_work(Workload.build(run, "cpu"))
    said = predict(run).throughput
    assert (said.model_flops, said.executed_flops) == (counted.model_flops, counted.executed_flops)
    assert said == predict(run.replace(loss="hf")).throughput


def test_grids() -> None:
    """Arrays of batches and sequences give what single configurations do, chunks being no polynomial of them."""
    run = run_of("llama", "lora", changes={"vocab_size": 3000}, loss="fused", attn="eager", optimizer="sgd")
    of_many = plan(regime(run))
    sizes = [(2, 5), (3, 22), (4, 40), (9, 61), (64, 64)]
    found = of_many.peak_allocated([bs for bs, _ in sizes], [seq for _, seq in sizes])
    assert list(found) == [of_many.peak(bs, seq).allocated for bs, seq in sizes]
    bs, seq = (np.array(column) for column in zip(*sizes, strict=True))
    figures = RunFigures(run).at(bs, seq)
    workspaces = cublas_workspaces(None)
    single = [predict(run.replace(bs=b, seq=s)).memory for b, s in sizes]
    assert [int(peak) + workspaces for peak in figures.peak_allocated] == [m.peak_allocated_bytes for m in single]
    assert [int(kept) for kept in figures.saved_activations] == [m.saved_activations_bytes for m in single]


@pytest.mark.parametrize(
    ("family", "method", "options", "said"),
    [
        ("gemma2", "lora", {}, "capped logits"),
        ("roberta", "lora", {}, "seq-cls"),
        ("t5", "full", {}, "seq2seq-lm"),
        ("llama", "lora", {"targets": ("lm_head", "q_proj")}, "adapted head"),
        ("llama", "full", {"amp": True}, "under autocast"),
    ],
)
def test_refusals(family: str, method: str, options: dict[str, Any], said: str) -> None:
    """What is not built or modelled is refused by both engines."""
    run = run_of(family, method, loss="fused", **options)
    for engine in (predict, simulate):
        with pytest.raises(UnsupportedError, match=said):
            engine(run)
