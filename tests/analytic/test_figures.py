"""Figures for arrays of configurations are those of `predict`, which walks through the step of each one alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lorafa_prof.analytic import figures, predict
from lorafa_prof.analytic.figures import RunFigures
from lorafa_prof.analytic.frontier import Plans, largest_within
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError, ContradictionError, UnsupportedError
from lorafa_prof.results import PART_FIELDS
from lorafa_prof.specs import LARGEST_BATCH, MethodSpec, RunSpec
from tests.analytic.runs import EAGER_ONLY, FAMILIES, WINDOWED, run_of
from tests.support import observe
from tests.support.configs import method_for

#: One sequence and several; multiples of what kernels pad to and not; around the window of the tiny models, which
#: take 64 tokens at most.
BATCHES = (1, 1, 1, 2, 2, 3, 7, 1000)
LENGTHS = (1, 16, 9, 8, 9, 64, 63, 40)
#: cuBLAS's, of forward and backward: each two buffers of 4 MiB and eight of 16 KiB.
TWO_WORKSPACES = 2 * (2 * 4096 + 8 * 16) * 1024


def told(run: RunSpec, bs: int, seq: int) -> tuple[Any, ...]:
    """What `predict` says, library workspaces left out."""
    p = predict(run.replace(bs=bs, seq=seq))
    parts = {name: getattr(p.memory, name) for name in PART_FIELDS} | {"workspace_bytes": 0}
    assert p.memory.workspace_bytes == TWO_WORKSPACES
    assert p.memory.peak_allocated_bytes == sum(parts.values()) + TWO_WORKSPACES
    return (
        p.memory.peak_allocated_bytes - TWO_WORKSPACES, p.memory.peak_moment, parts,
        p.memory.saved_activations_bytes, p.throughput.model_flops, p.throughput.executed_flops,
    )  # fmt: skip


def computed(run: RunSpec, sizes: list[tuple[int, int]]) -> list[tuple[Any, ...]]:
    """The same for all sizes at once."""
    bs, seq = (np.array(column) for column in zip(*sizes, strict=True))
    of_run, answers = RunFigures(run), dict[int, tuple[Any, ...]]()
    for where in of_run.groups(bs, seq):
        found = of_run.at(bs[where], seq[where])
        for i, place in enumerate(where.tolist()):
            parts = {name: int(part[i]) for name, part in found.parts.items()}
            answers[place] = (
                int(found.peak_allocated[i]), found.moments[found.moment[i]], parts, int(found.saved_activations[i]),
                int(found.model_flops[i]), int(found.executed_flops[i]),
            )  # fmt: skip
    assert sorted(answers) == list(range(len(sizes)))
    return [answers[place] for place in range(len(sizes))]


@pytest.mark.parametrize("reduced", [False, True], ids=["all moments", "moments that can be the peak"])
@pytest.mark.parametrize("family", [*FAMILIES, *WINDOWED])
def test_every_figure_is_the_one_of_predict(family: str, reduced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak, its moment, all parts, saved activations and FLOPs, for few configurations and for many at once."""
    monkeypatch.setattr(figures, "MANY", 1 if reduced else 10**9)
    attn = "eager" if family in EAGER_ONLY or reduced else "sdpa"
    checkpointing = "full" if reduced and family != "t5" else "none"
    sizes = list(zip(BATCHES, LENGTHS, strict=True))
    method = ("full", "lora-fa", "vera")[len(family) % 3] if reduced else "lora"
    run = run_of(
        family, method_for(family, method), attn=attn, checkpointing=checkpointing, amp=not reduced, config_dropout=True
    )
    assert computed(run, sizes) == [told(run, *size) for size in sizes]


@pytest.mark.parametrize("method", ["full", "lora-fa"])
def test_they_are_those_of_the_real_step(method: str) -> None:
    """Without the detour: the live storages of transformers' and PEFT's step, and PyTorch's own counter, at three
    shapes that are computed together. Eager attention hides nothing inside a kernel.
    """
    sizes = [(2, 9), (3, 16), (2, 40)]
    run = run_of("llama", method, attn="eager", optimizer="adamw")
    for (bs, seq), found in zip(sizes, computed(run, sizes), strict=True):
        real = run.replace(bs=bs, seq=seq)
        counted = observe.flops(real)
        assert found[0] == observe.step_timeline(real).peak
        assert found[-1] == counted.total_forward + counted.total_backward


@pytest.mark.parametrize(("model", "method"), [("llama2-7b", "lora-fa"), ("mistral-7b", "qlora")])
def test_models_of_real_size(model: str, method: str) -> None:
    """Random sizes of a model that people train, around its window too, up to batches that no card will ever hold."""
    chance = random.Random(7)
    limit = 4096
    sizes = [(chance.choice((1, 2, 9, 500)), chance.randint(1, limit)) for _ in range(20)]
    sizes += [(1, 4095), (1, 4096), (2, 4095), (2, 4096), (2**20, 4096)]
    run = RunSpec(model=load_model(model), method=MethodSpec(name=method, rank=8))
    assert computed(run, sizes) == [told(run, *size) for size in sizes]


def test_beyond_64_bits() -> None:
    """FLOPs and bytes that no machine integer holds are exact all the same."""
    run = run_of("mistral-window", "lora")
    run = run.replace(model=replace(run.model, max_positions=2**30))
    sizes = [(2**20, 2**30), (1, 2**30), (2**20 - 1, 2**30 - 1)]
    found = computed(run, sizes)
    assert found == [told(run, *size) for size in sizes]
    assert found[0][-1] > 2**64


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_largest_batches_are_those_of_the_bisection(family: str) -> None:
    """For limits from nothing fits to everything does, at lengths below and beyond the window."""
    run = run_of(family, "lora")
    lengths = [16, 3, 40, 16, 15]
    plans = Plans()
    low = plans.peak(run.replace(bs=1, seq=40)).allocated
    for limit in (low - 1, low, low + 200_000, 50 * low, 2**62):
        expected = [largest_within(plans, run.replace(seq=length), "bs", limit, LARGEST_BATCH) for length in lengths]
        assert RunFigures(run).largest_batches(np.array(lengths), limit).tolist() == expected


def test_what_predict_refuses_is_refused() -> None:
    """Before anything is computed, or when the plan is made."""
    with pytest.raises(UnsupportedError, match="fused loss for seq-cls"):
        RunFigures(run_of("roberta", "lora", loss="fused"))
    with pytest.raises(ContradictionError, match="freezes A"):
        RunFigures(run_of("llama", "lora", optimizer="lorafa"))
    with pytest.raises(UnsupportedError, match="LoRA-GA is not built with the fused loss"):
        RunFigures(run_of("llama", "lora-ga", loss="fused")).at(np.array([1]), np.array([8]))
    llama = RunFigures(RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name="lora")))
    with pytest.raises(BadInputError, match="beyond the 4096 positions"):
        llama.at(np.array([1]), np.array([5000]))
