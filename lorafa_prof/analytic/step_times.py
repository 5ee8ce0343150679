"""How long a step takes on a card: its operators in closed form, on a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorafa_prof.analytic.works import step_works
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.speed import step
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.step import StepTime
from lorafa_prof.speed.work import OpWork

#: Said of predictions without a step time.
UNTIMED = ("step time and MFU",)


def step_times(run: RunSpec, devices: Sequence[DeviceSpec], profile: DeviceProfile | None) -> tuple[StepTime, ...]:
    """Return the time of a step on each device, by `profile` on the one of its name, else by its default one."""
    own = [
        profile if profile is not None and profile.name == device.name else default_profile(device)
        for device in devices
    ]  # fmt: skip
    try:
        works = with_dtypes(step_works(run), run) if own and run.gpus == 1 else []
    except UnsupportedError as error:
        return tuple(StepTime(profile=each, timeline=None, why_not=f"no step time: {error}") for each in own)
    return tuple(StepTime.of(works, each, run) for each in own)


def with_dtypes(works: Sequence[OpWork], run: RunSpec) -> list[OpWork]:
    """Return a run's operations; arithmetic without a shape is in the dtype of the run's products."""
    dtype = "bf16" if run.amp else run.dtype
    return [work if work.dtype or work.kind == "memory" else replace(work, dtype=dtype) for work in works]


def times_unmodelled(run: RunSpec, times: Sequence[StepTime]) -> tuple[str, ...]:
    """Return what step times leave out, and why some are missing."""
    timelines = [time.timeline for time in times if time.timeline is not None]
    lines = list(step.unmodelled(times, run) or UNTIMED)
    if timelines:
        lines.append(
            "in the step time: operators that only make views, small tables or masks, which cost the host time "
            "(--engine simulate counts them): a small batch is launch-bound earlier than is said here"
        )
    if any("optimizer" not in each.by_phase for each in timelines):
        lines.append(f"in the step time: the step of the optimizer ({run.resolved_optimizer})")
    return tuple(lines)
