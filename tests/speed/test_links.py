"""What a step waits for where several cards share it: literal scenarios, and what no sharing may do."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.errors import BadInputError
from lorafa_prof.speed.links import DDP_BUCKET, Link, read_link, waiting

LINK = Link(bytes_per_s=1e9, source="made up")
PHASES = {"forward": 1.0, "loss": 0.5, "recompute": 1.0, "backward": 2.0, "optimizer": 0.4, "zero_grad": 0.1}


def step(
    sent: dict[str, int], shard: str, *, gpus: int = 4, units: int = 10, link: Link = LINK, passes: int = 1
) -> float:
    """A card's own phases, 1.5 s forward, 3 s backward, 0.4 s update and 0.1 s rest, and what is waited for."""
    return sum(PHASES.values()) + waiting(PHASES, sent, shard, gpus, units, link, passes)


class TestDdp:
    def test_gradients_hide_in_the_backward_but_for_the_last_bucket(self) -> None:
        """1 GB over 1 GB/s is 1 s within 3 s of backward; 25 MiB of gradients are sent 2 * 3/4 times over."""
        last = 1.5 * DDP_BUCKET / 1e9
        assert step({"all_reduce": 10**9}, "ddp") == pytest.approx(5.0 + last)

    def test_gradients_that_take_longer_than_the_backward(self) -> None:
        """7 s to send: the 2 s of update, rest and forward are not hidden."""
        assert step({"all_reduce": 7 * 10**9}, "ddp") == pytest.approx(7.0 + 1.5 + 0.4 + 0.1)

    def test_of_several_micro_batches_the_last_one_hides_them(self) -> None:
        """2 s to send; of three micro-batches the last one's backward takes 1 s."""
        assert step({"all_reduce": 2 * 10**9}, "ddp", passes=3) == pytest.approx(5.0 + 1.0)

    def test_less_than_a_bucket_is_not_hidden(self) -> None:
        """What is sent at once, at the end of the backward, is waited for."""
        assert step({"all_reduce": 1000}, "ddp") == pytest.approx(5.0 + 1e-6)


class TestFsdp:
    def test_what_hides(self) -> None:
        """2 GB gathered (1 s in each pass), 1 GB reduced: the first of ten units and the last one's gradients wait."""
        sent = {"all_gather": 2 * 10**9, "reduce_scatter": 10**9}
        assert step(sent, "fsdp") == pytest.approx(1.5 + 0.1 + 3.0 + 0.1 + 0.4 + 0.1)

    def test_what_does_not(self) -> None:
        """Each pass takes what it sends, 4 s of 8 GB, and 6 s with 2 GB of gradients, and a tenth of its own."""
        sent = {"all_gather": 8 * 10**9, "reduce_scatter": 2 * 10**9}
        assert step(sent, "fsdp") == pytest.approx(4.0 + 0.15 + 6.0 + 0.3 + 0.4 + 0.1)

    def test_what_stays_gathered_is_sent_in_the_forward(self) -> None:
        """2 GB in the 1.5 s of the forward, which takes as long as they and a tenth of its own."""
        sent = {"all_gather": 2 * 10**9, "reduce_scatter": 10**9}
        assert step(sent, "fsdp-grad-op") == pytest.approx(2.0 + 0.15 + 3.0 + 0.1 + 0.4 + 0.1)


def test_the_first_stages_of_zero_hide_nothing() -> None:
    """All that is sent comes on top."""
    assert step({"reduce_scatter": 10**9, "all_gather": 10**9}, "zero2") == pytest.approx(1.5 + 3.0 + 0.4 + 0.1 + 2.0)


@given(
    sent=st.dictionaries(st.sampled_from(["all_gather", "reduce_scatter", "all_reduce"]), st.integers(0, 10**12)),
    shard=st.sampled_from(["ddp", "fsdp", "zero1", "zero2", "zero3", "fsdp-grad-op", "frozen"]),
    gpus=st.integers(2, 64), rate=st.floats(1e6, 1e12),
)  # fmt: skip
def test_bounds(sent: dict[str, int], shard: str, gpus: int, rate: float) -> None:
    """Never faster than computing alone or sending alone, never slower than one after the other; a faster link never
    makes a step longer.
    """

    def at(rate: float) -> float:
        return step(sent, shard, gpus=gpus, link=Link(bytes_per_s=rate, source=""))

    computing, sending = step({}, shard, gpus=gpus), sum(sent.values()) / rate
    assert max(computing, sending) * (1 - 1e-9) <= at(rate) <= (computing + sending) * (1 + 1e-9)
    assert at(2 * rate) <= at(rate) * (1 + 1e-9)


@pytest.mark.parametrize(("text", "rate"), [("25GB/s", 25e9), ("1 GiB/s", 2**30), ("3.7e11", 3.7e11), ("64GB", 64e9)])
def test_a_link_is_read(text: str, rate: float) -> None:
    """Decimal and binary units, and plain bytes a second."""
    assert read_link(text).bytes_per_s == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "fast", "1e99", "nan", "25Gb/h"])
def test_what_is_no_link(text: str) -> None:
    """Refused with an example."""
    with pytest.raises(BadInputError, match=r"GB|GiB"):
        read_link(text)


def test_an_unknown_sharing_is_refused() -> None:
    """Never timed as another one."""
    with pytest.raises(BadInputError, match="--shard pipeline"):
        step({}, "pipeline")
