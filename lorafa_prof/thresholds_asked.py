"""The largest batch, sequence or rank of several methods on several cards: what is asked, whoever judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorafa_prof.advice import with_advice
from lorafa_prof.compare import capacity
from lorafa_prof.errors import BadInputError
from lorafa_prof.runs import for_each_method
from lorafa_prof.specs import DeviceSpec, ModelSpec, RunnableModel, RunSpec
from lorafa_prof.thresholds import Engine, find_threshold
from lorafa_prof.units import format_bytes

if TYPE_CHECKING:
    from lorafa_prof.analytic.thresholds import ClosedForms
    from lorafa_prof.results import Axis, Threshold


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, whoever answers."""

    forms: ClosedForms
    """For arithmetic, and for a place to begin to look."""
    axis: Axis
    methods: list[str]
    advice: bool
    run_of: Callable[[str], RunSpec]
    tell: Callable[[str], object]
    """Told which default methods are left out."""

    def ask(self, judge: Engine, devices: Sequence[DeviceSpec]) -> list[Threshold]:
        """Return the thresholds of all methods on all devices, device by device."""

        def on(device: DeviceSpec, run: RunSpec) -> Threshold:
            found = find_threshold(judge, run, self.axis, device)
            return with_advice(judge, found, device, self.forms.executed_flops) if self.advice else found

        def of_method(name: str) -> list[Threshold]:
            run = self.run_of(name)
            return [on(device, run) for device in devices]

        found = for_each_method(self.methods, of_method, self.tell)
        return [each for same_device in zip(*found, strict=True) for each in same_device]


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


def _capped(device: DeviceSpec, cap: int) -> DeviceSpec:
    """Return the card with so many bytes for the allocator, and the CUDA context on top, as `measure --cap` has it."""
    room = capacity({"total_bytes": device.total_bytes, "cap_bytes": cap}, device.context_bytes)
    return replace(device, total_bytes=room or cap)
