"""Adapters in a share of the layers: closed forms and the real step on meta tensors say the same bytes.

Below the lowest adapted layer autograd keeps nothing and no backward runs; above it frozen layers without adapters pass
gradients on. With checkpointing the embedding's output requires gradients, and the backward goes all the way down.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.simulate.cpu_platform import Cpu
from lorafa_prof.simulate.ledgers import saved_bytes
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.adapted_layers import adapted_paths, check_layers, layer_of
from tests.analytic.runs import EXPERTS, run_of
from tests.simulate.test_against_analytic import A100, FAMILIES, OPTIONS, closed_form, simulated
from tests.simulate.test_real_cpu_step import THREADS, changes, in_order, live_at, reports
from tests.support.profiled import kernels_of_known_size, profile_step

DEPTH = 10
#: The last few, the first few, a middle with more than four layers on either side, and without any order.
PATTERNS: dict[str, tuple[int, ...]] = {
    "last": tuple(range(5, 10)),
    "first": tuple(range(5)),
    "middle": (5, 6),
    "one": (9,),
    "scattered": (1, 2, 8),
}


def cases() -> list[Any]:
    """Every family, each with one pattern and one method a time; the whole product is left to the slow tests."""
    made = []
    for i, family in enumerate((*FAMILIES, "mixtral", "deepseek_v2-flash")):
        for j, method in enumerate(("lora", "lora-fa", "vera")):
            for k, (name, options) in enumerate(OPTIONS.items()):
                for n, (pattern, layers) in enumerate(PATTERNS.items()):
                    marks = () if j == i % 3 and k == (i // 3 + n) % 4 and n == i % 5 else pytest.mark.slow
                    case = f"{family}-{method}-{name}-{pattern}"
                    made.append(pytest.param(family, method, options, layers, id=case, marks=marks))
    return made


def adapted_run(family: str, method: str, adapted: tuple[int, ...], **options: Any) -> RunSpec:
    """A run of a deep tiny model; experts, which PEFT adapts in all layers, are left out."""
    if family in EXPERTS:
        options["targets"] = ("qv",)
    return run_of(family, method, layers=DEPTH, adapted=adapted, **options)


@pytest.mark.parametrize(("family", "method", "options", "adapted"), cases())
def test_tiny_models(family: str, method: str, options: dict[str, Any], adapted: tuple[int, ...]) -> None:
    """With a vocabulary so large that the loss is the peak: the same bytes, part by part."""
    run = adapted_run(family, method, adapted, changes={"vocab_size": 6000}, optimizer="adamw", **options)
    assert simulated(run)[0] == closed_form(run)


@pytest.mark.parametrize(
    ("family", "pattern"),
    [("llama", "last"), ("t5", "last"), ("roberta", "middle"), ("gemma2", "first"), ("gpt2", "scattered")],
)
def test_what_the_forward_leaves(family: str, pattern: str) -> None:
    """Autograd keeps the same, also where the loss is not the peak."""
    run, platform = adapted_run(family, "lora", PATTERNS[pattern]), Cuda(A100, "2.13.0")
    assert saved_bytes(record(run, platform).trace(2, platform)) == predict(run).memory.saved_activations_bytes


@pytest.mark.parametrize(
    ("family", "method", "pattern"), [("llama", "lora", "last"), ("t5", "lora-fa", "first"), ("roberta", "vera", "one")]
)
def test_parts_of_checkpointed_layers(family: str, method: str, pattern: str) -> None:
    """With SGD and eager attention the peak is in a layer's recomputation or backward, be it one without adapters."""
    run = adapted_run(family, method, PATTERNS[pattern], checkpointing="full", optimizer="sgd", attn="eager")
    parts, where = simulated(run)
    assert parts == closed_form(run)
    assert where.startswith(predict(run).memory.peak_moment)


@pytest.mark.parametrize(
    ("model", "method", "share"),
    [
        ("llama2-7b", "lora-fa", 50),
        pytest.param("llama2-7b", "lora", 25, marks=pytest.mark.slow),
        pytest.param("t5-base", "lora", 50, marks=pytest.mark.slow),
        pytest.param("qwen3-8b", "vera", 75, marks=pytest.mark.slow),
    ],
)
def test_models_of_full_size(model: str, method: str, share: int) -> None:
    """The last layers of real configurations."""
    spec = load_model(model)
    last = tuple(range(spec.depth - spec.depth * share // 100, spec.depth))
    run = RunSpec(model=spec, method=MethodSpec(name=method, layers=last), bs=4, seq=512)
    assert simulated(run)[0] == closed_form(run)


@pytest.mark.parametrize(
    ("family", "method", "adapted", "options"),
    [
        ("llama", "lora", (3, 4), {}),
        ("llama", "lora-fa", (0, 2), {"optimizer": "adamw"}),
        ("gpt2", "lora-fa", (4,), {"optimizer": "sgd"}),
        ("t5", "lora", (2, 3), {"attn": "eager"}),
        ("roberta", "vera", (1, 2), {"checkpointing": "full"}),
        ("gemma2", "dora", (4,), {}),
    ],
)
def test_every_event_is_the_allocator_s(
    family: str, method: str, adapted: tuple[int, ...], options: dict[str, Any]
) -> None:
    """A real step on the CPU, as PyTorch's profiler hears it: the same events, ends of phases and peak."""
    run = run_of(family, method, layers=5, adapted=adapted, **options)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        platform = Cpu(THREADS)
        trace = record(run, platform).trace(2, platform)
    first = trace.position("forward")
    real = {name: getattr(step, name) for name in ("after_forward", "after_backward", "after_optimizer", "end")}
    assert live_at(trace, first) == {**real, "peak": step.peak.live}
    assert in_order(changes(trace, first)) == in_order(reports(step))


# -- what PEFT does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method", "linears"),
    [
        ("llama", "lora", 7), ("gpt2", "lora-fa", 4), ("roberta", "lora", 6), ("t5", "adalora", 6 + 10),
        ("llama", "vera", 7), ("gpt2", "dora", 4), ("mixtral", "vera", 4),
    ],
)  # fmt: skip
def test_peft_adapts_these_layers(family: str, method: str, linears: int) -> None:
    """All linear layers of each, in T5 of encoder and decoder, and of no other."""
    work = Workload.build(run_of(family, method, layers=5, adapted=(1, 3)), "meta")
    paths = adapted_paths(work.model)
    assert {layer_of(path) for path in paths} == {1, 3}
    assert len(paths) == 2 * linears


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "w1", "w2", "w3")])
def test_experts_are_adapted_in_all_layers_or_none(targets: tuple[str, ...]) -> None:
    """PEFT's layers_to_transform does not reach parameters: refused, and not done otherwise than asked."""
    with pytest.raises(UnsupportedError, match="whatever layers_to_transform says"):
        Workload.build(run_of("mixtral", "lora", layers=3, adapted=(1,), targets=targets), "meta")


def test_a_name_of_nothing_there() -> None:
    """The head is in no layer, and PEFT would leave it out without a word."""
    with pytest.raises(BadInputError, match="no module 'lm_head' is in the layers 1 of 3"):
        Workload.build(run_of("llama", "lora", layers=3, adapted=(1,), targets=("q_proj", "lm_head")), "meta")


def test_what_peft_does_otherwise_is_an_error() -> None:
    """Adapters in a layer that was not asked for are found by the names of the real modules."""
    asked = run_of("llama", "lora", layers=3, adapted=(1,))
    with pytest.raises(UnsupportedError, match=r"it adapts model\.layers\.0\.mlp\.down_proj too"):
        check_layers(Workload.build(run_of("llama", "lora", layers=3), "meta").model, asked)
