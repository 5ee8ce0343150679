"""LoRA-GA's gradient pass and what PEFT makes of it, and the simulation of both."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import INITIALISATION, PRE_PASS, PRE_PASS_BACKWARD, Category
from lorafa_prof.results.figures import LORA_GA_ITSELF
from lorafa_prof.simulate.cpu_platform import Cpu
from lorafa_prof.simulate.engine import predict
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.trace import Trace
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.adapted_layers import adapted_paths
from lorafa_prof.workload.lora_ga import (
    base_of,
    estimate,
    gradients_of,
    initialise,
)
from lorafa_prof.workload.models import batch
from lorafa_prof.workload.step import loss_of
from lorafa_prof.workload.versions import release
from tests.analytic.runs import run_of
from tests.support.profiled import allocations, kernels_of_known_size, made_by_operators

RUN: dict[str, Any] = {"dtype": "fp32", "layers": 1}


def of_lora(run: RunSpec) -> RunSpec:
    return run.replace(method=dataclasses.replace(run.method, name="lora"))


def simulated(run: RunSpec) -> Trace:
    platform = Cuda(DeviceTraits((8, 0), 108), "2.13.0")
    return record(run, platform).trace(3, platform)


# -- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_begin_at_the_gradient_s_singular_vectors(family: str) -> None:
    """And what the first update of A and B can reach is the best approximation of the gradient of rank 2 r.

    B's columns span the next r left singular vectors and A's rows the first r right ones, so that the two updates,
    B B^T g along B and g A^T A along A up to their scales, add up to g's first 2 r singular parts. Gradients here come
    from plain autograd, their singular vectors from a full decomposition.
    """
    torch.manual_seed(0)
    run = run_of(family, "lora-ga", **RUN)
    model, data = base_of(run, "cpu"), batch(run, "cpu")
    weights = {name: parameter for name, parameter in model.named_parameters() if name.endswith(".weight")}
    gradients = dict(
        zip(weights, torch.autograd.grad(loss_of(model, run, data, "cpu"), [*weights.values()]), strict=True)
    )
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    config = estimate(model, run, lambda: loss_of(model, run, data, "cpu").backward())  # type: ignore[no-untyped-call]
    adapted = initialise(model, run, config)
    layers = {path: layer for path, layer in adapted.named_modules() if isinstance(layer, LoraLayer)}
    assert len(layers) == (7 if family == "llama" else 4)
    for path, layer in layers.items():
        halves: Any = layer
        name = path.removeprefix("base_model.model.") + ".weight"
        turned = halves.fan_in_fan_out
        g = gradients[name].T if turned else gradients[name]
        a, b = halves.lora_A["default"].weight.detach(), halves.lora_B["default"].weight.detach()
        u, s, vh = torch.linalg.svd(g, full_matrices=False)
        best = u[:, :8] @ torch.diag(s[:8]) @ vh[:8]  # rank 4: 2 r = 8
        q_b, q_a = torch.linalg.qr(b).Q, torch.linalg.qr(a.T).Q
        reached = q_b @ q_b.T @ g + g @ q_a @ q_a.T
        assert float((reached - best).norm()) < 0.05 * float(g.norm())
        base = halves.get_base_layer().weight.detach()
        whole = (base.T if turned else base) + halves.scaling["default"] * b @ a
        torch.testing.assert_close(whole, before[name].T if turned else before[name], atol=1e-5, rtol=1e-5)


def test_nothing_of_the_pass_is_left() -> None:
    """No gradient of a weight, no field of PEFT's; the base is frozen."""
    work = Workload.build(run_of("llama", "lora-ga"), "cpu")
    assert gradients_of(work.model) == []
    trained = [name for name, p in work.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert all(p.grad is None for p in work.model.parameters())


# -- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("gpt2", {}), ("llama", {"checkpointing": "full"})])
def test_the_pass_is_the_allocator_s(family: str, options: dict[str, Any]) -> None:
    """Forward and backward of the pass, event by event as PyTorch's profiler hears them on the CPU.

    Nothing but the numbers of up to 16 bytes is left out, as in `tests/simulate/test_real_cpu_step.py`.
    """
    run = run_of(family, "lora-ga", **options)
    platform = Cpu(2)
    with kernels_of_known_size(2):
        model, data = base_of(run, "cpu"), batch(run, "cpu")
        # the averages and the hooks of PEFT come after the loss is gone
        real = [e.delta for e in made_by_operators(allocations(lambda: _estimated(model, run, data)))]
        trace = record(run, platform).trace(1, platform)
    events = trace.events[trace.position(PRE_PASS) : trace.position(INITIALISATION)]
    ours = [
        (block.nbytes if event >= 0 else -block.nbytes)
        for event, block in ((e, trace.blocks[e if e >= 0 else ~e]) for e in events)
    ]
    large = [delta for delta in ours if abs(delta) > 16]
    assert [delta for delta in real if abs(delta) > 16][: len(large)] == large


def _estimated(model: torch.nn.Module, run: RunSpec, data: dict[str, torch.Tensor]) -> None:
    estimate(model, run, lambda: loss_of(model, run, data, "cpu").backward())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_gradients_are_there_at_once(family: str) -> None:
    """When the backward of the pass is over: one of each adapted weight, whole; none is left when training begins."""
    run = run_of(family, "lora-ga")
    trace = simulated(run)
    at_end = [trace.blocks[i] for i in trace.alive_at(trace.position(INITIALISATION) - 1)]
    gradients = sorted(b.nbytes for b in at_end if b.category is Category.GRADIENTS)
    real = Workload.build(of_lora(run), "cpu").model
    adapted = [m for m in real.modules() if isinstance(m, LoraLayer)]
    assert gradients == sorted(layer.get_base_layer().weight.nbytes for layer in adapted)
    begun = trace.alive_at(trace.position("forward", 0) - 1)
    assert not [b for b in (trace.blocks[i] for i in begun) if b.category is Category.GRADIENTS]


@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("gpt2", {"checkpointing": "full"})])
def test_training_is_loras(family: str, options: dict[str, Any]) -> None:
    """The same peak in each phase of a step, and the verdict goes by the larger of pass and step."""
    run = run_of(family, "lora-ga", bs=1, seq=2, **options)
    predictions = predict(run), predict(of_lora(run))
    assert [LORA_GA_ITSELF in p.unmodelled for p in predictions] == [True, False]
    ours, loras = (p.memory for p in predictions)
    assert ours.moments is not None
    assert loras.moments is not None
    assert {name: ours.moments[name] for name in loras.moments if name != "loss"} == {
        name: high for name, high in loras.moments.items() if name != "loss"
    }
    assert {PRE_PASS, PRE_PASS_BACKWARD, INITIALISATION} <= set(ours.moments)
    assert ours.peak_allocated_bytes == max(ours.moments.values())


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [("llama", {"quant": "nf4"}, "nf4 weights have none"), ("llama", {"rank": 17}, "k_proj has 32: --rank 16 at most")],
)
def test_what_has_no_gradient_to_start_from(family: str, options: dict[str, Any], said: str) -> None:
    """It is refused, with the reason."""
    with pytest.raises(UnsupportedError, match=said):
        Workload.build(run_of(family, "lora-ga", **options), "meta")


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2"])
def test_experts_that_share_parameters(family: str) -> None:
    """PEFT estimates no gradient of them: all-linear leaves them out, which is said, and by name they are refused."""
    if release("peft") < (0, 21):
        pytest.skip("earlier PEFT takes other names for parts of experts")
    run = run_of(family, "lora-ga")
    paths = adapted_paths(Workload.build(run, "cpu").model)
    assert paths
    assert all(".self_attn." in path for path in paths)
    assert any("no experts, which share parameters" in line for line in predict(run).assumptions)
    with pytest.raises(UnsupportedError, match=r"no gradients of the experts of .* leave these out of --targets"):
        Workload.build(run_of(family, "lora-ga", targets=("q_proj", "gate")), "cpu")
