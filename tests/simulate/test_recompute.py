"""What checkpointing computes once more in the backward is told apart from it, and what is kept is an activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lorafa_prof.ledger import Category
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recorder import Recorder
from lorafa_prof.simulate.recording import RECOMPUTE, Recording
from lorafa_prof.simulate.trace import Block
from lorafa_prof.simulate.works import checkpointing_lines
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.modules import ModulePaths
from tests.analytic.runs import run_of

A100 = DeviceTraits((8, 0), 108)


def recorded(run: RunSpec, build: Callable[[RunSpec, str], Workload] = Workload.build) -> Recording:
    return record(run, Cuda(A100, "2.13.0"), build)


def kept(recording: Recording, phase: str) -> Counter[tuple[Any, ...]]:
    """What the layers keep of what they made in a phase."""
    return Counter(
        (b.module, b.op, b.shape, b.dtype)
        for b in recording.blocks
        if b.category is Category.ACTIVATIONS and b.phase == phase and "layers." in b.module
    )


def trained_from_its_input(run: RunSpec, device: str) -> Workload:
    """Build a workload in which the first layer's input needs a gradient, as checkpointing wants it with adapters."""
    work = Workload.build(run, device)
    model: Any = work.model
    if run.method.name != "full":
        model.enable_input_require_grads()
    return work


def checkpointed_by(reentrant: bool) -> Callable[[RunSpec, str], Workload]:
    """Build a workload whose model is checkpointed by one of PyTorch's two ways, whatever the release's default."""

    def build(run: RunSpec, device: str) -> Workload:
        work = trained_from_its_input(run, device)
        model: Any = work.model
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5 on
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
        return work

    return build


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("method", ["full", "lora", "lora-fa", "qlora"])
@pytest.mark.parametrize("family", ["llama", "llama-bias", "gemma2"])
def test_a_layer_keeps_the_same_when_it_is_recomputed(family: str, method: str, reentrant: bool) -> None:
    """What the recomputation leaves is what the forward leaves where nothing is checkpointed.

    Reentrant checkpointing also holds each layer's output until its backward is done. Otherwise these families keep
    none, since their norms keep a copy in fp32.
    """
    run = run_of(family, method, attn="eager")
    plain = kept(recorded(run, trained_from_its_input), "forward")
    again = kept(recorded(run, checkpointed_by(reentrant)), RECOMPUTE)
    outputs = Counter(
        (f"model.layers.{i}", "add.Tensor", (run.bs, run.seq, run.model.hidden_size), run.dtype)
        for i in range(run.model.num_layers)
    )
    assert again == (plain + outputs if reentrant else plain)


def test_the_backward_itself_is_no_recomputation() -> None:
    """The gradient of the loss, made by the caller, and formulas' results are the backward's; without checkpointing all
    is.
    """
    blocks = recorded(run_of("llama", "lora", checkpointing="full")).blocks
    of = {phase: [b for b in blocks if b.phase == phase] for phase in ("backward", RECOMPUTE)}
    assert any(b.op == "ones_like" and b.shape == () for b in of["backward"])
    assert not any("backward" in b.op for b in of[RECOMPUTE])
    assert not any(b.category is Category.GRADIENTS for b in of[RECOMPUTE])
    assert not any(b.phase == RECOMPUTE for b in recorded(run_of("llama", "lora")).blocks)


def test_it_lies_within_the_backward() -> None:
    """A trace's marks are the phases of the step; only the blocks say that they were recomputed."""
    platform = Cuda(A100, "2.13.0")
    trace = recorded(run_of("llama", "lora", checkpointing="full")).trace(2, platform)
    phases = [phase for _, phase in trace.marks]
    step = ["forward", "backward", "optimizer", "zero_grad"]
    assert phases == ["load", *step, *step, "end"]
    start, stop = trace.position("backward"), trace.position("optimizer")
    born = {e for e in trace.events[start:stop] if e >= 0}
    assert {trace.blocks[e].phase for e in born} == {"backward", RECOMPUTE}
    buffers = [b for b in trace.blocks if b.category is Category.WORKSPACES and "cuBLAS" in b.op]
    assert len(buffers) == 2  # recomputing runs in autograd's thread, whose workspace it shares


class Functional(torch.nn.Module):
    """A checkpointed region with no module inside, as some models have that checkpoint a bound `forward`."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(8, 8, device="meta"))
        self.reentrant = reentrant

    def region(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x.mm(self.weight)
        shifted = hidden + 1  # not kept: sin keeps its input, which is the product
        del shifted
        return hidden.sin().cos()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: Any = checkpoint(self.region, x, use_reentrant=self.reentrant)
        return out.sum()


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_a_region_without_modules(reentrant: bool) -> None:
    """Gradients are enabled in it, as they are in no formula of autograd."""
    found = {b.op: b.category for b in blocks_of(Functional(reentrant)) if b.phase == RECOMPUTE}
    expected = {"mm": Category.ACTIVATIONS, "add.Tensor": Category.TEMPORARIES, "sin": Category.ACTIVATIONS}
    # the reentrant way holds the region's output until its backward is done
    assert found == expected | ({"cos": Category.ACTIVATIONS} if reentrant else {})


def blocks_of(model: torch.nn.Module) -> list[Block]:
    """Record forward and backward of a model of our own."""
    x = torch.empty(4, 8, device="meta", requires_grad=True)
    with ModulePaths(model) as paths, Recorder(paths, Cuda(A100, "2.13.0")) as recorder:
        recorder.enter_phase("forward")
        loss = model(x)
        recorder.settle_alive(["forward"], Category.ACTIVATIONS)
        recorder.enter_phase("backward")
        loss.backward()
        return recorder.blocks()


def test_checkpointing_without_effect_is_said() -> None:
    """A model whose code leaves it out, as GPT-BigCode's in transformers 4.57.1 does, is told of, and no other."""
    run = run_of("llama", "lora", checkpointing="full")

    def build(run: RunSpec, device: str) -> Workload:
        return replace(Workload.build(run.replace(checkpointing="none"), device), run=run)

    without = recorded(run, build)
    [line] = checkpointing_lines(without)
    assert line.startswith("--checkpointing full has no effect: the installed transformers runs no layer of llama once")
    assert checkpointing_lines(recorded(run)) == ()
    assert checkpointing_lines(recorded(run.replace(checkpointing="none"))) == ()
