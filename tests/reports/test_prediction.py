"""Predictions as tables."""

from __future__ import annotations

import pytest

from lorafa_prof.ledger import Category, Ledger, MemoryItem
from lorafa_prof.reports.prediction import explain_table
from lorafa_prof.reports.text import render_text
from lorafa_prof.results import Memory, Prediction, Throughput
from tests.analytic.runs import run_of


def prediction(engine: str, formula: str) -> Prediction:
    """A prediction with one tensor alive at its peak: 3 x 22 values of 4 bytes, in a block of 512."""
    item = MemoryItem(
        module="model.layers.*", tensor="rsqrt", category=Category.ACTIVATIONS, shape="(b, s)", dtype="fp32",
        formula=formula, count=2, nbytes=1024,
    )  # fmt: skip
    ledger = Ledger("recompute: model.layers.0", (item,))
    memory = Memory(
        **Memory.parts_from(ledger), peak_allocated_bytes=1024, peak_reserved_bytes=None, context_bytes=None,
        peak_device_bytes=None, peak_moment=ledger.moment,
    )  # fmt: skip
    return Prediction(
        engine=engine, run=run_of("llama", "lora"), versions={}, memory=memory, throughput=Throughput(),
        parameters={"total": 1, "trainable": 1}, ledger=ledger,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "formula", "notes"),
    [
        (
            "analytic",
            "4·b·s",
            (
                "b = 3, s = 22; * stands for the layer's number, xN for how many there are.",
                "Each tensor is rounded up to 512 B.",
            ),
        ),
        (
            "simulate",
            "264",
            (
                "For batch 3 x 22 tokens; * stands for the layer's number, xN for how many there are.",
                "Bytes are what one tensor asks for; GiB are the allocator's blocks, rounded up to 512 B or further.",
                "What has no name of its own is named by the operator that made it, and the pass in which it did.",
            ),
        ),
    ],
)
def test_an_explanation_says_how_it_is_read(engine: str, formula: str, notes: tuple[str, ...]) -> None:
    """Symbols are explained where formulas have them; sizes of a simulation are those of blocks."""
    table = explain_table(prediction(engine, formula))
    assert table.notes == notes
    assert table.title == "LoRA: alive at the peak, in recompute: model.layers.0"
    text = render_text(table, width=120)
    assert f"{formula} x2" in text
    assert "model.layers.*: rsqrt" in text
