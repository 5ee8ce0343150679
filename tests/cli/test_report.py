"""`lorafa-prof report`, end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lorafa_prof.cli import main
from lorafa_prof.results import measurements_to_json, predictions_to_json
from tests.support.hand_made import measurement, prediction


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "run.json").write_text(json.dumps(measurements_to_json([measurement()])))
    (tmp_path / "p.json").write_text(predictions_to_json([prediction()]))
    return [str(tmp_path / "run.json"), str(tmp_path / "p.json")]


def test_a_page(capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path) -> None:
    """Written to the file; stdout and stderr stay empty."""
    page = tmp_path / "report.html"
    assert main(["report", *files, "-o", str(page), "--title", "One <run>"]) == 0
    assert capsys.readouterr() == ("", "")
    text = page.read_text("utf-8")
    assert "<title>One &lt;run&gt;</title>" in text
    assert text.count("<svg") == 3
    assert "Read from run.json, p.json." in text
    assert "verdict came true" in text
    assert str(tmp_path) not in text


def test_on_stdout_without_figures(capsys: pytest.CaptureFixture[str], files: list[str]) -> None:
    """For a pipe."""
    assert main(["report", *files, "-o", "-", "--no-figures"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("<!DOCTYPE html>")
    assert "<svg" not in out
    assert err == ""


def test_thresholds_and_what_would_move_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Those of one axis and run stand in one table, with the exact figures of `oom`'s file; the first change of each
    in another. Of a single threshold all changes are there.
    """
    args = ("oom", "--model", "llama2-7b", "--gpu")
    files = {name: str(tmp_path / f"{name}.json") for name in ("bs", "longer", "seq")}
    assert main([*args, "rtx4090,a100-80gb", "--method", "lora,lora-fa", "-o", files["bs"]]) == 0
    assert main([*args, "rtx4090", "--method", "lora-fa", "--seq", "2048", "-o", files["longer"]]) == 0
    assert main([*args, "rtx4090", "--method", "lora-fa", "--axis", "seq", "-o", files["seq"]]) == 0
    found = {name: json.loads(Path(file).read_text())["thresholds"] for name, file in files.items()}
    assert main(["report", *files.values(), "-o", "-", "--no-figures"]) == 0
    page = capsys.readouterr().out
    tables = dict(re.findall(r"<caption>(.*?)</caption>\n(.*?)</table>", page, re.DOTALL))
    run = "bf16, sdpa attention, rank 64 on all-linear"
    assert list(tables)[1:] == [
        f"largest batch that fits: llama2-7b: 1,024 tokens, {run}",
        f"how fast the largest batch trains: llama2-7b: 1,024 tokens, {run}",
        "what would make the next batch fit at the least time",
        f"largest batch that fits: llama2-7b: 2,048 tokens, {run}",
        f"how fast the largest batch trains: llama2-7b: 2,048 tokens, {run}",
        f"rtx4090, LoRA-FA: what would make batch {found['longer'][0]['first_oom']} fit",
        f"largest sequence that fits: llama2-7b: batch 1, {run}",
        f"how fast the largest sequence trains: llama2-7b: batch 1, {run}",
        f"rtx4090, LoRA-FA: what would make sequence {found['seq'][0]['first_oom']:,} fit",
    ]
    numbers = {caption: re.findall(r'<data value="(-?\d+)">', text) for caption, text in tables.items()}
    _, batches, times, first, longer, _, changes, sequences, _, _ = tables
    for caption, same in ((batches, found["bs"]), (longer, found["longer"]), (sequences, found["seq"])):
        figures = ("capacity_bytes", "max", "headroom_bytes_at_max", "shortfall_bytes")
        assert numbers[caption] == [str(t[name]) for t in same for name in figures if t[name] is not None]
    speeds = re.findall(r'<data value="([\d.]+)">', tables[times])
    assert [str(t["tokens_per_s_at_max"]) in speeds for t in found["bs"] if t["max"]].count(False) == 0
    assert [t["advice"][0]["what"] in tables[first] for t in found["bs"]] == [True] * 4
    assert [change["options"] in tables[changes] for change in found["longer"][0]["advice"]].count(False) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"measurements": []}', "no result"), ("[]", "must hold"), ('{"comparisons": [{"schema": 7}]}', "schema 7")],
)
def test_foreign_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, words: str) -> None:
    """Exit code 2, one line, and no page."""
    (tmp_path / "a.json").write_text(text)
    assert main(["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "r.html")]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert (out, err.count("\n")) == ("", 1)
    assert not (tmp_path / "r.html").exists()


def test_where_it_cannot_be_written(capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path) -> None:
    """Told before the figures are drawn; -o is needed."""
    assert main(["report", *files, "-o", str(tmp_path / "no" / "r.html")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["report", *files]) == 2
    assert "--output" in capsys.readouterr().err
