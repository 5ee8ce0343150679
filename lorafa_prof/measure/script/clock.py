"""The time of a script's step, from the end of one optimizer step to the end of the next, and what it went to."""

from __future__ import annotations

from lorafa_prof.measure.devices import Clock
from lorafa_prof.results import StepTime


class StepClock:
    """Times one step on the device's own clock; nothing waits for the device before it is read.

    Args:
        clock: a fresh one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._phases: list[str] = []
        self.tokens: int | None = None

    def enter(self, phase: str) -> None:
        """Say that a phase begins."""
        self._phases.append(phase)
        self._clock.tick()

    def is_ready(self) -> bool:
        """Return whether `read` would not have to wait."""
        return self._clock.ready()

    def read(self) -> StepTime:
        """Return the times, when the last phase that was entered is the end."""
        seconds = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
        total = 0.0
        for phase, time in zip(self._phases, self._clock.seconds(), strict=False):
            total += time
            if phase in seconds:
                seconds[phase] += time
        return StepTime(
            step_s=total, forward_s=seconds["forward"], backward_s=seconds["backward"],
            optimizer_s=seconds["optimizer"], tokens=self.tokens,
        )  # fmt: skip
