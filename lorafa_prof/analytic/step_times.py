"""How long a step takes on a card: its operators in closed form, on a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorafa_prof.analytic.optimizer_works import optimizer_works
from lorafa_prof.analytic.step_plan import StepPlan
from lorafa_prof.analytic.works import StepWorks
from lorafa_prof.analytic.zero import as_deepspeed_casts
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.sharding import is_shared, sent_bytes
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.speed import step
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.links import LINKS, Link, Sharing
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.step import StepTime
from lorafa_prof.speed.work import OpWork

#: Said of predictions without a step time.
UNTIMED = ("step time and MFU",)


def step_times(
    run: RunSpec,
    plan: StepPlan,
    devices: Sequence[DeviceSpec],
    profile: DeviceProfile | None,
    link: Link | None = None,
) -> tuple[StepTime, ...]:
    """Return the time of a step on each device.

    Args:
        run: the configuration.
        plan: its plan, which says what several cards share and send.
        devices: on which.
        profile: of the device of its name; the others have their default ones.
        link: between several cards; None: that of the devices, where it is known.
    """
    own = [
        profile if profile is not None and profile.name == device.name else default_profile(device)
        for device in devices
    ]  # fmt: skip
    try:
        works = card_works(StepWorks(alone(run)), plan, run) if own else []
    except UnsupportedError as error:
        return tuple(StepTime(profile=each, timeline=None, why_not=f"no step time: {error}") for each in own)
    return tuple(StepTime.of(works, each, sharing_of(plan, run, link or LINKS.get(each.name))) for each in own)


def alone(run: RunSpec) -> RunSpec:
    """Return the run whose forward and backward a card computes, whoever else takes the step with it."""
    return as_deepspeed_casts(run).replace(gpus=1, shard="none") if is_shared(run) else run


def card_works(works: StepWorks, plan: StepPlan, run: RunSpec) -> list[OpWork]:
    """Return a card's operations: forward and backward as `alone` has them, and the update of its own part."""
    if run.shard in ("none", "ddp"):  # all of it
        return with_dtypes(works.at(run.bs, run.seq), run)
    return with_dtypes(works.passes(run.bs, run.seq) + optimizer_works(run, plan.sharing.updated()), run)


def sharing_of(plan: StepPlan, run: RunSpec, link: Link | None) -> Sharing | None:
    """Return what a step takes of a card's time beside its own computation; None where there is no other card."""
    if run.gpus == 1:
        return None
    sent = sent_bytes(plan.sharing.collectives(), run.gpus)
    units = run.spec.num_layers + run.spec.num_decoder_layers
    return Sharing(shard=run.shard, gpus=run.gpus, sent=sent, units=units, link=link, passes=run.accumulation)


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
