"""A run's step as a plan: traced once, then evaluated for any batch and sequence length.

A plan holds the static tensors (weights, adapters, optimizer states), the timeline of the step, and the optimizer's
temporaries. `memory` evaluates one configuration; `peak_allocated` evaluates arrays of them at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any

from lorafa_prof.analytic.builder import ADAPTERS, BUFFERS, Held
from lorafa_prof.analytic.optimizers import OptimizerCost, StateTensor
from lorafa_prof.analytic.sizes import Size, product_of, rounded, size_of, symbol_values
from lorafa_prof.analytic.tensors import GRADIENTS
from lorafa_prof.analytic.timeline import Kind, Place, Timeline, build_timeline, repeated_flops, repeats, state_kind
from lorafa_prof.analytic.trace import StepTrace
from lorafa_prof.specs import RunSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


OPTIMIZER_STEP = "optimizer step"


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Elements of parameters, as `sum(p.numel() for p in model.parameters())` counts them."""

    total: int
    trainable: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest live memory of a step."""

    allocated: int
    """Bytes, each storage rounded up to the allocator's granule."""
    place: Place
    position: int
    """Position in the plan's events."""
    phases: Mapping[str, int]
    """The largest live memory of each phase, bytes."""


class StepPlan:
    """One training step of a run, for any batch and sequence length that the same step is taken for.

    One sequence is another step than several, and so is a sequence that reaches the sliding window.
    """

    def __init__(self, run: RunSpec, trace: StepTrace) -> None:
        self.run = run
        self.assumptions = trace.builder.assumptions
        self._held = trace.builder.held
        self._traced_timeline = build_timeline(trace.tape, trace.end_of_forward, trace.end)
        self._flops = trace.tape.flops, repeats(trace.tape)
        self.sharing = trace.sharing
        """How the step is shared with other GPUs."""

    def stepping_as(self, run: RunSpec) -> StepPlan:
        """Return the plan of a run with the same forward and backward, which it shares (see `plan.traced_alike`)."""
        other = object.__new__(type(self))
        other.assumptions, other._held = self.assumptions, self._held
        other._traced_timeline, other._flops = self._traced_timeline, self._flops
        other.run, other.sharing = run, self.sharing.of(run)
        return other

    # -- parameters -----------------------------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> ParameterCount:
        """Total and trainable parameters."""
        return counted(self._held)

    @cached_property
    def table_elements(self) -> int:
        """Elements of the input embedding table, unless the output head shares it."""
        if self.run.spec.tie_word_embeddings and self.run.spec.task != "seq-cls":  # which has a head of its own
            return 0
        return self.run.spec.vocab_size * self.run.spec.hidden_size

    @cached_property
    def gradient_bytes(self) -> int:
        """Gradients that there are when the optimizer steps, rounded tensor by tensor."""
        return self.sharing.gradient_bytes()

    @cached_property
    def optimizer(self) -> OptimizerCost:
        """States and temporaries of the optimizer."""
        return self.sharing.optimizer()

    @cached_property
    def timeline(self) -> Timeline:
        """Births and deaths of the step, those within the optimizer's among them where it has a record of them."""
        steps = self.optimizer.steps
        return self._traced_timeline if steps is None else self._traced_timeline.followed_by(steps, OPTIMIZER_STEP)

    # -- static memory --------------------------------------------------------------------------------------------

    @cached_property
    def static(self) -> list[tuple[Kind, int]]:
        """Tensors that are there from the beginning of the timeline to its end: (kind, how many)."""
        return self.kept

    @cached_property
    def kept(self) -> list[tuple[Kind, int]]:
        """Tensors that are there through a whole step: (kind, how many)."""
        counts: Counter[Kind] = Counter()
        for held in self.sharing.held():
            counts[_parameter_kind(held)] += held.count
        for buffer, category in self.sharing.always():
            counts[_state_kind(buffer, category)] += buffer.count
        for state in self.optimizer.states:
            counts[_state_kind(state, "optimizer")] += state.count
        if self.run.accumulation > 1:  # those of the micro-batches before
            for held in self._held:
                if held.parameter.requires_grad:
                    counts[_gradient_kind(held)] += held.count
        return list(counts.items())

    @cached_property
    def static_bytes(self) -> int:
        """Bytes of `static`, rounded tensor by tensor."""
        return sum(rounded(kind.size[0]) * count for kind, count in self.static)

    @cached_property
    def step_temporaries(self) -> list[tuple[Kind, int]]:
        """What the optimizer step holds beside states and gradients at its largest."""
        counts: Counter[Kind] = Counter()
        for state in self.optimizer.temporaries:
            counts[_state_kind(state, "temporaries")] += state.count
        return list(counts.items())

    @cached_property
    def managed_bytes(self) -> int | None:
        """Bytes of optimizer states in CUDA's managed memory, which knows no granule; None: the optimizer has none."""
        states = self.optimizer.managed
        return None if states is None else sum(size_of(s.shape, s.dtype)[0] * s.count for s in states)

    # -- one configuration ----------------------------------------------------------------------------------------

    def peak(self, bs: int, seq: int) -> Peak:
        """Return the peak of the step for one batch and sequence length."""
        values = symbol_values(bs, seq)
        sizes = [rounded(k.size[0] * product_of(k.size[1], values)) for k in self.timeline.kinds]
        places = self.timeline.places
        live = top = self.static_bytes
        position = -1
        highest = [0] * len(places)
        for i, (kind, change, number) in enumerate(self.timeline.events):
            live += sizes[kind] * change
            if live > highest[number]:
                highest[number] = live
                if live > top:
                    top, position = live, i
        phases: dict[str, int] = {}
        for place, high in zip(places, highest, strict=True):
            name = "loss" if place.module == "loss" else place.phase
            phases[name] = max(high, phases.get(name, 0))
        stepping = live + sum(rounded(kind.size[0]) * count for kind, count in self.step_temporaries)
        phases[OPTIMIZER_STEP] = max(stepping, phases.get(OPTIMIZER_STEP, 0))
        if stepping > top:
            top, position = stepping, len(self.timeline.events)
        return Peak(top, self.place_at(position), position, phases)

    def allocated(self, bs: int, seq: int) -> int:
        """Return the bytes of `peak` alone, in a fraction of the time: what a search for a threshold asks for."""
        values = symbol_values(bs, seq)
        sizes = [rounded(k.size[0] * product_of(k.size[1], values)) for k in self.timeline.kinds]
        kinds, changes, _ = self._columns
        live = list(accumulate(map(mul, map(sizes.__getitem__, kinds), changes), initial=self.static_bytes))
        stepping = sum(rounded(kind.size[0]) * count for kind, count in self.step_temporaries)
        highest: int = max(*live, live[-1] + stepping)
        return highest

    @cached_property
    def _columns(self) -> list[tuple[int, ...]]:
        """The events as columns: kinds, changes, places."""
        return list(zip(*self.timeline.events, strict=True))

    def peaks_apart(self, bs: int, seq: int) -> tuple[int, int] | None:
        """Return the peak before training and that of training, in bytes; None: there is nothing before it."""
        del bs, seq
        return None

    def alive(self, position: int) -> list[tuple[Kind, int]]:
        """Return what is alive at a position of the timeline: (kind, how many), static tensors first."""
        live = self.timeline.live_at(position)
        found = [(self.timeline.kinds[kind], count) for kind, count in live.items() if count]
        stepping = self.step_temporaries if position >= len(self.timeline.events) else []
        return [*self.static, *found, *stepping]

    def place_at(self, position: int) -> Place:
        """Return where in the step a position of the timeline is, -1 for before it, its length for the optimizer."""
        if position >= len(self.timeline.events):
            return Place(OPTIMIZER_STEP, "")
        return self.timeline.places[self.timeline.events[position][2] if position >= 0 else 0]

    def saved(self) -> list[tuple[Kind, int]]:
        """Return what autograd keeps at the end of the forward: (kind, how many). Parameters and batch not counted."""
        live = self.timeline.live_at(self.timeline.end_of_forward - 1)
        kinds = self.timeline.kinds
        return [
            (kinds[i], n)
            for i, n in live.items()
            if n and kinds[i].saved and kinds[i].module != "batch" and kinds[i].category != GRADIENTS
        ]

    def saved_activation_bytes(self, bs: int, seq: int) -> int:
        """Return the bytes of `saved`, unrounded, as saved-tensor hooks would count them."""
        values = symbol_values(bs, seq)
        return sum(int(kind.size[0] * product_of(kind.size[1], values)) * count for kind, count in self.saved())

    # -- arithmetic -----------------------------------------------------------------------------------------------

    def flops(self, bs: int, seq: int) -> dict[tuple[str, str], int]:
        """Return floating-point operations of one step by (pass, kind): "forward", "backward" or "recompute"."""
        values = symbol_values(bs, seq)
        total: dict[tuple[str, str], int] = {}
        for (where, kind, symbols), coefficient in self._flops_by_symbols.items():
            total[where, kind] = total.get((where, kind), 0) + coefficient * product_of(symbols, values)
        return total

    @cached_property
    def flops_by_size(self) -> list[tuple[str, str, Size]]:
        """All floating-point operations: (pass, kind, how many)."""
        return list(repeated_flops(*self._flops))

    @cached_property
    def _flops_by_symbols(self) -> Mapping[tuple[str, str, str], int]:
        """Coefficients of all floating-point operations by (pass, kind, symbols)."""
        summed: dict[tuple[str, str, str], int] = {}
        for where, kind, (coefficient, symbols) in self.flops_by_size:
            summed[where, kind, symbols] = summed.get((where, kind, symbols), 0) + coefficient
        return summed

    # -- arrays ---------------------------------------------------------------------------------------------------

    @cached_property
    def _grid(self) -> Any:
        from lorafa_prof.analytic.grid import Grid

        return Grid(self)

    def peak_allocated(self, bs: Any, seq: Any) -> npt.NDArray[np.int64]:
        """Return the peak in bytes for arrays of batch sizes and sequence lengths (broadcast together)."""
        result: npt.NDArray[np.int64] = self._grid.peak_allocated(bs, seq)
        return result


def counted(all_held: Sequence[Held]) -> ParameterCount:
    """Count the elements of parameters; buffers are none."""
    held = [h for h in all_held if h.parameter.kind != BUFFERS]
    return ParameterCount(
        sum(h.parameter.numel * h.count for h in held),
        sum(h.parameter.numel * h.count for h in held if h.parameter.requires_grad),
    )


def _parameter_kind(held: Held) -> Kind:
    module, _, name = held.parameter.name.rpartition(".")
    kind = held.parameter.kind
    shared = kind == BUFFERS and held.parameter.name.startswith("vera_")
    category = "adapters" if kind == ADAPTERS or shared else "weights"
    return state_kind(module, name, held.parameter.shape, held.parameter.dtype, category)


def _gradient_kind(held: Held) -> Kind:
    module, _, name = held.parameter.name.rpartition(".")
    return state_kind(module, f"{name} gradient", held.parameter.shape, held.parameter.dtype, GRADIENTS)


def _state_kind(state: StateTensor, category: str) -> Kind:
    return state_kind(state.parameter, state.name, state.shape, state.dtype, category)
