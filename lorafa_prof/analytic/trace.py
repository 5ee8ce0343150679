"""Run one symbolic training step and keep its record."""

from __future__ import annotations

from dataclasses import dataclass

from lorafa_prof.analytic.builder import Builder
from lorafa_prof.analytic.families import Model, build
from lorafa_prof.analytic.methods import adapter_maker
from lorafa_prof.analytic.tape import LOGITS, Item, Tape
from lorafa_prof.specs import RunSpec


@dataclass(frozen=True)
class StepTrace:
    """The record of one symbolic step."""

    builder: Builder
    tape: Tape
    end_of_forward: int
    """Position in the tape's events when the forward and the loss were done."""
    end: int
    """Position at the end of the backward: the batch, the loss and the gradients are alive."""

    def saved(self) -> list[Item]:
        """Return the storages that autograd keeps at the end of the forward."""
        alive: set[int] = set()
        for event in self.tape.events[: self.end_of_forward]:
            alive.add(event) if event >= 0 else alive.discard(~event)
        return [self.tape.items[i] for i in sorted(alive) if self.tape.items[i].saved]


def build_model(run: RunSpec) -> tuple[Builder, Model]:
    """Build the symbolic model of `run` with its adapters, without running it.

    Raises:
        UnsupportedError: an architecture or method that this engine does not know.
    """
    builder = Builder(run, Tape(), adapter_maker(run.method.name))
    return builder, build(builder)


def trace_step(run: RunSpec) -> StepTrace:
    """Trace forward, loss and backward of one step of `run`.

    Raises:
        UnsupportedError: an architecture, method or option that this engine does not model.
    """
    builder, model = build_model(run)
    tape = builder.tape
    if run.amp:
        tape.autocast = "bf16"
    loss = model.loss()
    tape.autocast = None
    tape.cast_cache.clear()
    end_of_forward = len(tape.events)
    tape.enter("", "backward")
    tape.backward(loss)
    for item in tape.items:
        if item.module == "loss":
            item.category = LOGITS
    return StepTrace(builder, tape, end_of_forward, len(tape.events))
