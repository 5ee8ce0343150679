"""Steps of different lengths: sizes between recordings, the largest batch, and the CPU's real steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.lengths import Batching, Lengths
from lorafa_prof.lengths.epoch import Epoch
from lorafa_prof.simulate.cpu_platform import Cpu
from lorafa_prof.simulate.engine import simulate
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.lengths import simulate_epoch, unexceeded
from lorafa_prof.simulate.on_cpu import build_for_cpu
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import trace_of
from lorafa_prof.simulate.series import ENOUGH, UNITS, Series, kind_of, spread
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.models import batch
from lorafa_prof.workload.step import Workload, training_step
from tests.analytic.runs import run_of
from tests.support.profiled import allocations, kernels_of_known_size, made_by_operators

LONG = {"max_position_embeddings": 4096}
THREADS = 2


def platform() -> Cuda:
    return Cuda(DeviceTraits((8, 0), 108), "2.13.0")


def long_run(method: str, **options: Any) -> RunSpec:
    return run_of("llama", method, changes=LONG, **{"bs": 3, "seq": 512, **options})


# -- sizes between recordings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padded", "lengths", "asked"),
    [(False, (21, 150, 333, 410), 299), (True, (21, 150, 333, 410), 299), (True, (48, 160, 336, 400), 288)],
    ids=["full", "padded", "padded, multiples of 16"],
)
@pytest.mark.parametrize(
    ("method", "options"), [("lora", {}), ("full", {"checkpointing": "full"}), ("lora-fa", {"attn": "eager"})]
)
def test_every_block_between_lengths(
    method: str, options: dict[str, Any], padded: bool, lengths: tuple[int, ...], asked: int
) -> None:
    """What is worked out equals what is recorded: all blocks, all events, buffers inside kernels included."""
    run, device = long_run(method, padded=padded, **options), platform()
    series = Series([record(run.replace(seq=seq), device) for seq in lengths])
    worked_out = series.at(asked).trace(3, device)
    recorded = record(run.replace(seq=asked), device).trace(3, device)
    assert list(worked_out.blocks) == list(recorded.blocks)
    assert worked_out.events == recorded.events


@given(st.sets(st.integers(1, 4000), min_size=1, max_size=60))
def test_lengths_to_record(lengths: set[int]) -> None:
    """The shortest and the longest are among them, and one that is no multiple of what kernels pad to."""
    chosen = spread(lengths)
    assert chosen == sorted(set(chosen) & lengths)
    assert len(chosen) == min(ENOUGH, len(lengths))
    assert {min(lengths), max(lengths)} <= set(chosen)
    for unit in UNITS:
        assert any(s % unit for s in chosen) or not any(s % unit for s in lengths)


def test_runs_of_different_kinds_are_no_series() -> None:
    """A length that is a multiple of 16 has another mask."""
    device = platform()
    recordings = [record(long_run("lora", padded=True, seq=seq), device) for seq in (21, 33, 48, 61)]
    assert len({kind_of(recording.run) for recording in recordings}) == 2
    with pytest.raises(BadInputError, match="of one kind"):
        Series(recordings)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9), st.booleans()), min_size=1, max_size=25),
)
def test_shapes_that_no_other_exceeds(batches: list[tuple[int, int, bool]]) -> None:
    """Exactly those of which no other has as much of everything."""
    bs, seq, padded = (np.array(column) for column in zip(*batches, strict=True))
    shapes = Epoch(bs=bs, seq=seq, tokens=bs * seq - padded).shapes
    all_of = list(zip(shapes.bs.tolist(), shapes.seq.tolist(), shapes.padded.tolist(), strict=True))
    wanted = {
        one for one in all_of if not any(o != one and all(a >= b for a, b in zip(o, one, strict=True)) for o in all_of)
    }
    assert {all_of[number] for number in unexceeded(shapes)} == wanted


# -- an epoch ----------------------------------------------------------------------------------------------------


def lengths_of(rule: str, count: int) -> Lengths:
    drawn = np.clip(np.random.default_rng(5).lognormal(4.5, 0.9, count), 3, 512).astype(np.int64)
    return Lengths(source="some.txt", lengths=drawn, batching=Batching.parse(rule))


@pytest.mark.parametrize("rule", ["random", "grouped", "tokens:2000"])
def test_the_largest_batch_of_an_epoch(rule: str) -> None:
    """What is requested at the peak is what a run of that batch alone requests; more is reserved than for it alone."""
    run, lengths = long_run("lora"), lengths_of(rule, 150)
    found = simulate_epoch(run, lengths)
    prediction = found.prediction()
    alone = simulate(prediction.run)
    assert found.replayed.requested.size == alone.replayed.requested.size
    said = prediction.lengths
    assert said is not None
    assert (said.worst_bs, said.worst_seq) == (prediction.run.bs, prediction.run.seq)
    assert found.replayed.reserved.size >= alone.replayed.reserved.size
    assert said.shapes_recorded is not None
    assert said.shapes_recorded <= 20
    peaks = list(said.peak_allocated_bytes.values())
    assert len(peaks) == (1 if rule.startswith("tokens") else 4)
    assert peaks == sorted(peaks)
    assert peaks[-1] == prediction.memory.peak_allocated_bytes


def test_steps_that_replace_what_was_kept() -> None:
    """AdaLoRA's importances, where one batch has padding and the next has none: refused."""
    lengths = Lengths(source="x", lengths=np.array([40, 20, 33, 33]), batching=Batching(rule="file"))
    with pytest.raises(UnsupportedError, match="each step of adalora makes anew"):
        simulate_epoch(long_run("adalora", bs=2), lengths)


def test_steps_that_are_played_are_those_that_were_recorded() -> None:
    """An epoch of few batches is played whole: the very trace of its shapes recorded one by one."""
    run, lengths = long_run("lora"), lengths_of("random", 40)
    found = simulate_epoch(run, lengths)
    epoch = lengths.epoch(run.bs, run.seq)
    at = [*range(len(epoch)), int(epoch.shapes.first[found.worst])]
    device = found.platform
    steps = [
        record(run.replace(bs=int(epoch.bs[i]), seq=int(epoch.seq[i]), padded=bool(epoch.padded[i])), device)
        for i in at
    ]
    real = trace_of(steps, device)
    born = steps[0].load.births()
    assert found.trace.events == real.events
    assert found.recorded < len(epoch)
    assert list(found.trace.blocks)[len(born) :] == list(real.blocks)[len(born) :]


# -- the CPU's real steps ----------------------------------------------------------------------------------------


BATCHES = ((3, 37, True), (2, 32, False), (3, 48, True), (1, 40, True))


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llama", "lora", {}),
        pytest.param("llama", "full", {"attn": "eager"}, marks=pytest.mark.slow),
        ("gpt2", "lora-fb", {"checkpointing": "full"}),
    ],
)
def test_real_steps_of_different_lengths(family: str, method: str, options: dict[str, Any]) -> None:
    """The peak of every step, and what is left after it, as PyTorch's profiler hears it from the CPU's allocator."""
    run = run_of(family, method, optimizer="adamw", **options)
    runs = [run.replace(bs=bs, seq=seq, padded=padded) for bs, seq, padded in BATCHES]
    with kernels_of_known_size(THREADS):
        real = real_peaks(runs)
        device = Cpu(THREADS)
        trace = trace_of([record(each, device, build_for_cpu) for each in (runs[0], *runs)], device)
    starts = [position for position, phase in trace.marks if phase == "forward"][1:]
    simulated = []
    for start, stop in zip(starts, [*starts[1:], len(trace.events)], strict=True):
        live = peak = 0
        for event in trace.events[start:stop]:
            live += trace.blocks[event].nbytes if event >= 0 else -trace.blocks[~event].nbytes
            peak = max(peak, live)
        simulated.append((peak, live))
    assert simulated == real


def real_peaks(runs: list[RunSpec]) -> list[tuple[int, int]]:
    """Peak and end of one step of each run by the same model, in this order, beyond what is there before each."""
    work = Workload.build(runs[0], "cpu")
    training_step(work)
    training_step(work)
    found = []
    for run in runs:
        step = replace(work, run=run, batch=batch(run, "cpu"), padded=run.padded)
        events = made_by_operators(allocations(lambda step=step: training_step(step)))  # type: ignore[misc]
        found.append((max(event.live for event in events), events[-1].live))
    return found
