"""`lorafa-prof report`, end to end."""

from __future__ import annotations

import json
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
