"""What a GPU has and does for sharing a step with others; alone it has all, and does nothing for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorafa_prof.analytic.builder import Builder, Held
from lorafa_prof.analytic.optimizers import OptimizerCost, StateTensor, optimizer_cost
from lorafa_prof.analytic.sizes import rounded
from lorafa_prof.analytic.tensors import Parameter
from lorafa_prof.sharding import Collective
from lorafa_prof.specs import RunSpec


class Alone:
    """A GPU that shares nothing; ways of sharing derive from it.

    Args:
        builder: has built the model.
        run: says how many GPUs share it, and how.
    """

    assumptions: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()

    def __init__(self, builder: Builder, run: RunSpec) -> None:
        self.builder = builder
        self.tape, self.whole, self.run, self.gpus = builder.tape, builder.held, run, run.gpus

    def of(self, run: RunSpec) -> Alone:
        """Return what holds for a run with the same forward and backward."""
        return Alone(self.builder, run)

    # -- from step to step ----------------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        """Return what this GPU holds of parameters and buffers."""
        return self.whole

    def updated(self) -> list[Held]:
        """Return what the optimizer updates on this GPU."""
        return [held for held in self.held() if held.parameter.requires_grad]

    def always(self) -> Sequence[tuple[StateTensor, str]]:
        """Return the buffers that there are for sharing from step to step, each with its category."""
        return ()

    def optimizer(self) -> OptimizerCost:
        """Return states and temporaries of the optimizer."""
        return optimizer_cost(self.run, self.updated())

    def gradient_bytes(self) -> int:
        """Return the gradients that there are when the optimizer steps, as the allocator rounds them."""
        return sum(rounded(h.parameter.size[0]) * h.count for h in self.whole if h.parameter.requires_grad)

    def collectives(self) -> list[Collective]:
        """Return what all GPUs tell each other in a step."""
        return []

    # -- in the step ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Hear that the model's forward begins."""

    def end_forward(self) -> None:
        """Hear that the model's forward is over, with the loss."""

    def begin_backward(self) -> None:
        """Hear that the gradient of the loss has come."""

    def end_backward(self) -> None:
        """Hear that the backward is over."""


def from_the_last(all_held: Sequence[Held]) -> Iterator[Parameter]:
    """Yield parameters from the last to the first; those that stand for several layers as often, layer by layer."""
    left = list(all_held)
    while left:
        alike = [left.pop()]
        while left and left[-1].count == alike[0].count:
            alike.append(left.pop())
        for _ in range(alike[0].count):
            yield from (held.parameter for held in alike)
