"""What the allocator's blocks have beyond the tensors of a plan: what is replayed is what is alive, and no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from lorafa_prof.allocator.sizes import SMALL_SIZE
from lorafa_prof.analytic.blocks import beyond_tensors, most_beyond_tensors, replayed
from lorafa_prof.analytic.engine import predict
from lorafa_prof.analytic.plan import plan
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.analytic.step_plan import StepPlan
from lorafa_prof.analytic.timeline import Kind, Place, Timeline, state_kind
from lorafa_prof.catalog import load_model
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.units import MIB
from tests.analytic.runs import FAMILIES, run_of
from tests.support.configs import method_for

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "autocast": {"amp": True, "dtype": "fp32"},
    "recomputed": {"checkpointing": "full"},
    "selective": {"checkpointing": "selective"},
    "several": {"accumulation": 2},
    "several recomputed": {"accumulation": 2, "checkpointing": "full", "amp": True, "dtype": "fp32"},
}


def large_alive(planned: StepPlan, bs: int, seq: int, position: int) -> int:
    """Bytes of the tensors above 1 MiB that are alive at a position."""
    values = symbol_values(bs, seq)
    sizes = [(rounded(k.size[0] * product_of(k.size[1], values)), count) for k, count in planned.alive(position)]
    return sum(size * count for size, count in sizes if size > SMALL_SIZE)


def cases() -> list[Any]:
    """Every family with every option; a sixth of them by default."""
    made = []
    for i, family in enumerate(FAMILIES):
        for j, (name, options) in enumerate(OPTIONS.items()):
            marks = () if (i + j) % 6 == 0 else pytest.mark.slow
            made.append(pytest.param(family, options, id=f"{family}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "options"), cases())
def test_what_is_replayed_is_what_is_alive(family: str, options: dict[str, Any]) -> None:
    """Layer by layer, at any moment: every tensor that has come and not gone, those of layers not traced too."""
    for method in ("full", method_for(family, "lora-fa")):
        planned = plan(run_of(family, method, layers=7, **options))
        end = len(planned.timeline.events)
        outside = {i for repeat in planned.timeline.repeats for i in range(repeat.block_first, repeat.block_end)}
        for position in sorted({-1, end, end - 1, planned.peak(70, 700).position, *range(0, end, 397)} - outside):
            allocator = replayed(planned, 70, 700, position)
            assert allocator.requested == large_alive(planned, 70, 700, position)
            beyond = allocator.allocated - allocator.requested
            assert 0 <= beyond <= most_beyond_tensors(planned, 70, 700, position)


@dataclass
class Held:
    """A plan of nothing but what is there from step to step."""

    static: list[tuple[Kind, int]]
    step_temporaries: list[tuple[Kind, int]] = field(default_factory=list)
    timeline: Timeline = field(default_factory=lambda: Timeline([], [], [Place("forward", "")], 0))


def weights(*sizes: int, layers: int) -> StepPlan:
    """A plan of layers that have one weight of each size."""
    kinds = [state_kind("layers.0", f"weight {i}", (size,), "uint8", "weights") for i, size in enumerate(sizes)]
    return cast("StepPlan", Held([(kind, layers) for kind in kinds]))


def test_segments_by_hand() -> None:
    """11 MiB get a segment of 12, whose rest of 1 MiB is not split off; 13 MiB one of 14; of 12 MiB nothing remains.

    Of 20 MiB, three times 6 MiB leave 2 MiB, which are split off, and in these 1.5 MiB leave too little to be.
    """
    assert beyond_tensors(weights(11 * MIB, layers=3), 1, 1, -1) == 3 * MIB
    assert beyond_tensors(weights(13 * MIB, 12 * MIB, layers=5), 1, 1, -1) == 5 * MIB
    assert beyond_tensors(weights(6 * MIB, layers=6), 1, 1, -1) == 0
    assert beyond_tensors(weights(6 * MIB, 6 * MIB, 6 * MIB, 3 * MIB // 2, layers=2), 1, 1, -1) == MIB
    assert beyond_tensors(weights(MIB, 1000, layers=9), 1, 1, -1) == 0


def test_layers_take_turns() -> None:
    """Three weights of a third of 20 MiB or less share a segment; with another one after each, two layers do."""
    third = 6 * MIB + 2 * MIB // 5 // 512 * 512
    assert beyond_tensors(weights(third, layers=3), 1, 1, -1) == 20 * MIB - 3 * third
    assert beyond_tensors(weights(third, 3 * MIB, layers=3), 1, 1, -1) == 0


def test_only_where_it_is_asked_for_and_could_matter() -> None:
    """A share of the peak below which nobody waits for it; several GPUs have none."""
    run = RunSpec(model=load_model("t5-base"), method=MethodSpec(name="full"), bs=4, seq=200)
    found = predict(run).memory
    assert found.peak_blocks_bytes is not None
    assert found.peak_allocated_bytes is not None
    assert 1.02 < found.peak_blocks_bytes / found.peak_allocated_bytes < 1.05
    assert predict(run, blocks=0.03).memory == found
    assert predict(run, blocks=0.9).memory.peak_blocks_bytes is None
    assert predict(run, blocks=None).memory.peak_blocks_bytes is None
    assert predict(run.replace(gpus=2, shard="ddp")).memory.peak_blocks_bytes is None
