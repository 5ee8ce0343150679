"""`lorafa-prof replay`: recorded snapshots in, peaks and verdicts out."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main

MIB = 2**20


def entry(action: str, addr: int, size: int) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size, "stream": 0, "time_us": 0, "frames": []}


@pytest.fixture
def snapshot(tmp_path: Path) -> str:
    """Three blocks as a device would record them: 30 and 11 MiB in segments of their own, 1 KiB in a small one."""
    trace = [
        entry("segment_alloc", 0x10000000, 30 * MIB), entry("alloc", 0x10000000, 30 * MIB),
        entry("segment_alloc", 0x20000000, 12 * MIB), entry("alloc", 0x20000000, 11 * MIB),
        entry("segment_alloc", 0x30000000, 2 * MIB), entry("alloc", 0x30000000, 1024),
        entry("free_requested", 0x10000000, 30 * MIB), entry("free_completed", 0x10000000, 30 * MIB),
    ]  # fmt: skip
    file = tmp_path / "snapshot.pickle"
    file.write_bytes(pickle.dumps({"segments": [], "device_traces": [trace], "allocator_settings": {}}, protocol=4))
    return str(file)


def replayed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main(["replay", *args, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)["replay"]
    return found


def test_peaks(capsys: pytest.CaptureFixture[str], snapshot: str) -> None:
    """11 MiB get a segment of 12, whose last MiB is too little to be split off: it counts as allocated."""
    found = replayed(capsys, snapshot)
    assert found["peak_requested_bytes"] == 41 * MIB + 1024
    assert found["peak_allocated_bytes"] == 42 * MIB + 1024
    assert found["peak_reserved_bytes"] == 44 * MIB
    assert found["segments_as_recorded"] is True
    assert found["oom"] is None


def test_a_smaller_card(capsys: pytest.CaptureFixture[str], snapshot: str) -> None:
    """On 40 MiB the second block does not fit beside the first; the message is PyTorch's."""
    found = replayed(capsys, snapshot, "--cap", "40MiB")
    assert found["oom"].startswith("CUDA out of memory. Tried to allocate 12.00 MiB.")


def test_settings_that_contradict_each_other(capsys: pytest.CaptureFixture[str], snapshot: str) -> None:
    """The flag and the text that says the opposite: one clear line, exit code 2."""
    assert main(["replay", snapshot, "--expandable-segments", "--alloc-conf", "expandable_segments:False"]) == 2
    assert "contradict" in capsys.readouterr().err


def test_a_compressed_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The same as JSON; blocks from before the recording are told, and the segments then cannot be compared."""
    file = tmp_path / "trace.json.gz"
    events = [["alloc", 512, 100, 0], ["free_completed", 512, 100, 0], ["free_completed", 4096, 100, 0]]
    file.write_bytes(gzip.compress(json.dumps({"case": {}, "events": events, "segments": []}).encode()))
    found = replayed(capsys, str(file))
    assert (found["peak_allocated_bytes"], found["unknown_frees"], found["segments_as_recorded"]) == (512, 1, None)


def test_nothing_in_a_file_is_executed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A pickle that would run something is refused by what it holds."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harm",)

    file = tmp_path / "bad.pickle"
    file.write_bytes(pickle.dumps({"segments": Payload()}, protocol=4))
    assert main(["replay", str(file)]) == 2
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "harm").exists()


def test_no_trace_in_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A snapshot without recorded history says how to record one."""
    file = tmp_path / "empty.pickle"
    file.write_bytes(pickle.dumps({"segments": [], "device_traces": [[]]}, protocol=4))
    assert main(["replay", str(file)]) == 2
    assert "_record_memory_history" in capsys.readouterr().err
