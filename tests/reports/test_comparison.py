"""Comparisons as tables: what people read, and one flat row a figure."""

from __future__ import annotations

from lorafa_prof.compare import compare
from lorafa_prof.ledger import Category
from lorafa_prof.reports.comparison import comparison_table, name_of, records_table
from lorafa_prof.reports.text import render_text
from lorafa_prof.results import Comparison
from tests.support.hand_made import MIB, ledger, measurement, memory, prediction, without_memory


def text(comparison: Comparison, width: int = 110) -> str:
    return render_text(comparison_table(comparison), width)


def prose(comparison: Comparison) -> str:
    """The notes in one line."""
    return " ".join(" ".join(comparison_table(comparison).notes).split())


def test_a_whole_table() -> None:
    """Parts, the rest, memories, phases, sizes and time; what a side lacks is a dash.

    The peak is 10 MiB too low, of which activations explain 6: 4 are left.
    """
    said = memory(
        activations_bytes=54 * MIB, peak_allocated_bytes=190 * MIB, peak_reserved_bytes=None, fragmentation_bytes=None,
        moments={},
    )  # fmt: skip
    found = compare(measurement(), [prediction(said, engine="analytic")])
    assert text(found).split("\n\n")[0] == _TABLE


_TABLE = """\
LoRA on small: batch 2 x 32 tokens, bf16, sdpa attention, rank 4 on all-linear; on NVIDIA A100-SXM4-80GB
                          observed       analytic       error        %
──────────────────────────────────────────────────────────────────────
base weights            100.00 MiB     100.00 MiB           0       0%
adapters                  8.00 MiB       8.00 MiB           0       0%
gradients                      0 B            0 B           0       0%
optimizer states               0 B            0 B           0       0%
saved activations        60.00 MiB      54.00 MiB   -6.00 MiB  -10.00%
logits and loss          20.00 MiB      20.00 MiB           0       0%
temporaries                    0 B            0 B           0       0%
workspaces               12.00 MiB      12.00 MiB           0       0%
unexplained rest                                    -4.00 MiB
──────────────────────────────────────────────────────────────────────
peak requested          199.00 MiB     199.00 MiB           0       0%
peak allocated          200.00 MiB     190.00 MiB  -10.00 MiB   -5.00%
peak reserved           220.00 MiB              -           -        -
beyond allocated         20.00 MiB              -           -        -
reached in           loss backward  loss backward        same
──────────────────────────────────────────────────────────────────────
most in forward         190.00 MiB              -           -        -
most in loss            200.00 MiB              -           -        -
most in backward        180.00 MiB              -           -        -
──────────────────────────────────────────────────────────────────────
saved after forward      61.00 MiB      61.00 MiB           0       0%
gradients at step         8.00 MiB       8.00 MiB           0       0%
parameters                  88,496         88,496           0       0%
trained ones                 7,424          7,424           0       0%
──────────────────────────────────────────────────────────────────────
step time                500.00 ms              -           -        -
tokens/s                     128.0              -           -        -
model FLOPs                 1.00 M              -           -        -
MFU                         40.00%              -           -        -"""


def test_moments_that_differ_are_said_first() -> None:
    """Before anything is made of the parts."""
    found = compare(measurement(), [prediction(memory("optimizer step"))])
    first = comparison_table(found).notes[0]
    assert first.startswith("simulate: its peak is in another moment (optimizer step; observed: loss backward: loss)")
    assert "cannot be compared one by one" in first
    nearby = compare(measurement(memory("backward: a.0")), [prediction(memory("backward: a.1"))])
    assert comparison_table(nearby).notes[0] == "simulate: its peak is at backward: a.1, observed at backward: a.0."


def test_items_are_named() -> None:
    """Category, module and tensor, with both sides."""
    seen = ledger((Category.ACTIVATIONS, "layers.*.mlp", "silu", 2 * MIB))
    said = ledger((Category.ACTIVATIONS, "layers.*.mlp", "silu", 3 * MIB))
    found = compare(measurement(ledger=seen), [prediction(ledger=said)])
    assert (
        "simulate: the ledgers differ most in activations of layers.*.mlp: silu (+1.00 MiB: observed 2.00 MiB, "
        "predicted 3.00 MiB)."
    ) in prose(found)


def test_what_may_explain_an_error() -> None:
    """An engine's own assumptions and what it does not model, once its peak is wrong."""
    words = {"assumptions": ("shared", "its own"), "unmodelled": ("hidden buffers",)}
    right = compare(measurement(assumptions=("shared",)), [prediction(**words)])
    wrong = compare(measurement(assumptions=("shared",)), [prediction(memory(peak_allocated_bytes=1), **words)])
    assert "hidden buffers" not in prose(right)
    assert "simulate, assumed: its own. simulate, not modelled: hidden buffers." in prose(wrong)


def test_an_end_that_was_not_good() -> None:
    """The outcome leads, and the verdicts follow."""
    found = compare(without_memory("oom", error="CUDA out of memory. Tried"), [prediction()])
    assert comparison_table(found).notes[0] == "The run did not end well: oom: CUDA out of memory. Tried."
    assert "simulate: fits in 80.00 GiB, unlike what was observed." in prose(found)


def test_names() -> None:
    """A script is called by its command, a rank by its number."""
    assert name_of(compare(measurement(run=None, command=("a.py", "-x"), environment={}), [])) == (
        "a.py -x; on a device without a name"
    )
    assert name_of(compare(measurement(rank=1, world_size=2), [])).endswith("; on NVIDIA A100-SXM4-80GB, rank 1 of 2")


def test_small_and_large_shares() -> None:
    """What is there is never shown as nothing, and a thousandfold has no decimals."""
    found = compare(measurement(), [prediction(memory(peak_allocated_bytes=200 * MIB + 512, logits_bytes=2000 * MIB))])
    lines = [" ".join(line.split()) for line in text(found).splitlines()]
    assert "peak allocated 200.00 MiB 200.00 MiB +512 B +<0.01%" in lines
    assert "logits and loss 20.00 MiB 1.95 GiB +1.93 GiB +9,900%" in lines


def test_a_measurement_without_predictions_has_rows() -> None:
    """CSV holds what was observed, with empty fields for the rest."""
    table = records_table([compare(measurement(run=None), [])])
    assert len(table.rows) == len(compare(measurement(), []).rows)
    by_name = {row[10]: row for row in table.rows}
    assert by_name["weights_bytes"][7:] == ("ok", None, "parts", "weights_bytes", "bytes", 100 * MIB, None, None, None)
