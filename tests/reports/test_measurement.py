"""Measurements as tables: what was promised and not kept comes first, what is not known is a dash."""

from __future__ import annotations

from dataclasses import replace

from lorafa_prof.reports.measurement import measurement_table, outcome_line, records_table
from lorafa_prof.reports.table import render_csv
from lorafa_prof.reports.text import render_text
from lorafa_prof.results import PART_FIELDS, Measurement, Memory, PhaseMemory, Promise, Spread, StepTime, Throughput
from lorafa_prof.units import GIB, MIB
from tests.measure.runs import faulty_run

MEMORY = Memory(
    **dict.fromkeys(PART_FIELDS, 2 * GIB), peak_allocated_bytes=16 * GIB, peak_reserved_bytes=17 * GIB,
    fragmentation_bytes=GIB, context_bytes=500 * MIB, peak_device_bytes=17 * GIB + 500 * MIB,
    peak_moment="backward: model.layers.1.mlp",
)  # fmt: skip
PHASES = tuple(
    PhaseMemory(
        phase=name, peak_requested_bytes=None, peak_allocated_bytes=size * GIB, peak_active_bytes=None,
        peak_reserved_bytes=None, device_bytes=None, end_allocated_bytes=None,
    )
    for name, size in (("forward", 14), ("backward", 16))
)  # fmt: skip
KEPT = Promise(name="frozen A", kept=True, detail="no A has a gradient")
BROKEN = Promise(name="frozen A", kept=False, detail="8 of 8 A matrices have gradients", cost_bytes=96 * MIB)
WELL = Measurement(
    outcome="ok", run=faulty_run("tiny"), versions={"torch": "9.9"}, environment={"device": "Fake 1"}, memory=MEMORY,
    phases=PHASES, promises=(KEPT,), parameters={"total": 10_000, "trainable": 100}, alloc_retries=0,
    steps=tuple(StepTime(step_s=s, forward_s=s / 4, tokens=32) for s in (0.5, 0.75, 1.5)),
    spread=Spread(least_s=0.5, quarter_s=0.625, median_s=0.75, three_quarters_s=1.125, most_s=1.5),
    throughput=Throughput(step_s=0.75, tokens_per_s=1234.5, mfu=0.412, mfu_6n=0.5, hfu=0.45),
)  # fmt: skip
FULL = Measurement(
    outcome="oom", error="CUDA out of memory.\nTried to allocate 2.00 GiB.", exit_code=1, run=faulty_run("tiny", bs=4),
    versions={"torch": "9.9"}, environment={"device": "Fake 1"}, unmodelled=("the driver",),
)  # fmt: skip


def test_the_whole_table() -> None:
    """As people read it."""
    assert render_text(measurement_table([WELL, FULL])) == (
        "measured on Fake 1: tiny, bf16, sdpa attention, rank 4 on all-linear\n"
        "                                  LoRA           LoRA\n"
        "─────────────────────────────────────────────────────\n"
        "batch                                2              4\n"
        "outcome                             ok  out of memory\n"
        "─────────────────────────────────────────────────────\n"
        "base weights                  2.00 GiB              -\n"
        "adapters                      2.00 GiB              -\n"
        "gradients                     2.00 GiB              -\n"
        "optimizer states              2.00 GiB              -\n"
        "saved activations             2.00 GiB              -\n"
        "logits and loss               2.00 GiB              -\n"
        "temporaries                   2.00 GiB              -\n"
        "workspaces                    2.00 GiB              -\n"
        "─────────────────────────────────────────────────────\n"
        "peak allocated               16.00 GiB              -\n"
        "reached in                backward mlp              -\n"
        "peak reserved                17.00 GiB              -\n"
        "beyond allocated              1.00 GiB              -\n"
        "CUDA context                500.00 MiB              -\n"
        "peak of the device           17.49 GiB              -\n"
        "─────────────────────────────────────────────────────\n"
        "allocated in forward         14.00 GiB              -\n"
        "allocated in backward        16.00 GiB              -\n"
        "─────────────────────────────────────────────────────\n"
        "steps timed                          3              -\n"
        "step, median                 750.00 ms              -\n"
        "half of them           0.625 - 1.125 s              -\n"
        "least, most            0.500 - 1.500 s              -\n"
        "forward                      187.50 ms              -\n"
        "─────────────────────────────────────────────────────\n"
        "tokens/s                         1,234              -\n"
        "MFU                              41.2%              -\n"
        "MFU, 6N                          50.0%              -\n"
        "HFU                              45.0%              -\n"
        "trained values                     100              -\n"
        "all values                     10.00 k              -\n"
        "allocator retries                    0              -\n"
        "\n"
        "- LoRA, 4 x 16, rank 4: oom: CUDA out of memory.\n"
        "- Measured with torch 9.9.\n"
        "- Not observed: the driver.\n"
    )


def test_a_broken_promise_comes_first_with_what_it_costs() -> None:
    """In the first row, and in the first note with what was found; beside it who kept it, and who was not asked."""
    table = measurement_table([replace(WELL, promises=(BROKEN,)), WELL, FULL])
    assert table.rows[0][0] == "NOT KEPT: frozen A"
    assert [cell.text for cell in table.rows[0][1:]] == ["costs 96.00 MiB", "kept", "-"]  # type: ignore[union-attr]
    assert table.notes[0] == "NOT KEPT, LoRA, 2 x 16, rank 4: frozen A: 8 of 8 A matrices have gradients"


def test_a_kept_promise_takes_no_room() -> None:
    """Only what is broken is shown."""
    assert "frozen A" not in render_text(measurement_table([WELL]))


def test_one_line() -> None:
    """The figures that matter; the end where it was another; a promise that was not kept."""
    assert outcome_line(WELL) == "ok, peak allocated 16.00 GiB, 750.00 ms a step"
    assert outcome_line(FULL) == "oom: CUDA out of memory."
    assert outcome_line(replace(FULL, outcome="killed", error="killed by SIGKILL")) == "killed by SIGKILL"
    assert outcome_line(replace(WELL, promises=(BROKEN, KEPT))).endswith("; promises NOT kept: frozen A")


def test_a_script_has_no_run() -> None:
    """It is called as it was started."""
    script = Measurement(outcome="ok", versions={}, environment={}, command=("a/train.py", "--x"), rank=1, world_size=2)
    text = render_text(measurement_table([script]))
    assert "train.py" in text
    assert "1 of 2" in text
    assert records_table([script]).rows[0][0] is None


def test_records_hold_values() -> None:
    """Bytes and seconds as they are; nothing where nothing is known."""
    header, well, full = render_csv(records_table([replace(WELL, promises=(BROKEN,)), FULL])).splitlines()
    well_row, full_row = (dict(zip(header.split(","), line.split(","), strict=True)) for line in (well, full))
    assert (well_row["peak_allocated_bytes"], well_row["step_median_s"]) == (str(16 * GIB), "0.75")
    assert (well_row["promises_not_kept"], well_row["promises_cost_bytes"]) == ("frozen A", str(96 * MIB))
    assert (full_row["outcome"], full_row["peak_allocated_bytes"]) == ("oom", "")
    assert (full_row["exit_code"], full_row["error"]) == ("1", "CUDA out of memory.")


def test_no_measurements_are_no_rows() -> None:
    """An empty document can still be written as CSV."""
    assert records_table([]).rows == ()
