"""One training step, phase by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorafa_prof.errors import ContradictionError, UnsupportedError
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.adapters import add_adapters
from lorafa_prof.workload.models import base_model, batch, enable_checkpointing
from lorafa_prof.workload.optimizers import make_optimizer
from lorafa_prof.workload.quantized import quantize

#: The phases of a step, in order.
PHASES = ("forward", "backward", "optimizer", "zero_grad")


@dataclass(frozen=True)
class Workload:
    """A run, ready to take steps."""

    run: RunSpec
    device: str
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batch: dict[str, torch.Tensor]
    padded: bool = False
    """Whether the batch has padding, that is, an attention mask of which not all is set."""

    @classmethod
    def build(cls, run: RunSpec, device: str) -> Workload:
        """Build model, adapters, optimizer and batch of `run` on `device` ("meta", "cpu", "cuda").

        Raises:
            UnsupportedError: a method, optimizer or option for which no real step is built.
            BadInputError: options that contradict each other.
            MissingComponentError: a library is not installed.
        """
        model = build_model(run, device)
        return cls(run, device, model, make_optimizer(model, run), batch(run, device))

    def loss(self) -> torch.Tensor:
        """Run one forward and return only the loss: logits and hidden states are let go, as in a training loop."""
        with autocast(self.run, self.device):
            loss: torch.Tensor = self.model(**self.batch).loss
        return loss


def autocast(run: RunSpec, device: str) -> contextlib.AbstractContextManager[Any]:
    """Return what stands around the forward: bf16 autocast where the run has it."""
    if not run.amp:
        return contextlib.nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16)


def build_model(run: RunSpec, device: str) -> torch.nn.Module:
    """Return the run's model with its adapters, in training mode."""
    refuse_unbuilt(run)
    torch.manual_seed(0)
    model = base_model(run, device)
    if run.resolved_quant != "none":
        model = quantize(model, run)
    if run.method.name != "full":
        model = add_adapters(model, run)
    if run.checkpointing == "full":
        enable_checkpointing(model, run)
    return model.train()


def refuse_unbuilt(run: RunSpec) -> None:
    """Refuse what no real step is built for.

    Raises:
        UnsupportedError: the option is known, but not built.
        ContradictionError: options that the method cannot take.
    """
    refused = (
        (run.checkpointing == "selective", "selective checkpointing", "--checkpointing none or full"),
        (run.loss == "fused", "the fused loss", "--loss hf"),
        (run.shard not in ("none", "ddp") or run.gpus > 1, "several GPUs", "--gpus 1"),
    )
    for asked, what, instead in refused:
        if asked:
            raise UnsupportedError(f"the real step with {what} is not built; it is with {instead}")
    if run.method.name == "full" and run.resolved_quant != "none":
        raise ContradictionError(f"full fine-tuning cannot train {run.resolved_quant} weights: name an adapter method")


def training_step(work: Workload, enter: Callable[[str], None] = lambda phase: None) -> None:
    """Take one step; `enter` is told each of `PHASES` as it begins, then "end".

    Only the loss is held through backward and the optimizer's step: whoever holds the model's output
    (`out.loss.backward()`) holds the logits too.
    """
    enter("forward")
    loss = work.loss()
    enter("backward")
    loss.backward()
    enter("optimizer")
    work.optimizer.step()
    enter("zero_grad")
    work.optimizer.zero_grad(set_to_none=True)
    del loss
    enter("end")
