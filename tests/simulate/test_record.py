"""Recordings: what repeats, what does not, and what cannot be recorded at all."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from lorafa_prof.catalog import load_device
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import Category
from lorafa_prof.simulate import engine
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import trace_of
from lorafa_prof.simulate.trace import Block
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.naming import short_name
from lorafa_prof.workload.versions import release
from tests.analytic.runs import HAS_LORAFA, run_of


def platform(capability: tuple[int, int] = (8, 0)) -> Cuda:
    return Cuda(DeviceTraits(capability, 108), "2.13.0")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"quant": "int8"}),
        ("llama", {"quant": "nf4-dq", "prepare_kbit": "peft", "checkpointing": "full"}),
        ("llama", {"optimizer": "adamw-8bit"}),
        ("gpt2", {"quant": "nf4", "prepare_kbit": "trl", "amp": True}),
        ("llama-bias", {"quant": "nf4", "dtype": "fp16"}),
        ("gpt2", {"quant": "int8"}),
    ],
    ids=["int8", "prepared nf4", "8-bit optimizer", "prepared biases", "fp16 biases", "int8 biases"],
)
def test_bitsandbytes_steps_repeat(family: str, options: dict[str, Any]) -> None:
    """Quantised layers and 8-bit states leave nothing behind: every storage of a later step dies in it.

    Biases that are cast in the first forward are replaced in that step alone.
    """
    if options.get("quant") == "int8" and release("peft") < (0, 14):
        pytest.skip("PEFT before 0.14 adapts int8 weights of earlier bitsandbytes only")
    recording = record(run_of(family, "lora", **options), platform())
    assert recording.again
    trace = recording.trace(4, platform())
    starts = [position for position, phase in trace.marks if phase == "forward"]
    assert len(starts) == 4
    assert len(trace.alive_at(starts[2] - 1)) == len(trace.alive_at(starts[3] - 1))


def test_every_category_is_there() -> None:
    """Weights, adapters, gradients, states, activations, logits, temporaries and workspaces all have their blocks."""
    trace = record(run_of("llama", "lora"), platform()).trace(2, platform())
    assert {block.category for block in trace.blocks} == set(Category) - {Category.CONTEXT}


def test_one_cublas_workspace_a_thread() -> None:
    """Forward and backward run in threads of their own; 8.125 MiB before Hopper, 32 MiB on it, and only once."""
    for capability, size in (((8, 0), 8519680), ((9, 0), 32 * 2**20)):
        device = platform(capability)
        trace = record(run_of("llama", "lora"), device).trace(3, device)
        found = [b for b in trace.blocks if b.op.endswith("cuBLAS workspace")]
        assert [(b.nbytes, b.phase) for b in found] == [(size, "forward"), (size, "backward")]


def test_steps_of_different_shapes() -> None:
    """A run may go on with other shapes; what repeats of each is its own."""
    short, long = (record(run_of("llama", "lora", seq=seq), platform()) for seq in (16, 48))
    trace = trace_of([short, long, short], platform())
    assert sum(phase == "forward" for _, phase in trace.marks) == 3
    with pytest.raises(ValueError, match="not alike"):
        trace_of([short, Keeping.recording()], platform())


def alive_at_the_step(run: RunSpec) -> list[Block]:
    """What is alive when the optimizer steps for the second time."""
    trace = record(run, platform()).trace(2, platform())
    return [trace.blocks[number] for number in trace.alive_at(trace.position("optimizer") - 1)]


@pytest.mark.parametrize(
    ("method", "options", "states"),
    [
        ("full", {"optimizer": "adamw"}, {"exp_avg", "exp_avg_sq"}),  # the step counters are on the host
        ("lora", {"optimizer": "adamw-fused"}, {"exp_avg", "exp_avg_sq", "step"}),
        ("vera", {"optimizer": "adamw"}, {"exp_avg", "exp_avg_sq"}),
        ("lora-fa", {"optimizer": "lorafa"}, {"exp_avg", "exp_avg_sq", "correction"}),
        pytest.param(
            "lora-fa-peft", {"optimizer": "lorafa-peft"}, {"exp_avg_B", "exp_avg_sq_B"},
            marks=pytest.mark.skipif(not HAS_LORAFA, reason="the installed peft has no LoRA-FA optimizer"),
        ),
    ],
)  # fmt: skip
def test_states_and_gradients_belong_to_parameters(method: str, options: dict[str, Any], states: set[str]) -> None:
    """Every trained parameter has its gradient and each of its states, in the module that has the parameter."""
    run = run_of("llama", method, **options)
    work = Workload.build(run, "meta")
    trained = [short_name(path).rpartition(".") for path, p in work.model.named_parameters() if p.requires_grad]
    alive = alive_at_the_step(run)
    gradients = [(b.owner, b.name) for b in alive if b.category is Category.GRADIENTS]
    assert Counter(gradients) == Counter((module, f"gradient of {leaf}") for module, _, leaf in trained)
    kept = Counter((b.owner, b.name) for b in alive if b.category is Category.OPTIMIZER and b.name != "settled")
    assert kept == Counter((module, state) for module, _, _ in trained for state in states)


def test_states_in_8_bit() -> None:
    """A small tensor's states stay in fp32; tables that all parameters share belong to none."""
    alive = alive_at_the_step(run_of("llama", "lora", rank=64, optimizer="adamw-8bit"))
    states = [b for b in alive if b.category is Category.OPTIMIZER]
    owners = {name: {b.owner for b in states if b.name == name} for name in {b.name for b in states}}
    assert set(owners) == {"state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2"}
    assert owners["qmap1"] == owners["qmap2"] == {""}
    assert "model.layers.0.mlp.down_proj.lora_A.default" in owners["absmax1"] <= owners["state1"]
    assert "" not in owners["state1"]


def test_copies_of_modules_that_peft_trains_are_adapters() -> None:
    """The classifier beside the frozen one is trained and saved with the adapters, and is no part of the base."""
    recording = record(run_of("roberta", "lora"), platform())
    copies = [b for b in recording.blocks if "modules_to_save" in b.module and b.phase == "load"]
    assert copies
    assert {b.category for b in copies} == {Category.ADAPTERS}


def test_a_weight_that_the_forward_replaces_is_one() -> None:
    """bitsandbytes casts a bias to its input's dtype in the first forward: what comes is no activation."""
    recording = record(run_of("llama-bias", "qlora", amp=True, dtype="fp32"), platform())
    width = recording.run.model.q_width
    cast = [
        b
        for b in recording.blocks
        if b.shape == (width,) and b.module.endswith("q_proj.base_layer") and b.phase != "load"
    ]
    assert cast
    assert {(b.dtype, b.category) for b in cast} == {("bf16", Category.WEIGHTS)}


class Keeping(Workload):
    """A model that keeps a tensor of every step, which the next one replaces."""

    @classmethod
    def build(cls, run: RunSpec, device: str) -> Keeping:
        work = Workload.build(run, device)
        return cls(work.run, work.device, work.model, work.optimizer, work.batch)

    @classmethod
    def recording(cls) -> Any:
        return record(run_of("llama", "lora"), platform(), cls.build)

    def loss(self) -> torch.Tensor:
        loss = super().loss()
        self.__dict__["kept"] = torch.empty(1000, device=self.device)
        return loss


def test_a_step_that_keeps_something_is_not_repeated() -> None:
    """It is stepped a second time instead, and both steps are in the trace."""
    recording = Keeping.recording()
    assert (recording.again, recording.steps) == ((), 2)


def test_what_is_recorded_of_a_model_that_keeps_something_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, since no more of them are known; the prediction says so."""
    keeping = lambda run, device, **more: record(run, device, Keeping.build, **more)  # noqa: E731
    monkeypatch.setattr("lorafa_prof.simulate.recordings.record", keeping)
    card = load_device("a100-80gb")
    prediction = engine.predict(run_of("llama", "lora"), [card])
    assert any("the first 2 steps" in line for line in prediction.assumptions)
    of_two_steps = engine.simulate(run_of("llama", "lora", bs=prediction.fit[0].max_bs or 0), card)
    assert of_two_steps.prediction([card], largest_batch=False).fit[0].fits


class Asking(Keeping):
    """A model whose forward asks for a number of its data."""

    def loss(self) -> torch.Tensor:
        return super().loss() * self.batch["input_ids"].max().item()


def test_a_value_of_the_data_is_refused() -> None:
    """Clearly, with the operator and the way out."""
    with pytest.raises(UnsupportedError, match=r"_local_scalar_dense.*--engine analytic"):
        Asking.recording()


class Selecting(Keeping):
    """A model whose shapes depend on its data."""

    def loss(self) -> torch.Tensor:
        return super().loss() + self.batch["input_ids"].nonzero().sum()


def test_a_shape_of_the_data_is_refused() -> None:
    """Meta tensors cannot run it; the message names the operator."""
    with pytest.raises(UnsupportedError, match=r"nonzero.*--engine analytic"):
        Selecting.recording()


def test_backward_work_belongs_to_its_module() -> None:
    """The softmax of eager attention is the attention's own in the backward too, not of the child called after it."""
    trace = record(run_of("llama", "lora", attn="eager"), platform()).trace(1, platform())
    found = {block.module for block in trace.blocks if block.op == "_softmax_backward_data"}
    assert found == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
