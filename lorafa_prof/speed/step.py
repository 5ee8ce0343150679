"""What a prediction says of a step's time: one run on one device, by one profile."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.results import Fit, Throughput
from lorafa_prof.specs import RunSpec
from lorafa_prof.speed.links import Sharing
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.timeline import StepTimeline, timeline
from lorafa_prof.speed.work import OpWork

#: What no step time here contains.
UNMODELLED = (
    "in the step time: data loading, logging, what other processes take of card and host, clocks lowered by heat or a "
    "power limit of one's own, the first steps (compilation, autotuning, the allocator's requests to the driver)"
)
#: The card whose published runs the default profile has been held to (docs/speed.md).
COMPARED = "a100-80gb"
#: What is true of every time of several cards.
SEVERAL = (
    "a comparison of the time of several cards: no run on more than one has been held to; links that slow the "
    "computation they run beside, stragglers, copies into and out of buffers of communication"
)
#: Operators of cuSOLVER, whose kernels are many and small, and which no public figure times.
_DECOMPOSITIONS = re.compile(r"linalg_(svd|pinv|eigh|qr|inv|cholesky|solve|lu)")
_PAGED = "in the step time: pages of optimizer states that move between card and host"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of one step on one device, or why there is none."""

    profile: DeviceProfile
    timeline: StepTimeline | None
    why_not: str | None = None
    decompositions: tuple[str, ...] = ()
    """Operators of the step whose time is not that of the memory they move: it is not in the timeline."""
    sharing: Sharing | None = None
    """How several cards share the step, where the timeline has that."""
    dtype: str | None = None
    """In which most of the step's operations are; None: that of the run."""

    @classmethod
    def of(cls, works: Sequence[OpWork], profile: DeviceProfile, sharing: Sharing | None = None) -> StepTime:
        """Time the operations of a step, one card's own; `sharing` says what it waits for where there are others."""
        try:
            decompositions = tuple(dict.fromkeys(work.op for work in works if _DECOMPOSITIONS.search(work.op)))
            found = timeline(works, profile)
            if sharing is not None:
                found = found.with_communication(sharing.waiting(found.by_phase, profile.name))
            return cls(
                profile=profile, timeline=found, decompositions=decompositions, sharing=sharing,
                dtype=products_dtype(works),
            )  # fmt: skip
        except UnsupportedError as error:
            return cls(profile=profile, timeline=None, why_not=f"no step time: {error}")

    def throughput(self, flops: Throughput, run: RunSpec) -> Throughput:
        """Return the arithmetic of the run's step with its time and what it makes of the device's peak."""
        if self.timeline is None or not self.timeline.step_s:
            return flops
        seconds = self.timeline.step_s
        peak = self.profile.peak_flops.get(self.dtype or run.products_dtype)

        def used(operations: int | None) -> float | None:
            return None if operations is None or not peak else operations / seconds / peak

        return replace(
            flops, step_s=seconds, tokens_per_s=run.tokens / seconds, mfu=used(flops.model_flops),
            mfu_6n=used(flops.model_flops_6n), hfu=used(flops.executed_flops),
        )  # fmt: skip

    def fit(self, fit: Fit, flops: Throughput, run: RunSpec) -> Fit:
        """Return the entry of a device with its step time."""
        if self.timeline is None:
            return replace(fit, profile=self.profile.label, why_no_time=self.why_not)
        rates = self.throughput(flops, run)
        return replace(
            fit, profile=self.profile.label, step_s=rates.step_s, tokens_per_s=rates.tokens_per_s, mfu=rates.mfu,
            mfu_6n=rates.mfu_6n, hfu=rates.hfu, time_by_kind=dict(self.timeline.by_kind),
            time_by_phase=dict(self.timeline.by_phase),
        )  # fmt: skip


def products_dtype(works: Sequence[OpWork]) -> str | None:
    """Return the dtype in which most floating-point operations are, whose peak is the one to reach; None: of none.

    It need not be the run's: bitsandbytes multiplies 4-bit weights in bf16 whatever the rest of the model is in.
    """
    flops: dict[str, int] = {}
    for work in works:
        if work.flops:
            flops[work.dtype] = flops.get(work.dtype, 0) + work.flops
    return max(flops, key=flops.__getitem__, default=None)


def unmodelled(times: Sequence[StepTime], run: RunSpec) -> tuple[str, ...]:
    """Return what step times leave out, and why some are missing."""
    lines = list(dict.fromkeys(time.why_not for time in times if time.why_not))
    if any(time.timeline is not None for time in times):
        lines.append(UNMODELLED)
        lines += uncompared([time.profile for time in times if time.timeline is not None])
        if run.gpus > 1:
            lines.append(SEVERAL)
        if run.resolved_optimizer.startswith("paged"):
            lines.append(_PAGED)
        found = dict.fromkeys(op for time in times if time.timeline is not None for op in time.decompositions)
        if found:
            lines.append(f"in the step time: the decompositions of {', '.join(found)}, of which only memory is counted")
    return tuple(lines)


def but_times(lines: Sequence[str]) -> tuple[str, ...]:
    """Return what an engine leaves out of a run, without its saying that a step time is among that."""
    return tuple(line for line in lines if not line.startswith("step time"))


def uncompared(profiles: Sequence[DeviceProfile]) -> tuple[str, ...]:
    """Return for which profiles no real step has been held against a predicted time."""
    names = dict.fromkeys(p.name for p in profiles if p.kind == "cuda" and (p.measured or p.name != COMPARED))
    if not names:
        return ()
    return (
        f"a comparison of step times on {', '.join(names)}: published runs of an {COMPARED} alone have been held to",
    )


def assumptions(times: Sequence[StepTime]) -> tuple[str, ...]:
    """Return what step times rest on."""
    timed = [time for time in times if time.timeline is not None]
    lines = [time.profile.describe() for time in timed]
    return tuple(dict.fromkeys([*lines, *(time.sharing.describe() for time in timed if time.sharing is not None)]))
