"""A simulated run as a record of its step: every operation that allocates, alike ones of all layers together."""

from __future__ import annotations

from dataclasses import dataclass

from lorafa_prof.results.step_record import Operation, StepRecord
from lorafa_prof.simulate.engine import Simulation
from lorafa_prof.simulate.ledgers import phase_name
from lorafa_prof.simulate.playback import blocks_alive_at
from lorafa_prof.simulate.recording import micro_batches
from lorafa_prof.simulate.trace import Block
from lorafa_prof.simulate.works import step_throughput
from lorafa_prof.units import allocated

Key = tuple[str, str, str, str, str, tuple[int, ...], str]


@dataclass
class _Counts:
    step_count: int = 0
    step_bytes: int = 0
    peak_count: int = 0
    peak_bytes: int = 0


def step_record(simulation: Simulation) -> StepRecord:
    """Return what the last simulated step allocates, and what is alive at the peak, operation by operation."""
    found: dict[Key, _Counts] = {}
    trace = simulation.trace
    for event in trace.events[_last_step(simulation) :]:
        if event >= 0:
            counts = found.setdefault(_key(trace.blocks[event]), _Counts())
            counts.step_count += 1
            counts.step_bytes += allocated(trace.blocks[event].nbytes)
    alive = blocks_alive_at(trace, simulation.replayed.allocated.position, simulation.settings)
    for number, size in alive.items():
        counts = found.setdefault(_key(trace.blocks[number]), _Counts())
        counts.peak_count += 1
        counts.peak_bytes += size
    return StepRecord(
        run=simulation.recording.run,
        versions=dict(simulation.versions),
        device=None if simulation.device is None else simulation.device.name,
        settings=simulation.settings.describe(),
        memory=simulation.memory(),
        throughput=step_throughput(simulation.recording, simulation.platform.traits),
        parameters=simulation.recording.parameters,
        operations=tuple(_operation(key, counts) for key, counts in found.items()),
    )


def _last_step(simulation: Simulation) -> int:
    """Return the position where the last step begins, with its first micro-batch."""
    starts = [position for position, phase in simulation.trace.marks if phase == "forward"]
    return starts[:: micro_batches(simulation.recording.run)][-1]


def _key(block: Block) -> Key:
    path = block.owner if block.name else block.module
    module = ".".join("*" if part.isdigit() else part for part in path.split("."))
    phase = phase_name(block.phase, block.module)
    return phase, module, block.op, block.name, block.category.value, block.shape, block.dtype


def _operation(key: Key, counts: _Counts) -> Operation:
    phase, module, operator, name, category, shape, dtype = key
    return Operation(
        phase=phase, module=module, operator=operator, name=name, category=category,
        shape=f"({', '.join(map(str, shape))})", dtype=dtype, step_count=counts.step_count,
        step_bytes=counts.step_bytes, peak_count=counts.peak_count, peak_bytes=counts.peak_bytes,
    )  # fmt: skip
