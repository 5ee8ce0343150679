"""The allocator's recorded event logs, replayed: the same segments at the same moments, and the same peaks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.simulate.snapshots.recorded import RecordedRun
from tests.ground_truth.records import FOLDER, Record, devices, read_records

DEFAULTS = AllocatorSettings()
LOGGED = [r for device in devices() for r in read_records(device) if "trace_file" in r.data]
MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize("recorded", LOGGED, ids=lambda record: record.name)
def test_a_recorded_log_is_reproduced(recorded: Record) -> None:
    """Every segment that the device took and gave back, and both peaks of the whole run, exactly."""
    run = RecordedRun.read(str(FOLDER / recorded.device / recorded.data["trace_file"]))
    assert run.is_reproduced(DEFAULTS)
    replayed = run.replay(DEFAULTS)
    assert replayed.reserved.size == max(step["peak_reserved"] for step in recorded.data["steps"])
    assert replayed.allocated.size == max(step["peak"] for step in recorded.data["steps"])


def log_of(tmp_path: Path, events: list[list[Any]]) -> RecordedRun:
    """A log in the form that the recorder writes."""
    path = tmp_path / "trace-00.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"case": {}, "events": events, "segments": [[0x10000000, 22 * MIB, "large"]]}, file)
    return RecordedRun.read(str(path))


#: 21 MiB get a segment of 22, and the last MiB is too little to be split off; then 1 KiB.
EVENTS: list[list[Any]] = [
    ["segment_alloc", 0x10000000, 22 * MIB, 0], ["alloc", 0x10000000, 21 * MIB, 0],
    ["segment_alloc", 0x30000000, 2 * MIB, 0], ["alloc", 0x30000000, 1024, 0],
    ["free_requested", 0x30000000, 1024, 0], ["free_completed", 0x30000000, 1024, 0],
]  # fmt: skip


def test_a_log_in_the_recorder_s_form_is_replayed(tmp_path: Path) -> None:
    """Peaks are those of blocks and segments, which is what a device counts."""
    run = log_of(tmp_path, EVENTS)
    assert run.is_reproduced(DEFAULTS)
    assert run.replay(DEFAULTS).allocated.size == 22 * MIB + 1024
    assert run.replay(DEFAULTS).reserved.size == 24 * MIB


def test_another_segment_than_the_device_s_is_seen(tmp_path: Path) -> None:
    """Had the device taken 24 MiB for the first block, the replay would not be a reproduction."""
    larger = [["segment_alloc", 0x10000000, 24 * MIB, 0], *EVENTS[1:]]
    assert not log_of(tmp_path, larger).is_reproduced(DEFAULTS)
