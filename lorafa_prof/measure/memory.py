"""From a traced step to the memory of a measurement: parts, peaks, phases, timeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorafa_prof.measure.attribution import Attribution
from lorafa_prof.measure.devices import Device
from lorafa_prof.measure.trace import Levels, StepTrace
from lorafa_prof.results import PART_FIELDS, Measurement, Memory


def untraced_memory(device: Device) -> Memory | None:
    """Return the peaks of the steps that ran untraced, without parts; None where the allocator keeps no account."""
    reading = device.levels()
    if reading is None:
        return None
    nothing: Any = dict.fromkeys(PART_FIELDS)
    return Memory(**nothing, **_peaks(reading.peak, device), peak_moment="")


def _peaks(peak: Levels, device: Device) -> dict[str, Any]:
    context = device.context_bytes()
    on_device = None if context is None or peak.reserved is None else peak.reserved + context
    return {
        "peak_requested_bytes": peak.requested,
        "peak_allocated_bytes": peak.allocated,
        "peak_reserved_bytes": peak.reserved,
        "fragmentation_bytes": None if peak.reserved is None else peak.reserved - peak.allocated,
        "context_bytes": context,
        "peak_device_bytes": on_device,
    }


def with_trace(seen: Measurement, trace: StepTrace, attribution: Attribution, device: Device) -> Measurement:
    """Return the measurement with the memory of its traced step."""
    phases, ledger = trace.phases(), attribution.ledger()
    memory = Memory(
        **Memory.parts_from(ledger),
        **_peaks(trace.peaks(), device),
        peak_moment=ledger.moment,
        saved_activations_bytes=attribution.saved_activation_bytes(),
        trained_gradients_bytes=attribution.gradient_bytes(),
        moments={phase.phase: phase.peak_allocated_bytes for phase in phases if phase.peak_allocated_bytes is not None},
    )
    untraced = None if seen.memory is None else seen.memory.peak_allocated_bytes
    unmodelled = seen.unmodelled
    if untraced is not None and untraced != memory.peak_allocated_bytes:
        unmodelled += (f"the untraced steps peak at {untraced} bytes allocated, the traced one elsewhere",)
    retries, ooms = device.counters()
    return replace(
        seen, memory=memory, phases=phases, ledger=ledger, timeline=tuple(trace.stretches()), alloc_retries=retries,
        alloc_ooms=ooms, unmodelled=unmodelled,
    )  # fmt: skip


def with_pass(seen: Measurement, before: StepTrace) -> Measurement:
    """Return the measurement with the phases of the pass that came before training."""
    phases = before.phases()
    peaks = {phase.phase: phase.peak_allocated_bytes for phase in phases if phase.peak_allocated_bytes is not None}
    memory = seen.memory
    if memory is not None:
        memory = replace(memory, moments={**peaks, **memory.moments})
    return replace(seen, memory=memory, phases=(*phases, *seen.phases))
