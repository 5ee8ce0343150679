"""The largest batch, sequence or rank of several methods on several cards: what is asked, whoever judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorafa_prof.advice import with_advice
from lorafa_prof.compare import capacity
from lorafa_prof.engines import card_profile_in
from lorafa_prof.errors import BadInputError
from lorafa_prof.runs import for_each_method
from lorafa_prof.specs import DeviceSpec, ModelSpec, RunnableModel, RunSpec
from lorafa_prof.speed import step
from lorafa_prof.thresholds import Engine, find_threshold
from lorafa_prof.units import format_bytes

if TYPE_CHECKING:
    from lorafa_prof.analytic.thresholds import ClosedForms
    from lorafa_prof.analytic.timer import Timer
    from lorafa_prof.results import Axis, Threshold
    from lorafa_prof.speed.profile import DeviceProfile


#: The engine that observes, and predicts nothing.
OBSERVING = "measure"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, whoever answers."""

    forms: ClosedForms
    """For arithmetic, and for a place to begin to look."""
    axis: Axis
    methods: list[str]
    advice: bool
    timer: Timer | None
    """For times; None: none are given."""
    run_of: Callable[[str], RunSpec]
    tell: Callable[[str], object]
    """Told which default methods are left out."""

    def ask(self, judge: Engine, devices: Sequence[DeviceSpec]) -> list[Threshold]:
        """Return the thresholds of all methods on all devices, device by device."""

        def on(device: DeviceSpec, run: RunSpec) -> Threshold:
            found = find_threshold(judge, run, self.axis, device)
            if judge.name != OBSERVING:  # whose times are those of its steps
                found = self._timed(found, device)
            if not self.advice:
                return found
            return with_advice(judge, found, device, self.forms.executed_flops, self._time_ratio)

        def of_method(name: str) -> list[Threshold]:
            run = self.run_of(name)
            return [on(device, run) for device in devices]

        found = for_each_method(self.methods, of_method, self.tell)
        return [each for same_device in zip(*found, strict=True) for each in same_device]

    def _time_ratio(self, changed: RunSpec, run: RunSpec, device: DeviceSpec) -> float | None:
        return None if self.timer is None else self.timer.ratio(changed, run, device)

    def _timed(self, found: Threshold, device: DeviceSpec) -> Threshold:
        """Return the threshold with the time of the step at it, or why there is none."""
        if self.timer is None or found.at_max is None:
            return found
        run = found.at(found.max)
        time = self.timer.step_time(run, device)
        if time.timeline is None:
            return replace(found, why_no_time=time.why_not)
        rates = time.throughput(self.forms.arithmetic(run), run)
        at_max = replace(found.at_max, step_s=rates.step_s, tokens_per_s=rates.tokens_per_s, mfu=rates.mfu)
        return replace(
            found, at_max=at_max, profile=time.profile.label, assumptions=(*found.assumptions, time.profile.describe()),
            unmodelled=(*step.but_times(found.unmodelled), *self.timer.unmodelled(run, time)),
        )  # fmt: skip


def length_to_begin_with(axis: Axis, seq: int, model: ModelSpec | RunnableModel) -> int:
    """Return the sequence length of the run that is asked about: on its own axis of no account, so none too long."""
    return min(seq, model.max_positions or seq) if axis == "seq" else seq


def cards(names: Sequence[str], cap: int | None, also: Sequence[DeviceSpec] = ()) -> list[DeviceSpec]:
    """Return the cards that were named, with no more memory than the cap leaves them; or one of the cap alone.

    Raises:
        BadInputError: neither a card nor a cap; a name that is not known.
    """
    from lorafa_prof.catalog import device_names, load_device

    if not names and not also and cap is None:
        raise BadInputError(
            "on which card? Name one with --gpu (rtx4090, a100-80gb, ...: lorafa-prof list gpus), take --gpu all, or a "
            "size with --cap 24GiB"
        )
    if cap is not None and not names and not also:
        return [
            DeviceSpec(
                name=f"{format_bytes(cap)} card", full_name=f"a card of {format_bytes(cap)}", vendor="nvidia",
                architecture="", compute_capability=None, total_bytes=cap, bandwidth=None, peak_flops={},
            )
        ]  # fmt: skip
    found = [*(load_device(name) for name in (device_names() if "all" in names else names)), *also]
    return found if cap is None else [_capped(device, cap) for device in found]


def profiled_cards(
    profile: str | None, names: Sequence[str], cap: int | None, also: Sequence[DeviceSpec] = ()
) -> tuple[list[DeviceSpec], DeviceProfile | None]:
    """Return `cards`, and the profile in a file, whose card is the one that is asked about where none is named.

    Raises:
        BadInputError: as `cards`; no profile, or one of another card or of a CPU.
    """
    if profile is None:
        return cards(names, cap, also), None
    named = [*also]
    if not names:
        card_profile_in(profile, named)
    found = cards(names, cap, named)
    return found, card_profile_in(profile, found)


def timer_by(profile: DeviceProfile | None, link: str | None = None) -> Timer:
    """Return what times steps.

    Args:
        profile: of the card of its name.
        link: between several cards, as "25GB/s"; None: theirs, where it is known.

    Raises:
        BadInputError: not a rate.
    """
    from lorafa_prof.analytic.timer import Timer
    from lorafa_prof.speed.links import read_link

    return Timer(profile, link=None if link is None else read_link(link))


def _capped(device: DeviceSpec, cap: int) -> DeviceSpec:
    """Return the card with so many bytes for the allocator, and the CUDA context on top, as `measure --cap` has it."""
    room = capacity({"total_bytes": device.total_bytes, "cap_bytes": cap}, device.context_bytes)
    return replace(device, total_bytes=room or cap)
