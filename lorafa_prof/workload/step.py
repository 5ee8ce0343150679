"""One training step, phase by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorafa_prof.contradictions import refuse_contradictions
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import INITIALISATION, PRE_PASS, PRE_PASS_BACKWARD
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.adapters import add_adapters
from lorafa_prof.workload.checkpointing import enable_checkpointing
from lorafa_prof.workload.fused_loss import fuse_loss, refuse_adapted_head
from lorafa_prof.workload.lora_ga import base_of, estimate, has_pre_pass, initialise
from lorafa_prof.workload.models import base_model, batch
from lorafa_prof.workload.optimizers import make_optimizer
from lorafa_prof.workload.parallel import Group, distribute, first_device, reduce_gradients, refuse_in_group
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
    wrapper: torch.nn.Module | None = None
    """What is called in place of the model where several processes share the work."""

    @classmethod
    def build(cls, run: RunSpec, device: str, group: Group | None = None) -> Workload:
        """Build model, adapters, optimizer and batch of `run` on `device` ("meta", "cpu", "cuda").

        Args:
            run: the configuration.
            device: where.
            group: the processes that take the step together; each has the same weights and data of its own.

        Raises:
            UnsupportedError: a method, optimizer or option for which no real step is built.
            BadInputError: options that contradict each other.
            MissingComponentError: a library is not installed.
        """
        if group is None:
            if has_pre_pass(run):
                return cls._after_pre_pass(run, device)
            model = build_model(run, device)
            return cls(run, device, model, make_optimizer(model, run), batch(run, device), padded=run.padded)
        model = build_model(run, first_device(run, device), group)
        wrapper = distribute(model, run, device)
        # after sharding, which puts other parameters into the model
        optimizer = make_optimizer(model, run)
        data = batch(run, device, part=group.rank)
        return cls(run, device, model, optimizer, data, padded=run.padded, wrapper=wrapper)

    @classmethod
    def _after_pre_pass(cls, run: RunSpec, device: str) -> Workload:
        model, data = before_pre_pass(run, device)
        return cls.through_pre_pass(run, device, model, data)

    @classmethod
    def through_pre_pass(
        cls, run: RunSpec, device: str, base: torch.nn.Module, data: dict[str, torch.Tensor],
        enter: Callable[[str], None] = lambda phase: None,
    ) -> Workload:  # fmt: skip
        """Run LoRA-GA's pass over what `before_pre_pass` has built, and build the rest.

        Args:
            run: the configuration.
            device: where the base is.
            base: the model without adapters.
            data: its batch.
            enter: is told each phase of the pass as it begins.
        """

        def once() -> None:
            enter(PRE_PASS)
            loss = loss_of(base, run, data, device)
            enter(PRE_PASS_BACKWARD)
            loss.backward()
            del loss
            enter(INITIALISATION)

        model = initialise(base, run, estimate(base, run, once))
        return cls(run, device, model, make_optimizer(model, run), data, padded=run.padded)

    @property
    def entry(self) -> torch.nn.Module:
        """What the forward begins with: the wrapper where there is one."""
        return self.model if self.wrapper is None else self.wrapper

    def loss(self) -> torch.Tensor:
        """Run one forward and return only the loss: logits and hidden states are let go, as in a training loop."""
        return loss_of(self.entry, self.run, self.batch, self.device)

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward of a micro-batch, whose loss counts for its share of the step's."""
        part = loss if self.run.accumulation == 1 else loss / self.run.accumulation
        part.backward()
        if self.run.shard == "frozen":
            reduce_gradients(self.model, self.run.gpus)

    def micro_batch(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return what stands around forward and backward of a micro-batch: DDP reduces gradients in the last alone."""
        if last or not isinstance(self.wrapper, torch.nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        unreduced: contextlib.AbstractContextManager[Any] = self.wrapper.no_sync()
        return unreduced

    def clip(self) -> None:
        """Clip the gradients by their common norm, where the run has that; with foreach kernels, as on CUDA."""
        if self.run.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)


def before_pre_pass(run: RunSpec, device: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return the model without adapters and the batch, as LoRA-GA's pass finds them.

    Raises:
        as `Workload.build`.
    """
    refuse_unbuilt(run)
    torch.manual_seed(0)
    return base_of(run, device), batch(run, device)


def loss_of(model: torch.nn.Module, run: RunSpec, data: dict[str, torch.Tensor], device: str) -> torch.Tensor:
    """Run one forward of a model and return only the loss: logits and hidden states are let go.

    Raises:
        UnsupportedError: the model returns none.
    """
    with autocast(run, device):
        loss = getattr(model(**data), "loss", None)
        if not isinstance(loss, torch.Tensor):
            raise UnsupportedError(f"{run.model.name}: the model's forward returns no loss, so it takes no step")
        return loss


def autocast(run: RunSpec, device: str) -> contextlib.AbstractContextManager[Any]:
    """Return what stands around the forward: bf16 autocast where the run has it."""
    if not run.amp:
        return contextlib.nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16)


def build_model(run: RunSpec, device: str, group: Group | None = None) -> torch.nn.Module:
    """Return the run's model with its adapters, in training mode; whole, also in a group of processes."""
    refuse_unbuilt(run, group)
    torch.manual_seed(0)
    model = base_model(run, device)
    if run.resolved_quant != "none":
        model = quantize(model, run)
    if run.loss == "fused":
        fuse_loss(model, run)
    if run.method.name != "full":
        model = add_adapters(model, run)
    if run.loss == "fused":
        refuse_adapted_head(model, run)
    if run.checkpointing != "none":
        enable_checkpointing(model, run)
    return model.train()


def refuse_unbuilt(run: RunSpec, group: Group | None = None) -> None:
    """Refuse what no real step is built for; several GPUs are built for a group of processes alone.

    Raises:
        UnsupportedError: the option is known, but not built.
        ContradictionError: options that the method cannot take.
    """
    refuse_contradictions(run)
    refused = (
        (
            group is None and (run.shard not in ("none", "ddp") or run.gpus > 1),
            "several GPUs",
            "--gpus 1 (measure takes several under torchrun)",
        ),
    )
    for asked, what, instead in refused:
        if asked:
            raise UnsupportedError(f"the real step with {what} is not built; it is with {instead}")
    if group is not None:
        if has_pre_pass(run):
            raise UnsupportedError("LoRA-GA is not built for several processes: its gradients are estimated in one")
        refuse_in_group(run, group)


def training_step(work: Workload, enter: Callable[[str], None] = lambda phase: None) -> None:
    """Take one step; `enter` is told each of `PHASES` as it begins, then "end".

    Only the loss is held through backward and the optimizer's step: whoever holds the model's output
    (`out.loss.backward()`) holds the logits too. Of several micro-batches each is a forward and a backward.
    """
    loss: torch.Tensor | None = None
    for number in range(1, work.run.accumulation + 1):
        loss = None  # that of the micro-batch before is not held
        with work.micro_batch(last=number == work.run.accumulation):
            enter("forward")
            loss = work.loss()
            enter("backward")
            work.backward(loss)
    enter("optimizer")
    work.clip()
    work.optimizer.step()
    enter("zero_grad")
    work.optimizer.zero_grad(set_to_none=True)
    del loss
    enter("end")
