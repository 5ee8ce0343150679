"""The few moments that can be a step's peak, as monomials in batch, sequence and rank, against the whole timeline."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings, strategies as st

from lorafa_prof.analytic.moments import Moment, candidate_moments
from lorafa_prof.analytic.plan import StepPlan, plan
from lorafa_prof.analytic.ranks import RANK, SENTINEL, WITNESS, same_step, with_rank
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.catalog import load_model
from lorafa_prof.layers import RankBeyondError
from lorafa_prof.specs import MethodSpec, RunSpec

METHODS = ("full", "lora", "lora-fa", "lora-fa-peft", "qlora", "vera", "lora-fb", "lora-pro")
#: Beyond every layer's width: our LoRA-FA is refused.
BEYOND = 2**16


def run_of(method: str, rank: int, *, bs: int = 2, **options: str | bool) -> RunSpec:
    model = load_model("llama3.2-1b")
    return RunSpec(model=model, method=MethodSpec(name=method, rank=rank), bs=bs, seq=128, **options)


@cache
def moments_of(method: str, bs: int, *, amp: bool, attn: str) -> list[Moment]:
    return candidate_moments(plan(run_of(method, SENTINEL, bs=bs, amp=amp, attn=attn)))


@cache
def plan_of(method: str, rank: int, bs: int, *, amp: bool, attn: str) -> StepPlan:
    return plan(run_of(method, rank, bs=bs, amp=amp, attn=attn))


def highest(moments: list[Moment], bs: int, seq: int, rank: int) -> tuple[int, str, dict[str, int]]:
    """Evaluate the moments: bytes, name and parts of the first of the highest."""
    values = {**symbol_values(bs, seq), RANK: rank}
    best: tuple[int, str, dict[str, int]] = (-1, "", {})
    for moment in moments:
        parts = {
            category: sum(rounded(size[0] * product_of(size[1], values)) * count for size, count in terms)
            for category, terms in moment.parts.items()
        }
        if sum(parts.values()) > best[0]:
            best = sum(parts.values()), moment.name, parts
    return best


@settings(max_examples=60)
@given(
    method=st.sampled_from(METHODS),
    single=st.booleans(),
    bs=st.integers(2, 5000),
    seq=st.one_of(st.integers(1, 64), st.integers(1, 131072), st.sampled_from((128, 1024, 4096))),
    rank=st.sampled_from((1, 3, 8, 64, 200, WITNESS, SENTINEL, BEYOND)),
    amp=st.booleans(),
    attn=st.sampled_from(("sdpa", "eager")),
)
def test_the_moments_know_the_peak(
    method: str, single: bool, bs: int, seq: int, rank: int, amp: bool, attn: str
) -> None:
    """For any batch, sequence length and rank: the bytes, the name and the parts of the peak that the plan finds."""
    bs = 1 if single else bs
    if method == "lora-fa" and rank == BEYOND:
        with pytest.raises(RankBeyondError, match="rank 65536 is larger than the layer's width of 2048"):
            plan_of(method, rank, min(bs, 2), amp=amp, attn=attn)
        return
    whole = plan_of(method, rank, min(bs, 2), amp=amp, attn=attn)
    peak = whole.peak(bs, seq)
    values = symbol_values(bs, seq)
    parts: dict[str, int] = {}
    for kind, count in whole.alive(peak.position):
        size = rounded(kind.size[0] * product_of(kind.size[1], values))
        parts[kind.category] = parts.get(kind.category, 0) + size * count
    found = highest(moments_of(method, min(bs, 2), amp=amp, attn=attn), bs, seq, rank)
    assert found[:2] == (peak.allocated, peak.place.moment)
    assert {k: v for k, v in found[2].items() if v} == {k: v for k, v in parts.items() if v}


@pytest.mark.parametrize("method", METHODS)
def test_few_moments_are_left(method: str) -> None:
    """A page can carry them: a tenth of the step's events at most."""
    whole = plan(run_of(method, SENTINEL))
    assert 1 <= len(candidate_moments(whole)) <= len(whole.timeline.events) / 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 16, 2048])
def test_the_rank_is_a_symbol(method: str, rank: int) -> None:
    """Plans of two sentinel ranks are one plan, and the sizes of any other rank are theirs with the rank put in."""
    symbolic, real = plan(run_of(method, SENTINEL)), plan(run_of(method, rank))
    assert same_step(symbolic, plan(run_of(method, WITNESS)))
    if method != "full":
        assert any(RANK in with_rank(kind.size)[1] for kind in symbolic.timeline.kinds)
    ours = [(with_rank(kind.size), count) for kind, count in (*symbolic.static, *symbolic.step_temporaries)]
    theirs = [(kind.size, count) for kind, count in (*real.static, *real.step_temporaries)]

    def total(tensors: list[tuple[tuple[int, str], int]]) -> int:
        return sum(rounded(c * rank ** s.count(RANK)) * count for (c, s), count in tensors)

    assert total(ours) == total(theirs)


def test_another_step_is_seen() -> None:
    """Two methods are no one step with another rank."""
    assert not same_step(plan(run_of("lora", SENTINEL)), plan(run_of("lora-fa", WITNESS)))


def test_the_rank_is_found_as_often_as_it_is_a_factor() -> None:
    """A square of the rank is two symbols; what the prime does not divide has none."""
    assert with_rank((12 * SENTINEL**2, "b")) == (12, "brr")
    assert with_rank((SENTINEL + 1, "bs")) == (SENTINEL + 1, "bs")
    assert with_rank((0, "")) == (0, "")
