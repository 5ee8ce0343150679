"""What is known of tensors that have no data, against the same program run with data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafa_prof.simulate.questions import KnownValues, NotKnownError, traits

aten = torch.ops.aten
PAD = 1


class Asking(TorchDispatchMode):
    """Answers as the recorder does."""

    def __init__(self, known: KnownValues) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if traits(func).asks_value:
            return self.known.value(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        self.known.saw(func, args, kwargs or {}, out)
        return out


def causal_mask(mask: torch.Tensor, ids: torch.Tensor) -> Any:
    rows = torch.arange(6, device=mask.device)
    seen = (rows[:, None] >= rows[None]) & mask[:, None, None, :].bool()
    return [bool(seen.all()), int(seen.sum()), bool((seen.float().cumsum(-1) > 5).any())]


def written_through_a_view(mask: torch.Tensor, ids: torch.Tensor) -> Any:
    marks = torch.zeros_like(ids)
    marks[:, 0] = 1
    marks[:, 2:4].add_(mask[:, :2] * 3)
    before = marks.clone()
    marks.fill_(9)
    return [int(before.sum()), int(before.max()), bool((marks == 9).all()), int(marks[:, 5].sum())]


def positions(mask: torch.Tensor, ids: torch.Tensor) -> Any:
    real = ids.ne(PAD).int()
    counted = torch.cumsum(real, dim=1).type_as(real) * real + PAD
    return [int(counted.max()), bool((ids == PAD).any()), bool(ids.eq(-100).any()), bool(torch.equal(real, mask.int()))]


def several_outputs(mask: torch.Tensor, ids: torch.Tensor) -> Any:
    values, places = torch.sort(torch.arange(5, device=mask.device).flip(0).float())
    left, right = torch.arange(7, device=mask.device).split([3, 4])
    return [float(values[-1]), int(places[0]), int(left.sum()), int(right.sum()), float(values.view(5, 1).t().sum())]


@pytest.mark.parametrize("program", [causal_mask, written_through_a_view, positions, several_outputs])
def test_answers_are_those_of_real_data(program: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    """Masks, views that are written through, positions counted among tokens that are no padding."""
    ids = torch.arange(2, 14).reshape(2, 6)
    mask = torch.ones(2, 6, dtype=torch.long)
    known = KnownValues(frozenset([PAD]))
    on_meta = mask.to("meta"), ids.to("meta")
    known.state(on_meta[0], lambda: torch.ones(2, 6, dtype=torch.long))
    known.state_tokens(on_meta[1])
    with Asking(known):
        found = program(*on_meta)
    assert found == program(mask, ids)


@pytest.mark.parametrize(
    "program",
    [
        lambda ids: (ids == 7).any(), lambda ids: ids.max(), lambda ids: ids.sum() > 0,
        lambda ids: torch.rand(3, device="meta") > 0.5, lambda ids: torch.empty(3, device="meta") > 0,
        lambda ids: torch.zeros(3, device="meta").uniform_() > 0.5,
        lambda ids: torch.zeros(6, dtype=torch.long, device="meta").copy_(ids[0]) > 0,
    ],
)  # fmt: skip
def test_what_depends_on_data_has_no_answer(program: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Other ids of tokens, random numbers, memory that nobody has set; also written into what was known."""
    ids = torch.empty(2, 6, dtype=torch.long, device="meta")
    known = KnownValues(frozenset([PAD]))
    known.state_tokens(ids)
    with Asking(known), pytest.raises(NotKnownError):
        bool(program(ids).any())


def test_nothing_is_kept_of_storages_that_are_gone() -> None:
    """A new tensor in the place of an old one is not taken for it."""
    known = KnownValues()
    with Asking(known):
        for _ in range(20):
            gone = torch.ones(1000, device="meta")
            del gone
            unset = torch.empty(1000, device="meta")
            with pytest.raises(NotKnownError):
                bool(unset.all())
            del unset
    assert known._contents == {}
    assert known._lives == {}
