"""The fastest batch that fits: held against thresholds, the timeline and arithmetic by hand."""

from __future__ import annotations

import itertools
import json

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.analytic.works import step_works
from lorafa_prof.capacity import Cards, Epoch, Planner, batches
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.cli import main
from lorafa_prof.cli.capacity import read_tokens
from lorafa_prof.errors import BadInputError
from lorafa_prof.results.capacity import Capacity
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.links import LINKS, Link
from lorafa_prof.speed.timeline import timeline
from lorafa_prof.thresholds import find_threshold


def cards(name: str, link: Link | None = None) -> Cards:
    device = load_device(name)
    return Cards(device=device, profile=default_profile(device), link=link or LINKS.get(name))


def a_run(method: str, **fields: object) -> RunSpec:
    options = {"model": load_model("qwen2.5-0.5b"), "method": MethodSpec(name=method, rank=16), "bs": 1, "seq": 512}
    return RunSpec(**(options | fields))  # type: ignore[arg-type]


def planned(run: RunSpec, on: Cards, numbers: tuple[int, ...] = (1,), epoch: Epoch | None = None) -> list[Capacity]:
    return Planner().plans(run, on, numbers, "ddp", epoch or Epoch())


@pytest.mark.parametrize("method", ["full", "lora", "lora-fa", "qlora"])
def test_batches_that_fit_and_no_other(method: str) -> None:
    """The largest is the threshold of `oom`; each time is the timeline of that batch's own step."""
    on = cards("rtx4090")
    (found,) = planned(a_run(method), on)
    assert found.max_bs == find_threshold(ClosedForms(), a_run(method), "bs", on.device).max
    assert [each.bs for each in found.tried] == batches(found.max_bs)
    for each in (found.tried[0], found.tried[-1]):
        alone = timeline(step_works(a_run(method, bs=each.bs)), on.profile)
        assert each.step_s == pytest.approx(alone.step_s)
        assert each.tokens_per_s == pytest.approx(each.bs * 512 / alone.step_s)


def test_the_best_is_the_smallest_of_the_fastest() -> None:
    """Within half a percent of the most tokens a second, and none that is smaller is as good."""
    (found,) = planned(a_run("lora"), cards("a100-80gb"))
    assert found.best is not None
    fastest = max(each.tokens_per_s for each in found.tried)
    assert found.best.tokens_per_s >= 0.995 * fastest
    assert all(each.tokens_per_s < 0.995 * fastest for each in found.tried if each.bs < found.best.bs)
    assert found.run.bs == found.best.bs


def test_an_epoch_and_its_cost() -> None:
    """Two cards for as long as a billion tokens take, at three an hour each."""
    (found,) = planned(a_run("lora"), cards("h100"), (2,), Epoch(tokens=10**9, price_per_hour=3.0))
    assert found.best is not None
    assert found.epoch_s == pytest.approx(10**9 / found.best.tokens_per_s)
    assert found.cost == pytest.approx(found.best.tokens_per_s**-1 * 10**9 / 3600 * 2 * 3.0)


def test_more_cards_bring_more_but_never_more_than_their_number_by_time_alone() -> None:
    """DDP keeps the batch: what each card sends comes on top of its step."""
    slow = Link(bytes_per_s=1e9, source="made up")
    one, two, eight = planned(a_run("full"), cards("a100-80gb", slow), (1, 2, 8))
    assert one.scaling is None
    assert two.scaling is not None
    assert eight.scaling is not None
    assert eight.scaling < two.scaling < 1
    assert not any("several cards" in line for line in one.unmodelled)
    assert any("several cards" in line for line in two.unmodelled)


def test_cards_whose_link_is_not_known_have_no_time() -> None:
    """The batch is told, and how to name the link."""
    _, found = planned(a_run("lora"), cards("rtx4090"), (1, 2))
    assert found.max_bs
    assert found.best is None
    assert found.why_not is not None
    assert "--link" in found.why_not


@pytest.mark.parametrize("shard", ["ddp", "fsdp", "frozen", "zero1", "zero3"])
def test_a_prediction_has_the_same_time(shard: str) -> None:
    """`predict` and `capacity` time a step of several cards alike; without a link there is a reason and no time."""
    on = cards("h100")
    _, found = Planner().plans(a_run("lora"), on, (1, 4), shard, Epoch())
    assert found.best is not None
    run = a_run("lora", gpus=4, shard=shard, bs=found.best.bs)
    (fit,) = predict(run, [on.device], timed=True).fit
    assert fit.step_s == pytest.approx(found.best.step_s)
    assert fit.tokens_per_s == pytest.approx(found.best.tokens_per_s / 4)
    (unknown,) = predict(run, [load_device("rtx4090")], timed=True).fit
    assert unknown.step_s is None
    assert "--link" in (unknown.why_no_time or "")


def test_a_device_without_data_has_no_time() -> None:
    """bf16 on a T4: a sentence, no figure."""
    (found,) = planned(a_run("lora"), cards("t4"))
    assert found.max_bs
    assert (found.best, found.mfu, found.epoch_s) == (None, None, None)
    assert found.why_not is not None
    assert "bf16" in found.why_not


def test_an_optimizer_whose_work_is_not_listed_is_said_to_be_left_out() -> None:
    """LoRA-Pro's: the time is that of forward and backward."""
    (found,) = planned(a_run("lora-pro"), cards("h100"))
    assert "in the step time: what lora-pro does in its step" in found.unmodelled
    (plain,) = planned(a_run("lora"), cards("h100"))
    assert not any("does in its step" in line for line in plain.unmodelled)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 100, 2**16])
def test_which_batches_are_timed(most: int) -> None:
    """From one to the largest, rising by no more than double."""
    found = batches(most)
    assert found[0] == 1
    assert found[-1] == most
    assert all(low < high <= 2 * low for low, high in itertools.pairwise(found))


@pytest.mark.parametrize(("text", "number"), [("1B", 10**9), ("1.5m", 1_500_000), ("20", 20), (" 3 K ", 3000)])
def test_tokens(text: str, number: int) -> None:
    """As people write them."""
    assert read_tokens(text) == number


@pytest.mark.parametrize("text", ["", "0", "-5", "1e9", "many", "1BB", "9" * 40])
def test_what_is_no_number_of_tokens(text: str) -> None:
    """Refused with an example."""
    with pytest.raises(BadInputError, match="500M"):
        read_tokens(text)


class TestCommand:
    ASKED = ("capacity", "--model", "qwen2.5-0.5b", "--seq", "256")

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        """One entry a card, method and number of cards, with the figures of the best batch by name."""
        options = ("--gpu", "h100", "--method", "lora,full", "--cards", "1,2", "--format", "json")
        assert main([*self.ASKED, *options]) == 0
        found = json.loads(capsys.readouterr().out)["capacities"]
        assert [(each["method"], each["gpus"]) for each in found] == [
            ("lora", 1), ("lora", 2), ("full", 1), ("full", 2)
        ]  # fmt: skip
        assert all(each["tokens_per_s"] == each["best"]["tokens_per_s"] for each in found)
        assert all(each["epoch_s"] is None for each in found)

    def test_the_table_says_what_it_rests_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Largest and fastest batch, time and cost, and the profile."""
        assert main([*self.ASKED, "--gpu", "h100", "--method", "lora", "--tokens", "1B", "--price", "2"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        for word in ("largest", "fastest", "epoch", "cost", "default profile of h100"):
            assert word in text

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--gpu", "h100", "--cards", "0"), "--cards"),
            (("--gpu", "h100", "--cards", "1,two"), "--cards"),
            (("--gpu", "h100", "--price", "2"), "--tokens"),
            (("--gpu", "h100", "--tokens", "1B", "--price", "free"), "--price"),
            (("--gpu", "h100", "--gpus", "4", "--shard", "ddp"), "--cards"),
            (("--gpu", "h10"), "h100"),
            ((), "--gpu"),
        ],
    )
    def test_bad_input(self, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str) -> None:
        """Exit 2, naming the mistake and the way out."""
        assert main([*self.ASKED, *options]) == 2
        assert said in capsys.readouterr().err
