"""What the simulation says of a recorded step, at the moments and under the names of its record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lorafa_prof.allocator.caching_allocator import CachingAllocator
from lorafa_prof.catalog import load_device
from lorafa_prof.ledger import Category
from lorafa_prof.simulate.cpu_platform import Cpu
from lorafa_prof.simulate.engine import simulate
from lorafa_prof.simulate.on_cpu import build_for_cpu
from lorafa_prof.simulate.playback import play
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.trace import Trace
from tests.ground_truth.records import CPU, Record, run_of

#: The phases in which a record's moments lie: which of the trace's begin after each.
_ENDS = {"forward": "backward", "backward": "optimizer", "optimizer": "zero_grad"}
#: What a record says at the end of a step: gradients are gone, and the loss too.
MOMENTS = (
    "start", "after_forward", "peak_forward", "after_backward", "peak_backward", "after_optimizer", "peak_optimizer",
    "end", "peak",
)  # fmt: skip


def simulated_moments(recorded: Record) -> dict[str, int]:
    """Return bytes at each moment of a step in the steady state, as the simulation has them.

    On the CPU these are the bytes of tensors, on CUDA those that the caching allocator counts. All are without the
    batch: the package's own steps are given tokens, labels and a mask, the recorder's only what the model needs.
    """
    run = run_of(recorded.case)
    if recorded.device == CPU:
        platform = Cpu(recorded.data["threads"])
        trace = record(run, platform, build_for_cpu).trace(2, platform)
        levels = list(itertools.accumulate(trace.sizes[e] if e >= 0 else -trace.sizes[~e] for e in trace.events))
        return _moments(trace, levels, _batch(trace, {}))
    simulation = simulate(run, load_device(recorded.device))
    trace, allocator, addresses = simulation.trace, CachingAllocator(simulation.settings), dict[int, int]()
    levels = [allocator.allocated for _ in play(trace, allocator, addresses)]
    return _moments(trace, levels, _batch(trace, {block: allocator.block_size(at) for block, at in addresses.items()}))


def _batch(trace: Trace, blocks: dict[int, int]) -> int:
    """Return the bytes of the batch, which is there before the first step; of blocks that are larger, theirs."""
    held = [
        i for i, block in enumerate(trace.blocks) if block.phase == "load" and block.category is Category.ACTIVATIONS
    ]
    return sum(blocks.get(number, trace.blocks[number].nbytes) for number in held)


def _moments(trace: Trace, levels: Sequence[int], batch: int) -> dict[str, int]:
    """Read the last step's moments off the level after each event."""
    first = trace.position("forward")
    found = {"start": levels[first - 1] - batch}
    for name, begins in _ENDS.items():
        end = trace.position(begins)
        found[f"after_{name}"] = levels[end - 1] - batch
        found[f"peak_{name}"] = max(levels[first - 1 : end]) - batch
    return found | {"end": levels[-1] - batch, "peak": max(levels[first - 1 :]) - batch}


def recorded_moments(recorded: Record) -> dict[str, int]:
    """Return the same of the record, without its batch."""
    phases = recorded.data["phases"]
    batch = phases["batch"] - phases["adapters"]
    return {name: recorded.steady[name] - batch for name in MOMENTS}
