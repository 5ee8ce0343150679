"""Run one symbolic training step and keep its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.builder import Builder, MakeAdapter
from lorafa_prof.analytic.ddp import Ddp
from lorafa_prof.analytic.families import Model, build
from lorafa_prof.analytic.methods import adapter_maker
from lorafa_prof.analytic.sharded import Frozen, Fsdp, FsdpGradOp
from lorafa_prof.analytic.sharing import Alone
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import GRADIENTS, LOGITS, TEMPORARIES, WORKSPACES, Item, Tensor
from lorafa_prof.analytic.zero import Zero
from lorafa_prof.specs import ModelSpec, RunSpec

_WAYS: dict[str, type[Alone]] = {
    "none": Alone, "ddp": Ddp, "fsdp": Fsdp, "fsdp-grad-op": FsdpGradOp, "frozen": Frozen, "zero1": Zero,
    "zero2": Zero, "zero3": Zero,
}  # fmt: skip


@dataclass(frozen=True)
class StepTrace:
    """The record of one symbolic step."""

    builder: Builder
    tape: Tape
    end_of_forward: int
    """Position in the tape's events when the forward and the loss were done."""
    end: int
    """Position at the end of the backward: the batch, the loss and the gradients are alive."""
    sharing: Alone
    """How the step is shared with other GPUs."""

    def saved(self) -> list[Item]:
        """Return the storages that autograd keeps at the end of the forward."""
        alive = _alive(self.tape.events[: self.end_of_forward])
        return [self.tape.items[i] for i in alive if self.tape.items[i].saved]


def build_model(run: RunSpec, make_adapter: MakeAdapter | None = None) -> tuple[Builder, Model]:
    """Build the symbolic model of `run` with its adapters, without running it.

    Args:
        run: the configuration.
        make_adapter: what is done to each targeted layer; None: as the run's method has it.

    Raises:
        UnsupportedError: an architecture or method that this engine does not know.
    """
    builder = Builder(run, Tape(), make_adapter or adapter_maker(run.method.name))
    builder.wrapped = make_adapter is None and not builder.full
    return builder, build(builder)


def trace_step(run: RunSpec, make_adapter: MakeAdapter | None = None, *, moves: bool = False) -> StepTrace:
    """Trace forward, loss and backward of one step of `run`.

    Args:
        run: the configuration.
        make_adapter: as of `build_model`.
        moves: note what operations read and write that only move memory.

    Raises:
        UnsupportedError: an architecture, method or option that this engine does not model.
    """
    builder, model = build_model(run, make_adapter)
    tape = builder.tape
    tape.accumulates = run.accumulation > 1
    tape.moves = [] if moves else None
    if run.amp:
        tape.autocast = "bf16"
    sharing = _WAYS[run.shard](builder, run)
    sharing.begin()
    loss = model.loss()
    sharing.end_forward()
    tape.autocast = None
    tape.cast_cache.clear()
    end_of_forward = len(tape.events)
    _keep_what_is_alive(tape, loss)
    tape.enter("", "backward")
    sharing.begin_backward()
    tape.backward(ops.scale(loss, "share of the loss") if tape.accumulates else loss)
    sharing.end_backward()
    _mark_logits(tape, run.spec)
    return StepTrace(builder, tape, end_of_forward, len(tape.events), sharing)


def _alive(events: Sequence[int]) -> list[int]:
    """Return the storages that are alive after these events."""
    alive: set[int] = set()
    for event in events:
        alive.add(event) if event >= 0 else alive.discard(~event)
    return sorted(alive)


def _keep_what_is_alive(tape: Tape, loss: Tensor) -> None:
    """Count what is alive when the forward is over as kept by autograd, for then only the graph of the loss holds it.

    That is more than operations save: a leaf is held by the node that accumulates its gradient, and a checkpointed
    region holds all that it was given, positions and masks too, to run once more. Gathered weights are not autograd's.
    """
    assert loss.storage is not None, "the loss has a storage"
    for index in _alive(tape.events):
        item = tape.items[index]
        item.saved |= index != loss.storage.index and item.category != WORKSPACES


def _mark_logits(tape: Tape, spec: ModelSpec) -> None:
    """Count what the loss makes, and what is as wide as the model's answer around it, as logits.

    What the head has of its own for its product, a copy of its weight that autocast makes, is an activation.
    """
    last = "" if spec.architecture == "bert" else ".out_proj"
    width, heads = (
        (spec.num_labels, tuple(f"{head}{last}" for head in ("classifier", "classifier.modules_to_save")))
        if spec.task == "seq-cls"
        else (spec.vocab_size, ("", "lm_head"))
    )
    for item in tape.items:
        wide = item.module in heads and item.shape[-1:] == (width,) and item.category == TEMPORARIES
        if (item.module == "loss" and item.category != GRADIENTS) or wide:
            item.category = LOGITS
