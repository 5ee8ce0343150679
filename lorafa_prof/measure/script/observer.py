"""Which steps of a training are counted, timed and traced, and what is known when."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.measure.devices import Device, open_device
from lorafa_prof.measure.memory import untraced_memory, with_trace
from lorafa_prof.measure.script.batches import sizes_of_logits, tokens_of
from lorafa_prof.measure.script.clock import StepClock
from lorafa_prof.measure.script.judging import promises_of, rates_of
from lorafa_prof.measure.script.peaks import KeptPeaks
from lorafa_prof.measure.script.plan import Plan
from lorafa_prof.measure.script.roots import Candidates, device_of, inner_of, trains
from lorafa_prof.measure.script.setting import imported_versions, nothing_seen
from lorafa_prof.measure.script.tracing import SCRIPT, TracedStep, vocabulary_of, why_not_traced
from lorafa_prof.measure.script.watching import Watch
from lorafa_prof.measure.timing import spread
from lorafa_prof.measure.trace import StepTrace
from lorafa_prof.results import Measurement, Outcome, StepTime
from lorafa_prof.workload.naming import counted_parameters

Report = Callable[[Measurement], None]
"""Is told the measurement as far as it has come."""
Stage = Literal["warm-up", "timed", "listening", "traced", "done"]
#: Seconds between two reports while nothing but further steps is new.
_PAUSE_S = 10.0


class Observer:
    """Follows the first training of this process: warm-up, timed steps, one traced step. Then it lets go of it.

    Args:
        plan: which steps are what.
        command: what is run, in words of its own.
        report: is told at each change of stage, and every now and then of further steps.
        model: what is trained; found by itself where it is not given.
        optimizer: what steps it; likewise.
    """

    def __init__(
        self,
        plan: Plan,
        command: Sequence[str] = (),
        report: Report = lambda measurement: None,
        *,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self._plan, self._report = plan, report
        self._root = model
        self._only = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        self._stage: Stage = "warm-up"
        self._taken = 0
        self._candidates = Candidates()
        self._optimizers: list[torch.optim.Optimizer] = []
        self._foreign: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._boundary: torch.optim.Optimizer | None = self._only
        self._last: torch.optim.Optimizer | None = None
        self._device: Device | None = None
        self._clock: StepClock | None = None
        self._ended: list[StepClock] = []
        self._times: list[StepTime] = []
        self._told_at = 0.0
        self._traced: TracedStep | None = None
        self._peaks: KeptPeaks | None = None
        self._phase = SCRIPT
        self._in_step = False
        self._logits_sizes: frozenset[int] = frozenset()
        self._remarks: dict[str, None] = {}
        self._watch = Watch(self)
        self._seen = nothing_seen(plan, command)

    # -- beginning and end -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to look.

        Raises:
            UnsupportedError: the model that was given is on a device that is not looked at.
        """
        if self._root is None:
            self._watch.see_calls_of_any()
        else:
            self._know(self._root)
        self._watch.__enter__()

    def finish(self, outcome: Outcome = "ok", error: str | None = None, exit_code: int | None = None) -> Measurement:
        """Stop looking, and return what was observed.

        Args:
            outcome: how the training ended.
            error: what there is to say about that.
            exit_code: of the script.
        """
        if self._stage != "done":
            with contextlib.suppress(Exception):  # a device that has failed
                self._read_clocks()
            self._let_go()
        self._watch.__exit__()
        if self._peaks is not None:
            self._peaks.close()
        self._say_what_is_missing()
        self._seen = replace(
            self._seen, outcome=outcome, error=error, exit_code=exit_code, unmodelled=tuple(self._remarks),
            versions=imported_versions(),
        )  # fmt: skip
        return self._seen

    @property
    def seen(self) -> Measurement:
        """What has been observed so far."""
        return self._seen

    def _let_go(self) -> None:
        if self._traced is not None:
            with contextlib.suppress(Exception):
                self._traced.abandon()
            self._traced = None
        self._watch.stop()
        self._stage = "done"
        self._root = self._device = self._clock = self._boundary = self._only = self._last = None
        self._optimizers = []

    def failed(self, error: Exception) -> None:
        """Give up: see `watching.Listener`."""
        self._stage_reached = "done"
        self._remarks[f"the profile ends before its time: {type(error).__name__}: {error}"] = None
        with contextlib.suppress(Exception):
            self._read_clocks()
        self._let_go()

    def _say_what_is_missing(self) -> None:
        if self._stage_reached == "done":
            return
        wanted = f"{self._plan.warmup} to warm up, {self._plan.steps} to time" + (", one to trace" * self._plan.trace)
        self._remarks[f"the training ended after {self._taken} optimizer steps, of {wanted}"] = None
        if not self._taken:
            self._remarks["no optimizer of torch's took a step"] = None
        elif self._root_was_missing:
            self._remarks["no module that the script calls holds what its optimizer steps"] = None

    # -- what the training does ------------------------------------------------------------------------------------

    def enter_model(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """See `watching.Listener`. The forward goes on until its backward begins: the loss may be the script's."""
        if not torch.is_grad_enabled():
            return
        if self._root is None:
            self._candidates.add(module)
            return
        if self._last is not None and self._only is None:  # of several that step one after the other, the last
            self._boundary = self._last
        if self._clock is not None:
            tokens = tokens_of(args, kwargs)
            if tokens is not None:
                self._clock.tokens = (self._clock.tokens or 0) + tokens
        self._enter("forward")
        if self._traced is not None:
            self._traced.see_batch(args, kwargs)
        elif self._stage != "timed" or len(self._ended) + len(self._times) + 1 >= self._plan.steps:
            self._logits_sizes |= sizes_of_logits(args, kwargs, self._vocabulary)

    def enter_backward(self) -> None:
        """See `watching.Listener`."""
        self._enter("backward")

    def leave_backward(self) -> None:
        """See `watching.Listener`."""
        self._enter("optimizer" if self._in_step else SCRIPT)  # with a closure all of it is the optimizer's

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """See `watching.Listener`."""
        if not self._is_ours(optimizer):
            return
        self._in_step = True
        if self._phase == "forward" and self._traced is not None:
            self._traced.enter("backward")  # a backward that torch.autograd.backward has no part in
        self._enter("optimizer")

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """See `watching.Listener`."""
        if self._root is None:
            self._find(optimizer)
        if not self._is_ours(optimizer):
            return
        self._in_step = False
        if optimizer not in self._optimizers:
            self._optimizers.append(optimizer)
        self._last = optimizer
        if self._boundary is None:
            self._boundary = optimizer
        if optimizer is self._boundary:
            self._step_is_over()
        else:
            self._enter(SCRIPT)

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        if self._stage == "done" or self._root is None:
            return False
        if any(optimizer is known for known in self._optimizers):
            return True
        if optimizer in self._foreign:
            return False
        if optimizer is self._only or (self._only is None and trains(optimizer, self._root)):
            return True
        self._foreign.add(optimizer)
        self._remarks["the script has an optimizer that steps another model's parameters: not looked at"] = None
        return False

    def _enter(self, phase: str) -> None:
        self._phase = phase
        if self._clock is not None:
            self._clock.enter(phase)
        if self._traced is not None:
            self._traced.enter(phase)

    # -- stages ----------------------------------------------------------------------------------------------------

    _stage_reached: Stage = "warm-up"
    _root_was_missing = True
    _vocabulary: int | None = None

    def _find(self, optimizer: torch.optim.Optimizer) -> None:
        root = self._candidates.root(optimizer)
        if root is None:
            self._taken += 1
            return
        self._root = root
        self._know(root)

    def _know(self, root: torch.nn.Module) -> None:
        """Take in what the model tells of itself."""
        place = device_of(root)
        if place is None or place.type not in ("cpu", "cuda"):
            where = "without parameters" if place is None else f"on {place.type}"
            raise UnsupportedError(f"a model {where} is not looked at: it has to be on cpu or cuda")
        self._root_was_missing = False
        self._watch.see_calls_of(root)
        self._device = open_device(str(place), attached=True)
        self._vocabulary = vocabulary_of(inner_of(root))
        environment = {**self._seen.environment, **self._device.environment()}
        if place.type == "cpu":
            environment["onednn_in_trace"] = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
        self._tell(environment=environment, parameters=counted_parameters(inner_of(root)), versions=imported_versions())

    def _step_is_over(self) -> None:
        self._taken += 1
        if self._stage == "warm-up" and self._taken >= self._plan.warmup:
            self._judge()
            self._stage = "timed"
            self._next()
        elif self._stage == "timed":
            assert self._clock is not None
            self._clock.enter("end")
            self._ended.append(self._clock)
            self._clock = None
            self._next()
        elif self._stage == "listening":
            assert self._traced is not None
            self._stage = "traced"
            self._traced.begin()
        elif self._stage == "traced":
            self._take_trace()
        else:
            self._phase = SCRIPT

    def _next(self) -> None:
        """Go on with another timed step, or with what comes after the last."""
        assert self._root is not None
        assert self._device is not None
        if len(self._ended) + len(self._times) < self._plan.steps:
            if time.monotonic() - self._told_at > _PAUSE_S:
                self._read_clocks(only_ready=True)
            self._clock = StepClock(self._device.clock())
            self._enter(SCRIPT)
            return
        self._read_clocks()
        self._tell(memory=untraced_memory(self._device))
        reason = why_not_traced(self._root, self._device) if self._plan.trace else ""
        if reason is None:
            self._begin_trace()
            return
        if reason:
            self._remarks[f"no step was traced: {reason}"] = None
        self._done()

    def _read_clocks(self, *, only_ready: bool = False) -> None:
        """Take in the times of the steps that have ended; wait for the device unless told otherwise."""
        while self._ended and (not only_ready or self._ended[0].is_ready()):
            self._times.append(self._ended.pop(0).read())
        steps = tuple(self._times)
        self._tell(steps=steps, spread=spread(steps), throughput=rates_of(steps, self._root))

    def _begin_trace(self) -> None:
        assert self._root is not None
        assert self._device is not None
        self._stage, self._phase = "listening", SCRIPT
        self._traced = TracedStep(self._root, self._optimizers, self._device, self._logits_sizes)
        if self._device.type == "cuda":
            self._peaks = KeptPeaks(torch.device(self._device.torch_name).index)
        if self._traced.prepare(self._yield_to_profiler):
            self._stage = "traced"
            self._traced.begin()

    def _yield_to_profiler(self) -> None:
        """Give up the trace: the script begins to profile, and there is one profiler in a process."""
        if self._traced is not None:
            traced, self._traced = self._traced, None
            traced.abandon()
            self._remarks["no step was traced: the script has begun to profile meanwhile"] = None
            self._done()

    def _take_trace(self) -> None:
        assert self._traced is not None
        assert self._device is not None
        traced, self._traced = self._traced, None
        trace, attribution = traced.finish()
        if self._peaks is not None:
            self._peaks.keep(trace.peaks())
        # the account of the untraced steps goes back to before the training, and is not to be held against this one
        self._seen = with_trace(replace(self._seen, memory=None), trace, attribution, self._device)
        self._judge(trace)
        self._done()

    def _judge(self, trace: StepTrace | None = None) -> None:
        """Hold the model to its promises, where it makes any."""
        assert self._root is not None
        assert self._boundary is not None
        promises, remark = promises_of(inner_of(self._root), self._boundary, self._seen.promises, trace)
        if remark:
            self._remarks[remark] = None
        self._tell(promises=promises)

    def _done(self) -> None:
        self._stage_reached = "done"
        self._tell(unmodelled=tuple(self._remarks))
        self._let_go()

    def _tell(self, **changes: Any) -> None:
        self._seen = replace(self._seen, **changes)
        self._report(self._seen)
        self._told_at = time.monotonic()
