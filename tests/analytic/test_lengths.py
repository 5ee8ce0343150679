"""The peak of an epoch by closed forms is that of its largest batch, as `predict` says of that batch alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.lengths import EpochForms
from lorafa_prof.catalog import load_device
from lorafa_prof.errors import BadInputError
from lorafa_prof.lengths import Batching, Lengths
from lorafa_prof.results import Prediction
from lorafa_prof.specs import RunSpec
from lorafa_prof.thresholds import find_threshold
from lorafa_prof.units import parse_bytes
from tests.analytic.runs import run_of

CARD = dataclasses.replace(load_device("a100-80gb"), total_bytes=parse_bytes("900MiB"))
RULES = ("random", "sorted", "grouped", "file", "tokens:1500", "packed")


def lengths_of(rule: str, count: int = 61, **options: Any) -> Lengths:
    """Lengths as data sets have them: most short, few long; some alike, so that some batches have no padding."""
    drawn = np.random.default_rng(7).lognormal(4.5, 0.9, count).astype(np.int64)
    values = np.clip(drawn, 3, 900)
    values[: count // 4] = 64
    return Lengths(source="some.txt", lengths=values, batching=Batching.parse(rule, **options))


def long_run(family: str, method: str = "lora", **options: Any) -> RunSpec:
    changes = {"max_position_embeddings": 2048, "vocab_size": 6000}
    return run_of(family, method, changes=changes, layers=4, **{"bs": 4, "seq": 512, "optimizer": "adamw", **options})


def each_batch(run: RunSpec, lengths: Lengths) -> list[Prediction]:
    """What `predict` says of every batch alone."""
    epoch = lengths.epoch(run.bs, run.seq, run.accumulation)
    batches = zip(epoch.bs.tolist(), epoch.seq.tolist(), epoch.padded.tolist(), strict=True)
    return [predict(run.replace(bs=bs, seq=seq, padded=padded)) for bs, seq, padded in batches]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("mistral-window", {"checkpointing": "full"})])
def test_the_peak_is_that_of_the_largest_batch(family: str, options: dict[str, Any], rule: str) -> None:
    """The peak, the batch that has it, the quantiles and the arithmetic, against every batch taken alone."""
    run, lengths = long_run(family, **options), lengths_of(rule)
    found, batches = EpochForms(lengths).predict(run), each_batch(run, lengths)
    said, peaks = found.lengths, [batch.memory.peak_allocated_bytes or 0 for batch in batches]
    assert said is not None
    assert found.memory.peak_allocated_bytes == max(peaks)
    assert said.worst_batch == peaks.index(max(peaks))
    worst = batches[said.worst_batch]
    assert (found.run, found.memory, found.ledger) == (worst.run, worst.memory, worst.ledger)
    rising = sorted(peaks)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    assert said.peak_allocated_bytes == {n: rising[math.ceil(s * len(peaks)) - 1] for n, s in shares.items()}
    for name in ("model_flops", "executed_flops", "model_flops_6n"):
        mean = sum(getattr(batch.throughput, name) for batch in batches) / len(batches)
        assert getattr(found.throughput, name) == pytest.approx(mean, abs=1)
    assert found.throughput.step_s is None
    assert found.tokens == pytest.approx(sum(batch.run.tokens for batch in batches) / len(batches))


def test_a_shorter_batch_of_one_kernel_s_can_be_the_largest() -> None:
    """A full batch has no mask, a padded one has a bias in every layer: the longest batch need not be the largest."""
    values = np.array([512] * 4 + [500] * 3 + [9])
    lengths = Lengths(source="x", lengths=values, batching=Batching(rule="file"))
    said = EpochForms(lengths).predict(long_run("llama")).lengths
    assert said is not None
    assert (said.worst_batch, said.worst_seq) == (1, 500)


def test_the_largest_batch_size_that_fits() -> None:
    """`oom` and `max_bs` say the same: the epoch's largest batch fits, and with one sequence more it does not."""
    run, lengths = long_run("llama", seq=900), lengths_of("grouped", 400)
    forms = EpochForms(lengths)
    found = find_threshold(forms, run, "bs", CARD)
    assert found.first_oom == found.max + 1
    assert found.max > 2
    for bs, fits in ((found.max, True), (found.first_oom, False)):
        most = max(batch.memory.peak_allocated_bytes or 0 for batch in each_batch(run.replace(bs=bs), lengths))
        assert (most + (CARD.context_bytes or 0) <= CARD.total_bytes) is fits
    assert forms.predict(run, [CARD]).fit[0].max_bs == found.max


def test_the_longest_sequences_that_fit() -> None:
    """Along the axis of sequences, what is truncated to."""
    run, lengths = long_run("llama", bs=12), lengths_of("sorted", 400)
    found = find_threshold(EpochForms(lengths), run, "seq", CARD)
    assert found.first_oom == found.max + 1 < 900
    for seq, fits in ((found.max, True), (found.first_oom, False)):
        most = max(batch.memory.peak_allocated_bytes or 0 for batch in each_batch(run.replace(seq=seq), lengths))
        assert (most + (CARD.context_bytes or 0) <= CARD.total_bytes) is fits


def test_a_budget_has_no_batch_size() -> None:
    """Neither to raise, nor to look for."""
    forms = EpochForms(lengths_of("tokens:1500"))
    with pytest.raises(BadInputError, match="no batch size"):
        find_threshold(forms, long_run("llama"), "bs", CARD)
    assert forms.predict(long_run("llama"), [CARD]).fit[0].max_bs is None


def test_padded_beyond_the_positions() -> None:
    """Truncated to what the model has, and padded to more than that: refused."""
    lengths = lengths_of("random", pad_to_multiple_of=1000)
    with pytest.raises(BadInputError, match="3000 is beyond the 2048 positions"):
        EpochForms(dataclasses.replace(lengths, lengths=np.array([2047]))).predict(long_run("llama", seq=2048))


def test_flash_attention_has_no_mask() -> None:
    """Its padding is taken out, and so no batch is padded; that its copies are not counted is said."""
    found = EpochForms(lengths_of("random")).predict(long_run("llama", attn="flash"))
    assert not found.run.padded
    assert any("without the padding" in line for line in found.unmodelled)


def test_json_and_back() -> None:
    """A prediction of an epoch is read as it was written."""
    found = EpochForms(lengths_of("grouped")).predict(long_run("llama"))
    data = found.to_json()
    assert data["lengths"]["file"] == "some.txt"
    assert Prediction.from_json(data) == found
