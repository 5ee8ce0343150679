"""Selective checkpointing: what a policy names is kept, by default products and attention; the rest runs again."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.errors import BadInputError, ContradictionError, UnsupportedError
from lorafa_prof.measure.flops import count_work
from lorafa_prof.measure.harness import Options, measure
from lorafa_prof.simulate.engine import predict as simulate
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import RECOMPUTE
from lorafa_prof.specs import KEPT_BY_DEFAULT, KeptGroup, RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.checkpointing import GROUPS, operators_kept
from tests.analytic.runs import run_of
from tests.simulate.test_real_cpu_step import THREADS, by_cascades, changes, live_at, reports, simulated as on_cpu
from tests.simulate.test_recompute import trained_from_its_input
from tests.support.profiled import kernels_of_known_size, profile_step


def selective(family: str, method: str, **options: Any) -> RunSpec:
    return run_of(family, method, checkpointing="selective", **options)


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llama", "full", {}),
        ("llama", "lora", {"dtype": "fp32"}),
        ("gpt2", "lora-fb", {"attn": "eager"}),
        ("gpt2", "qlora", {"quant": "nf4"}),
        ("qwen3", "vera", {}),
        ("llama", "lora", {"keep": ("attention",)}),
        ("llama", "lora-fb", {"keep": ("products", "attention", "functions", "casts")}),
        ("gpt2", "full", {"keep": ("softmax", "aten.native_layer_norm"), "attn": "eager"}),
        ("qwen3", "lora", {"keep": ("aten.mm", "aten.mul")}),
    ],
)
def test_every_event_of_a_real_step(family: str, method: str, options: dict[str, Any]) -> None:
    """The allocator's reports of a real step on the CPU are the simulated ones."""
    run = selective(family, method, **options)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        trace, first = on_cpu(run)
    ends = live_at(trace, first)
    del ends["peak"]
    assert ends == {name: getattr(step, name) for name in ends}
    assert by_cascades(changes(trace, first)) == by_cascades(reports(step))


@pytest.mark.parametrize("options", [{}, {"dtype": "fp32", "amp": True}, {"attn": "eager"}])
@pytest.mark.parametrize("keep", [KEPT_BY_DEFAULT, ("attention", "functions"), ("aten.rsqrt",)])
def test_what_is_computed_again(options: dict[str, Any], keep: tuple[str, ...]) -> None:
    """Nothing that is kept: it runs as often as without checkpointing, where the input is trained too."""
    kept_operators = operators_kept(keep)
    found = record(selective("llama", "lora", keep=keep, **options), Cuda(DeviceTraits((8, 0), 108), "2.13.0"))
    plain = record(
        run_of("llama", "lora", **options), Cuda(DeviceTraits((8, 0), 108), "2.13.0"), trained_from_its_input
    )
    again = {b.op for b in found.blocks if b.phase == RECOMPUTE}
    assert again
    assert not {f"aten.{op}" for op in again} & kept_operators
    kept = [Counter(o for o in r.operators if o.rpartition(".")[0] in kept_operators) for r in (found, plain)]
    assert kept[0] == kept[1]


def test_it_is_between_none_and_full() -> None:
    """Of what the forward keeps, and of the peak."""
    runs = [run_of("llama", "full", layers=5, bs=8, checkpointing=c) for c in ("none", "selective", "full")]
    kept = [simulate(run).memory.saved_activations_bytes or 0 for run in runs]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3


@pytest.mark.parametrize("keep", [KEPT_BY_DEFAULT, ("functions", "casts", "aten.mul", "aten.view", "aten.t")])
def test_gradients_are_the_same(keep: tuple[str, ...]) -> None:
    """To the bit: the same kernels run on the same numbers, whatever is kept, views among it."""
    found = []
    for options in ({}, {"checkpointing": "selective", "keep": keep}):
        work = Workload.build(run_of("llama", "full", **options), "cpu")
        work.loss().backward()  # type: ignore[no-untyped-call]  # torch's
        found.append([p.grad for p in work.model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=0.0, atol=0.0)


def test_more_is_kept_of_more_operators() -> None:
    """The bytes of each result: SwiGLU's inner width in bf16, a layer and token, for the function that is kept too."""
    runs = [selective("llama", "full", keep=keep) for keep in (("products",), ("products", "functions"))]
    less, more = (simulate(run).memory.saved_activations_bytes or 0 for run in runs)
    assert more - less == 2 * 3 * 22 * runs[0].spec.intermediate_size * 2


def test_what_runs_nowhere_is_said() -> None:
    """An operator that no layer runs is kept nowhere; of groups that is the rule."""
    said = simulate(selective("llama", "lora", keep=("attention", "softmax", "aten.gelu"))).assumptions
    assert "nothing of aten.gelu is kept: no such operator runs in this step" in said
    options = Options(device="cpu", steps=0, warmup=1, trace=False)
    done = measure(selective("llama", "lora", keep=("aten.mm", "aten.gelu")), options)
    assert "nothing of aten.gelu is kept: no such operator runs in this step" in done.assumptions


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (("product",), "did you mean products"),
        (("mm",), r"has its name in torch without overload, as aten\.mm"),
        (("aten.mm.default",), "without overload"),
        ((), "keeps at least one"),
        (("aten.mm", "aten.mm"), "named once"),
    ],
)
def test_names_that_are_none(keep: tuple[str, ...], said: str) -> None:
    """They are refused when the run is made, with those that there are."""
    with pytest.raises(BadInputError, match=said):
        selective("llama", "lora", keep=keep)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aten.sillu", r"did you mean .*aten\.silu"),
        ("aten.linear", "is made of other operators"),
        ("aten.add_", "writes into its input"),
    ],
)
def test_operators_of_which_nothing_can_be_kept(name: str, said: str) -> None:
    """They are refused when the model is built, which knows the installed torch."""
    with pytest.raises(BadInputError, match=said):
        Workload.build(selective("llama", "lora", keep=(name,)), "meta")


def test_a_policy_needs_selective_checkpointing() -> None:
    """Beside another kind it would do nothing."""
    with pytest.raises(ContradictionError, match="add --checkpointing selective"):
        run_of("llama", "lora", checkpointing="full", keep=("products",))


def test_groups_are_those_of_the_command_line() -> None:
    """No operator is in two of them, and all of aten's are the installed torch's."""
    assert set(GROUPS) == set(get_args(KeptGroup))
    every = [operator for group in GROUPS.values() for operator in group]
    assert len(set(every)) == len(every)
    assert all(hasattr(torch.ops.aten, name.removeprefix("aten.")) for name in every if name.startswith("aten."))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_arithmetic(attn: Any) -> None:
    """No FLOP more than without checkpointing, in a real step as in what advice rests on."""
    run = selective("llama", "lora", attn=attn)
    plain = count_work(trained_from_its_input(run.replace(checkpointing="none"), "cpu"))
    counted = count_work(Workload.build(run, "cpu"))
    assert counted.executed_flops == plain.executed_flops
    assert counted.model_flops == plain.model_flops
    if attn == "eager":  # which has no kernel of the CPU's own
        assert ClosedForms().executed_flops(run) == counted.executed_flops


def test_closed_forms_have_one_policy() -> None:
    """The default; another is refused, and the engine named that does it."""
    run = selective("llama", "lora", keep=("attention",))
    with pytest.raises(UnsupportedError, match=r"keeps attention; .*--keep products,attention \(--engine simulate"):
        predict(run)
    assert ClosedForms().executed_flops(run) is None


@pytest.mark.parametrize("engine", [predict, simulate])
def test_adalora_is_refused(engine: Any) -> None:
    """By all engines, since its real step is none."""
    with pytest.raises(ContradictionError, match=r"AdaLoRA adds .* in place.*--checkpointing full"):
        engine(selective("llama", "adalora"))


def test_what_adalora_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT adds to what is kept: PyTorch notices where that is a view, elsewhere the gradients are others."""
    monkeypatch.setattr("lorafa_prof.workload.step.refuse_contradictions", lambda run: None)
    with pytest.raises(RuntimeError, match="has been mutated"):
        adalora_gradients(selective("gpt2", "adalora", dtype="fp32"))
    run = selective("llama", "adalora", dtype="fp32")
    found = [adalora_gradients(run.replace(checkpointing=c)) for c in ("full", "none", "selective")]
    assert all(torch.equal(*pair) for pair in zip(*found[:2], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(*found[1:], strict=True))


def adalora_gradients(run: RunSpec) -> list[torch.Tensor]:
    """Gradients of adapters that are no longer zero."""
    work = Workload.build(run, "cpu")
    trained = [p for p in work.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.01)
    work.loss().backward()  # type: ignore[no-untyped-call]  # torch's
    return [p.grad for p in trained if p.grad is not None]
