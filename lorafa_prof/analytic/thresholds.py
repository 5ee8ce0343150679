"""The closed forms as an engine that is searched for thresholds."""

from __future__ import annotations

from lorafa_prof.analytic.engine import outside_plan, predict
from lorafa_prof.analytic.frontier import LARGEST_BATCH, Plans, frontier
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.results import Axis
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.thresholds import Found, Verdict


class ClosedForms:
    """Judges and searches by closed forms; plans are kept from one question to the next."""

    name = "analytic"
    largest_batch = LARGEST_BATCH

    def __init__(self) -> None:
        self._plans = Plans()

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        """See `lorafa_prof.thresholds.Engine.verdict`."""
        return Verdict.predicted(predict(run, [device], plans=self._plans, largest_batch=False))

    def search(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> Found:
        """See `lorafa_prof.thresholds.Engine.search`; exact, also where memory falls along the axis."""
        limit = device.total_bytes - outside_plan(device)
        best, worst = frontier(run, axis, most, lambda each: self._plans.allocated(each) <= limit)
        return Found(max=best, fails_from=worst if worst is not None and worst < best else None)

    def executed_flops(self, run: RunSpec) -> int | None:
        """Return the FLOPs that a step of `run` executes; None for what this engine does not model."""
        try:
            return predict(run, plans=self._plans).throughput.executed_flops
        except LorafaProfError:
            return None
