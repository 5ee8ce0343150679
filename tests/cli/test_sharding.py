"""Several GPUs on the command line: predict, sweep and oom say the same, in all formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lorafa_prof.cli import main
from lorafa_prof.results import PART_FIELDS, Prediction

RUN = ("--model", "llama2-7b", "--bs", "2", "--seq", "512", "--optimizer", "adamw")
WAYS = ("ddp", "fsdp", "frozen", "zero1", "zero2", "zero3")


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    assert main([*args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shard", WAYS)
def test_parts_sum_to_the_peak_and_what_is_sent_is_told(capsys: pytest.CaptureFixture[str], shard: str) -> None:
    """The JSON has every byte in a part, and comes back as what it was; the table names what is sent."""
    command = ("predict", *RUN, "--method", "lora", "--gpus", "8", "--shard", shard)
    (data,) = json.loads(said(capsys, *command, "--format", "json"))["predictions"]
    assert sum(data["memory"][part] for part in PART_FIELDS) == data["memory"]["peak_allocated_bytes"]
    assert set(data["communication_bytes"]) <= {"all_gather", "reduce_scatter", "all_reduce", "broadcast"}
    assert Prediction.from_json(data).to_json() == data
    table = said(capsys, *command)
    assert f"each of 8 GPUs, {shard}" in " ".join(table.split())
    for kind in data["communication_bytes"]:
        assert f"sent: {kind.replace('_', '-')}" in table


def test_rows_of_a_sweep_are_those_of_predict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way and number of GPUs a row, with the same figures; GPUs that share nothing are a row that says so."""
    monkeypatch.chdir(tmp_path)
    ways = ",".join(("none", *WAYS))
    said(capsys, "sweep", *RUN, "--method", "full,lora", "--gpus", "2,8", "--shard", ways, "-o", "s.csv")
    rows = list(csv.DictReader(Path("s.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 2 * 2 * 7
    for row in rows:
        if row["error"]:
            assert row["shard"] == "none" or (row["shard"], row["method"]) == ("frozen", "full")
            continue
        options = ("--method", row["method"], "--gpus", row["gpus"], "--shard", row["shard"], "--format", "csv")
        (alone,) = csv.DictReader(said(capsys, "predict", *RUN, *options).splitlines())
        assert {name: row[name] for name in alone if name in row} == {n: v for n, v in alone.items() if n in row}
        assert int(row["communication_bytes"]) > 0


def test_more_fits_where_more_is_shared(capsys: pytest.CaptureFixture[str]) -> None:
    """The largest batch of a sharded run is not below that of one GPU, and DDP's not above."""
    found = {}
    for shard in ("ddp", "fsdp"):
        command = ("oom", *RUN[:2], "--seq", "512", "--method", "lora", "--gpu", "rtx4090", "--format", "json")
        document = json.loads(said(capsys, *command, "--gpus", "8", "--shard", shard))
        found[shard] = document["thresholds"][0]["max"]
    alone = json.loads(said(capsys, *command))["thresholds"][0]["max"]
    assert found["ddp"] <= alone < found["fsdp"]
