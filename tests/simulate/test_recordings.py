"""A recording serves other cards, and alike calls run once: neither changes anything that is recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafa_prof.catalog import device_names, load_device
from lorafa_prof.simulate import recorder, recordings
from lorafa_prof.simulate.alike import AlikeCalls, plainly
from lorafa_prof.simulate.engine import device_traits
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.simulate.recordings import Recordings
from lorafa_prof.specs import RunSpec
from tests.analytic.runs import run_of

aten = torch.ops.aten

AMPERE, ADA, HOPPER, VOLTA = (
    DeviceTraits((8, 0), 108), DeviceTraits((8, 9), 128), DeviceTraits((9, 0), 132), DeviceTraits((7, 0), 80),
)  # fmt: skip


def on(traits: DeviceTraits) -> Cuda:
    return Cuda(traits, "2.13.0")


def content(recording: Recording) -> tuple[Any, ...]:
    """All that a trace is made of."""
    return (
        recording.blocks, recording.specs, recording.load, recording.first, recording.again, recording.operators,
        recording.parameters, recording.replaced,
    )  # fmt: skip


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """What is recorded from now on by `Recordings`."""
    runs: list[RunSpec] = []

    def noted(run: RunSpec, platform: Cuda, *, notes_all: bool) -> Recording:
        runs.append(run)
        return record(run, platform, notes_all=notes_all)

    monkeypatch.setattr(recordings, "record", noted)
    return runs


def test_cards_with_the_same_kernels_share_a_recording(recorded: list[RunSpec]) -> None:
    """Flash attention on Ampere and Ada, cuDNN's on Hopper, products on Volta: three recordings for four cards, each
    what the card's own recording is.
    """
    run, kept = run_of("llama", "lora", changes={"hidden_size": 384}), Recordings()
    found = {traits: kept.of(run, on(traits)) for traits in (AMPERE, HOPPER, ADA, VOLTA)}
    assert found[AMPERE] is found[ADA]
    assert len(recorded) == len({id(each) for each in found.values()}) == 3
    for traits, recording in found.items():
        assert content(recording) == content(record(run, on(traits)))
    assert all(kept.of(run, on(traits)) is recording for traits, recording in found.items())
    assert len(recorded) == 3


def test_every_card_of_the_catalog_has_its_own_recording(recorded: list[RunSpec]) -> None:
    """Whatever is shared: the recording of each card is the one that is made for it alone."""
    run, kept = run_of("qwen2", "lora", bs=1), Recordings()
    alone: dict[DeviceTraits, Recording] = {}
    for name in device_names():
        card = load_device(name)
        if card.vendor != "nvidia":
            continue
        traits = device_traits(card)
        if traits not in alone:
            alone[traits] = record(run, on(traits))
        assert content(kept.of(run, on(traits))) == content(alone[traits]), name
    assert len(recorded) < len(alone)


def test_batches_from_few_recordings_serve_other_cards(recorded: list[RunSpec]) -> None:
    """Three batches are recorded for two cards; the fourth is worked out, once, as it would be recorded."""
    run, kept = run_of("llama", "lora", bs=2), Recordings()
    first, second = (kept.at_batch(run, 7, on(traits)) for traits in (AMPERE, ADA))
    assert first is second
    assert first is not None
    assert [each.bs for each in recorded] == [2, 3, 5]
    assert first.trace(3, on(ADA)) == record(run.replace(bs=7), on(ADA)).trace(3, on(ADA))


def test_all_calls_serve_where_fewer_are_asked_for(recorded: list[RunSpec]) -> None:
    """Not the other way round."""
    run, kept = run_of("llama", "lora", layers=1), Recordings()
    few, all_ = kept.of(run, on(ADA)), kept.of(run, on(ADA), notes_all=True)
    assert (few.notes_all, all_.notes_all, len(recorded)) == (False, True, 2)
    assert kept.of(run, on(AMPERE), notes_all=True) is all_
    alone = Recordings()
    assert alone.of(run, on(ADA), notes_all=True) is alone.of(run, on(ADA))


def test_only_so_many_are_kept(recorded: list[RunSpec]) -> None:
    """Those that were asked for last; another is recorded again."""
    run, kept = run_of("llama", "full", layers=1), Recordings(most=2)
    for bs in (1, 2, 1, 3, 1, 2):
        kept.of(run.replace(bs=bs), on(AMPERE))
    assert [each.bs for each in recorded] == [1, 2, 3, 2]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "gemma3_text-window", "mixtral"])
@pytest.mark.parametrize("options", [{}, {"amp": True, "checkpointing": "full"}], ids=["plain", "autocast, again"])
def test_alike_calls_change_nothing(family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Storages, events, calls and operators are those of a step of which every operator runs."""
    run = run_of(family, "lora", dropout=0.0 if family == "mixtral" else 0.1, **options)
    found = content(record(run, on(AMPERE)))

    class EachRuns(AlikeCalls):
        def run(self, run: Any, func: Any, args: Any, kwargs: Any) -> Any:
            return run(func, args, kwargs)

    monkeypatch.setattr(recorder, "AlikeCalls", EachRuns)
    assert found == content(record(run, on(AMPERE)))


class TestAlikeCalls:
    """Which calls run, and which are answered."""

    def ran(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Return what was run of some calls."""
        alike, ran = AlikeCalls(), list[Any]()

        def run(func: Any, args: Any, kwargs: Any) -> Any:
            ran.append((func, *args))
            return plainly(func, args, kwargs)

        for func, *args in calls:
            out = alike.run(run, func, tuple(args), {})
            expected = func(*args)
            assert (out.shape, out.stride(), out.dtype) == (expected.shape, expected.stride(), expected.dtype)
        return ran

    def test_the_same_shapes_run_once(self) -> None:
        """Other strides, another dtype or another type of number are another call."""
        x = torch.empty(4, 6, device="meta", dtype=torch.int64)
        assert len(self.ran((aten.mul.Scalar, x, 2), (aten.mul.Scalar, x, 2))) == 1
        assert len(self.ran((aten.mul.Scalar, x, 1), (aten.mul.Scalar, x, 1.0), (aten.mul.Scalar, x, True))) == 3
        assert len(self.ran((aten.neg.default, x), (aten.neg.default, x.t()), (aten.neg.default, x.float()))) == 3

    def test_what_writes_or_returns_views_always_runs(self) -> None:
        """By its schema, or by what it has returned: `_unsafe_view` does not say that it returns a view."""
        x = torch.empty(4, 6, device="meta")
        for call in ((aten.add_.Scalar, x, 1), (aten.t.default, x), (aten._unsafe_view.default, x, [24])):
            assert len(self.ran(call, call)) == 2

    def test_what_is_not_on_meta_always_runs(self) -> None:
        """Its values may matter."""
        x = torch.ones(3)
        assert len(self.ran((aten.neg.default, x), (aten.neg.default, x))) == 2
