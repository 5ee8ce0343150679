"""How high memory stands at the marked moments of a step: in a plan, and in a real step observed on meta tensors.

Two things have to be put on one footing first.

Observed tensors are those that Python sees. What a kernel allocates inside itself is in no trace: flash attention's
buffers for its backward, and the weight that bitsandbytes' forward dequantises (its backward does so in Python).
`INSIDE_KERNELS` names them in the plan, so that they can be left out.

Observing changes autograd in one way. `can_accumulate_inplace` (torch/csrc/autograd/input_buffer.cpp) never adds
gradients in place while a Python dispatch mode is active, as the observer is. `added_apart` makes the engine follow the
same rule; that it follows the other one rightly is shown where nothing observes (`TestAccumulation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from lorafa_prof.analytic.plan import StepPlan
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.analytic.tape import Tape, Tensor
from lorafa_prof.analytic.timeline import Kind
from tests.support.observe import Timeline


@dataclass(frozen=True)
class Heights:
    """Allocated bytes of one step, everything that stands included."""

    start: int
    forward: int
    """The most during the forward, its loss included."""
    after_forward: int
    backward: int
    """The most during the backward, recomputation included."""
    after_backward: int
    step: int
    """The most during the optimizer step."""

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.forward, self.backward, self.step)


def inside_kernels(kind: Kind, phase: str) -> bool:
    """Whether a tensor of the plan is a buffer that only its kernel sees."""
    if kind.name == "dequantised weight":
        return phase in ("forward", "recompute")
    return kind.name.startswith(("attention backward ", "gradient of expanded "))


def planned(step: StepPlan, bs: int, seq: int, *, visible_only: bool = False) -> Heights:
    """The heights of a plan."""
    values = symbol_values(bs, seq)
    kinds, places, end = step.timeline.kinds, step.timeline.places, step.timeline.end_of_forward
    sizes = [rounded(kind.size[0] * product_of(kind.size[1], values)) for kind in kinds]
    live = step.static_bytes
    levels = []
    for number, change, place in step.timeline.events:
        if not (visible_only and inside_kernels(kinds[number], places[place].phase)):
            live += sizes[number] * change
        levels.append(live)
    return Heights(
        start=levels[_batch(step) - 1],
        forward=max(levels[:end]),
        after_forward=levels[end - 1],
        backward=max(levels[end:]),
        after_backward=levels[-1],
        step=levels[-1] + sum(rounded(kind.size[0]) * count for kind, count in step.step_temporaries),
    )


def _batch(step: StepPlan) -> int:
    """How many events bring the batch in, before anything runs."""
    events, kinds = step.timeline.events, step.timeline.kinds
    return next(i for i, (kind, _, _) in enumerate(events) if kinds[kind].module != "batch")


def observed(timeline: Timeline) -> Heights:
    """The heights of a real step."""

    def most(phase: str) -> int:
        return max(event.live for event in timeline.events if event.phase == phase)

    return Heights(
        start=timeline.start_bytes,
        forward=most("forward"),
        after_forward=timeline.after_forward,
        backward=most("backward"),
        after_backward=timeline.after_backward,
        # events hold what is alive after them, and an optimizer's first may be a death
        step=max(timeline.after_backward, most("optimizer")),
    )


@contextmanager
def added_apart() -> Iterator[None]:
    """The engine as it would be under an observer: every sum of gradients is a new tensor."""
    held = Tape._held

    def never_in_place(self: Tape, old: Tensor | None, grad: Tensor) -> Tensor:
        if old is not None and old.storage is not None:
            old.storage.buffers += 1  # one more owner, so that nothing may be added to it
        return held(self, old, grad)

    with mock.patch.object(Tape, "_held", never_in_place):
        yield
