"""The closed forms as an engine that is searched for thresholds."""

from __future__ import annotations

from lorafa_prof.analytic.engine import outside_plan, predict, refuse_unmodelled
from lorafa_prof.analytic.frontier import Plans, largest_within, smallest_beyond
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.results import Axis
from lorafa_prof.specs import LARGEST_BATCH, DeviceSpec, RunSpec
from lorafa_prof.thresholds import Verdict


class ClosedForms:
    """Judges and searches by closed forms; plans are kept from one question to the next."""

    name = "analytic"
    is_quick = True
    largest_batch = LARGEST_BATCH

    def __init__(self) -> None:
        self._plans = Plans()

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        """See `lorafa_prof.thresholds.Engine.verdict`."""
        return Verdict.predicted(predict(run, [device], plans=self._plans, largest_batch=False, blocks=None))

    def headroom(self, run: RunSpec, device: DeviceSpec) -> int:
        """See `lorafa_prof.thresholds.Engine.headroom`."""
        refuse_unmodelled(run)
        return device.total_bytes - outside_plan(device) - self._plans.allocated(run)

    def largest(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        """See `lorafa_prof.thresholds.Engine.largest`; exact, also where memory falls along the axis."""
        refuse_unmodelled(run)
        return largest_within(self._plans, run, axis, device.total_bytes - outside_plan(device), most)

    def gap(self, run: RunSpec, axis: Axis, device: DeviceSpec, below: int) -> int | None:
        """See `lorafa_prof.thresholds.Engine.gap`."""
        return smallest_beyond(self._plans, run, axis, device.total_bytes - outside_plan(device), below)

    def guess(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int | None:
        """Return where other engines may begin to look; None for what this one does not model."""
        try:
            return self.largest(run, axis, device, most)
        except LorafaProfError:
            return None

    def executed_flops(self, run: RunSpec) -> int | None:
        """Return the FLOPs that a step of `run` executes; None for what this engine does not model."""
        try:
            refuse_unmodelled(run)
            return sum(self._plans.of(run).flops(run.bs, run.seq).values()) * run.accumulation
        except LorafaProfError:
            return None
