"""The time of many steps by closed forms: what was traced for one serves for every other batch and length."""

from __future__ import annotations

from lorafa_prof.analytic.frontier import Plans
from lorafa_prof.analytic.optimizer_works import is_listed
from lorafa_prof.analytic.plan import regime
from lorafa_prof.analytic.step_times import alone, card_works, sharing_of, times_unmodelled, with_dtypes
from lorafa_prof.analytic.works import StepWorks
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.links import LINKS, Link
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.step import StepTime
from lorafa_prof.speed.work import OpWork

#: Traces that are kept, some hundred kB each.
_MOST_HELD = 32


class Timer:
    """Times steps on cards.

    Args:
        profile: of the card of its name; every other one has its default profile.
        plans: of runs that several cards share; None: its own.
        link: between several cards; None: that of the device, where it is known.
    """

    def __init__(
        self, profile: DeviceProfile | None = None, plans: Plans | None = None, link: Link | None = None
    ) -> None:
        self._profile, self._link = profile, link
        self._plans = Plans() if plans is None else plans
        self._traced: dict[tuple[RunSpec, int], StepWorks] = {}
        self._held_against: tuple[RunSpec, DeviceSpec, StepTime] | None = None

    def step_time(self, run: RunSpec, device: DeviceSpec) -> StepTime:
        """Return the time of a run's step on a card, or why there is none."""
        profile = self.profile_of(device)
        try:
            sharing = None
            if run.gpus > 1:
                sharing = sharing_of(self._plans.of(run), run, self._link or LINKS.get(device.name))
            return StepTime.of(self.works(run), profile, sharing)
        except LorafaProfError as error:
            return StepTime(profile=profile, timeline=None, why_not=f"no step time: {error}")

    def unmodelled(self, run: RunSpec, time: StepTime) -> tuple[str, ...]:
        """Return what a run's time leaves out, or why there is none."""
        return times_unmodelled(run, [time])

    def ratio(self, changed: RunSpec, run: RunSpec, device: DeviceSpec) -> float | None:
        """Return the seconds a token of a changed run over those of the run; None where they are not both known.

        Nor are they where one of two optimizers is not in its step's time, or decomposes matrices and the other does
        not: nobody has published how long that takes.
        """
        if changed.resolved_optimizer != run.resolved_optimizer and not (is_listed(changed) and is_listed(run)):
            return None
        one, other = self._reference(run, device), self.step_time(changed, device)
        before, after = one.timeline, other.timeline
        if before is None or after is None or not before.step_s or one.decompositions != other.decompositions:
            return None
        return (after.step_s / changed.tokens) / (before.step_s / run.tokens)

    def _reference(self, run: RunSpec, device: DeviceSpec) -> StepTime:
        """Return the time of the step that others are held against, one after another: it is worked out once."""
        held = self._held_against
        if held is None or held[0] is not run or held[1] is not device:
            held = self._held_against = run, device, self.step_time(run, device)
        return held[2]

    def works(self, run: RunSpec) -> list[OpWork]:
        """Return the operations of a run's step, of one card where several share it.

        Raises:
            UnsupportedError: what closed forms do not model.
        """
        standing = regime(alone(run))
        key = (standing, id(run.model.config))
        if key not in self._traced:
            while len(self._traced) >= _MOST_HELD:
                del self._traced[next(iter(self._traced))]
            self._traced[key] = StepWorks(standing)
        works = self._traced[key]
        return (
            card_works(works, self._plans.of(run), run) if run.gpus > 1 else with_dtypes(works.at(run.bs, run.seq), run)
        )

    def profile_of(self, device: DeviceSpec) -> DeviceProfile:
        """Return the profile by which a card's steps are timed."""
        if self._profile is not None and self._profile.name == device.name:
            return self._profile
        return default_profile(device)
