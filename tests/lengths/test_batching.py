"""Batches are those that PyTorch, transformers' samplers and its Trainer make of the same lengths and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from lorafa_prof.errors import BadInputError, UnknownNameError
from lorafa_prof.lengths import RULES, Batching, Epoch, Lengths
from lorafa_prof.lengths.batching import order_of, permutation

SOME = st.lists(st.integers(1, 300), min_size=1, max_size=120)
LIMIT = 200


def lengths_of(values: list[int], rule: str, **options: Any) -> Lengths:
    batching = Batching.parse(rule, **options)
    return Lengths(source="some", lengths=np.array(values, dtype=np.int64), batching=batching)


def skewed(count: int) -> list[int]:
    """Lengths as data sets have them: most short, few long."""
    drawn = np.random.default_rng(count).lognormal(4, 0.8, count)
    return np.clip(drawn.astype(np.int64), 1, 400).tolist()


class TestAgainstTheLibraries:
    """The same seed, the same batches."""

    @given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
    def test_a_permutation(self, count: int, seed: int) -> None:
        """The one that PyTorch draws."""
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        assert permutation(count, seed).tolist() == drawn.tolist()

    @given(SOME, st.integers(1, 9), st.integers(0, 99))
    def test_grouped_by_length(self, values: list[int], bs: int, seed: int) -> None:
        """The order of transformers' own sampler, for data sets of any size."""
        generator = torch.Generator().manual_seed(seed)
        sampled = list(LengthGroupedSampler(bs, lengths=values, generator=generator))
        ours = order_of(np.array(values), Batching(rule="grouped", seed=seed), bs)
        assert ours.tolist() == sampled

    @pytest.mark.parametrize(("count", "bs"), [(7, 2), (1000, 4), (5000, 8)])
    def test_grouped_in_several_mega_batches(self, count: int, bs: int) -> None:
        """Also where a mega-batch has its full fifty batches."""
        values = skewed(count)
        sampled = list(LengthGroupedSampler(bs, lengths=values, generator=torch.Generator().manual_seed(3)))
        assert order_of(np.array(values), Batching(rule="grouped", seed=3), bs).tolist() == sampled

    @pytest.mark.parametrize("unit", [1, 8])
    def test_a_trainer_s_first_epoch(self, tmp_path: Path, unit: int) -> None:
        """The shapes and the attention masks of all batches that a Trainer with its default options draws and pads."""
        pytest.importorskip("accelerate")
        values = skewed(103)
        epoch = lengths_of(values, "random", pad_to_multiple_of=unit).epoch(8, 400)
        batches = list(trainer(tmp_path, values, unit).get_train_dataloader())
        shapes = [tuple(batch["input_ids"].shape) for batch in batches]
        assert shapes == list(zip(epoch.bs.tolist(), epoch.seq.tolist(), strict=True))
        assert [int(batch["attention_mask"].sum()) for batch in batches] == epoch.tokens.tolist()
        assert [not bool(batch["attention_mask"].all()) for batch in batches] == epoch.padded.tolist()


def trainer(folder: Path, values: list[int], unit: int) -> Trainer:
    """One that would train a small layer on sequences of these lengths."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    return Trainer(
        model=torch.nn.Linear(1, 1),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=8,
            use_cpu=True,
            report_to=[],
            remove_unused_columns=False,
        ),
        train_dataset=[{"input_ids": [1] * length, "attention_mask": [1] * length} for length in values],  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=unit),
    )


def epoch_of(rule: str, values: list[int], bs: int, unit: int) -> Epoch:
    text = rule.replace("N", "800")
    return lengths_of(values, text, seed=5, pad_to_multiple_of=unit).epoch(bs, LIMIT)


class TestAnyLengths:
    """What holds for every rule, whatever the lengths."""

    @pytest.mark.parametrize("rule", RULES)
    @given(values=SOME, bs=st.integers(1, 130), unit=st.sampled_from([1, 8, 64]))
    def test_an_epoch_is_the_whole_data_set(self, rule: str, values: list[int], bs: int, unit: int) -> None:
        """Every sequence is in one batch, no batch is empty, and none holds more than it may."""
        epoch = epoch_of(rule, values, bs, unit)
        assert epoch.bs.min() >= 1
        assert (epoch.tokens <= epoch.bs * epoch.seq).all()
        assert not (epoch.seq % unit).any()
        assert 0.0 <= epoch.padding_share < 1.0
        if rule == "packed":
            assert epoch.tokens.sum() == sum(values)
            assert epoch.bs.sum() == -(-sum(values) // LIMIT)
        else:
            assert epoch.tokens.sum() == sum(min(value, LIMIT) for value in values)
            assert epoch.bs.sum() == len(values)
            assert epoch.seq.max() == -(-min(max(values), LIMIT) // unit) * unit
        if rule == "tokens:N":
            assert (epoch.bs * epoch.seq).max() <= 800
        else:
            assert (epoch.bs[:-1] == bs).all()
            assert epoch.bs[-1] <= bs

    @pytest.mark.parametrize("rule", RULES)
    @given(values=SOME, bs=st.integers(1, 30))
    def test_shapes_stand_for_all_batches(self, rule: str, values: list[int], bs: int) -> None:
        """Each batch finds its own shape again, and is counted once."""
        epoch = epoch_of(rule, values, bs, 1)
        shapes = epoch.shapes
        for name in ("bs", "seq", "padded"):
            assert (getattr(shapes, name)[shapes.of_batch] == getattr(epoch, name)).all()
        assert shapes.count.sum() == len(epoch)
        assert (shapes.of_batch[shapes.first] == np.arange(len(shapes))).all()

    @given(values=SOME, budget=st.integers(200, 2000))
    def test_a_budget_is_used(self, values: list[int], budget: int) -> None:
        """Of batches in a row by length none could have taken the shortest of the next one as well."""
        epoch = lengths_of(values, f"tokens:{budget}").epoch(1, LIMIT)
        rising = np.argsort(epoch.seq, kind="stable")
        bs, seq = epoch.bs[rising], epoch.seq[rising]
        kept = np.sort(np.minimum(values, LIMIT))
        if len(set(seq.tolist())) == len(epoch):  # the batches' order by length is known
            shortest = kept[np.cumsum(bs)[:-1]]
            assert ((bs[:-1] + 1) * shortest > budget).all()

    def test_without_padding(self) -> None:
        """Sequences of one length need none, nor a mask: also truncated ones."""
        epoch = lengths_of([900] * 10, "random").epoch(4, LIMIT)
        assert epoch.bs.tolist() == [4, 4, 2]
        assert epoch.seq.tolist() == [LIMIT] * 3
        assert not epoch.padded.any()
        assert epoch.padding_share == 0.0

    def test_longest_first(self) -> None:
        """`sorted` begins with the longest sequences, `file` with the first ones."""
        values = [3, 9, 4, 8, 5]
        assert lengths_of(values, "sorted").epoch(2, LIMIT).seq.tolist() == [9, 5, 3]
        assert lengths_of(values, "file").epoch(2, LIMIT).seq.tolist() == [9, 8, 5]

    def test_grouped_by_the_sequences_of_a_step(self) -> None:
        """The Trainer's sampler groups by all micro-batches of a step together."""
        values = skewed(500)
        one, accumulated = (lengths_of(values, "grouped").epoch(4, LIMIT, times) for times in (1, 4))
        sixteen = order_of(np.minimum(values, LIMIT), Batching(rule="grouped"), 16)
        assert accumulated.tokens.tolist() == np.minimum(values, LIMIT)[sixteen].reshape(-1, 4).sum(axis=1).tolist()
        assert one.tokens.tolist() != accumulated.tokens.tolist()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("randm", "did you mean random"), ("tokens", "tokens:N"), ("tokens:", "no whole number"),
        ("tokens:N", "write it as tokens:16384"), ("tokens:-5", "no whole number"), ("tokens:0", "between 1 and"),
        ("tokens:99999999999999999999", "between 1 and"), ("random:3", "unknown batching"),
    ],
)  # fmt: skip
def test_a_rule_that_there_is_not(text: str, said: str) -> None:
    """The nearest right one is named."""
    with pytest.raises((BadInputError, UnknownNameError), match=said):
        Batching.parse(text)


def test_options_out_of_range() -> None:
    """A budget belongs to one rule, a seed has 32 bits, padding is at least none."""
    for options in ({"tokens": 5}, {"rule": "tokens"}, {"seed": -1}, {"seed": 2**32}, {"pad_to_multiple_of": 0}):
        with pytest.raises(BadInputError):
            Batching(**options)  # type: ignore[arg-type]


def test_a_sequence_beyond_the_budget() -> None:
    """It would fit into no batch."""
    with pytest.raises(BadInputError, match="a sequence of 96 tokens, padding counted, is beyond"):
        lengths_of([90, 5], "tokens:95", pad_to_multiple_of=32).epoch(1, LIMIT)


def test_packed_rows_beyond_memory() -> None:
    """A trillion tokens in rows of one are not laid out to be counted."""
    with pytest.raises(BadInputError, match="rows of 1 tokens are too many"):
        lengths_of([2**30] * 1000, "packed").epoch(1, 1)
