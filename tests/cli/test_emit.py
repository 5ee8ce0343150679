"""How a result leaves: the form, the file, the terminal's width and colour."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from lorafa_prof.cli import emit as module, main
from lorafa_prof.cli.emit import emit, render_json, terminal_look
from lorafa_prof.reports.table import Column, Table

TABLE = Table(title="Sizes", columns=(Column(name="name"), Column(name="n", justify="right")), rows=(("é", 1),))


def never() -> Sequence[Table]:
    raise AssertionError("a form that nobody asked for was built")


@pytest.mark.parametrize(
    ("format", "file", "start"),
    [
        (None, "x.json", "{\n"),
        (None, "x.CSV", "name,n\r\n"),
        (None, "x.md", "### Sizes\n"),
        (None, "x.txt", "Sizes\n"),
        (None, "x", "Sizes\n"),
        ("json", "x.csv", "{\n"),
        ("table", "x.json", "Sizes\n"),
    ],
)
def test_the_suffix_decides_unless_a_format_is_given(format: str | None, file: str, start: str, tmp_path: Path) -> None:
    """-o x.csv is CSV; --format has the last word; the file is UTF-8 with the form's own line ends."""
    emit(
        tables=lambda: [TABLE],
        records=lambda: TABLE,
        document=lambda: {"n": 1},
        format=format,
        output=str(tmp_path / file),
    )
    assert (tmp_path / file).read_bytes().decode("utf-8").startswith(start)


def test_only_the_wanted_form_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON does not pay for tables."""
    emit(
        tables=never,
        records=lambda: never()[0],
        document=lambda: {"ü": [1]},
        format="json",
        output=None,
    )
    assert capsys.readouterr().out == '{\n  "ü": [\n    1\n  ]\n}\n'


def test_not_a_number_is_no_json() -> None:
    """A NaN would make a document that no JSON reader takes."""
    with pytest.raises(ValueError, match="JSON"):
        render_json({"mfu": float("nan")})


def test_a_dash_is_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """-o - writes to stdout, and makes no file of that name."""
    assert main(["list", "methods", "--format", "csv", "-o", "-"]) == 0
    assert capsys.readouterr().out.startswith("name,trains,description\r\n")
    assert not Path("-").exists()


@pytest.mark.parametrize("place", ["missing/x.csv", "file/x.csv"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, one line, nothing on stdout, nothing left behind."""
    (tmp_path / "file").write_text("here first")
    monkeypatch.setattr("lorafa_prof.cli.paper.load_model", lambda name: never())
    assert main(["paper", "-o", str(tmp_path / place)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lorafa-prof: cannot write ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
    assert (tmp_path / "file").read_text() == "here first"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"COLUMNS": "77"}, (77, False)),
        ({"COLUMNS": "77", "FORCE_COLOR": "1"}, (77, True)),
        ({"COLUMNS": "77", "FORCE_COLOR": "1", "NO_COLOR": "1"}, (77, False)),
        ({"COLUMNS": "77", "FORCE_COLOR": "1", "TERM": "dumb"}, (77, False)),
        ({"COLUMNS": "0"}, (module.PLAIN_WIDTH, False)),
        ({"COLUMNS": "wide"}, (module.PLAIN_WIDTH, False)),
        ({"COLUMNS": "99999999999"}, (module.PLAIN_WIDTH, False)),
        ({}, (module.PLAIN_WIDTH, False)),
    ],
)
def test_the_look_follows_the_environment(
    environment: dict[str, str], expected: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """COLUMNS for the width; NO_COLOR and a dumb terminal beat FORCE_COLOR; no terminal means no colour."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_width_of", lambda descriptor: 0)
    assert terminal_look() == expected


def test_a_pager_is_as_wide_as_the_terminal_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stdout piped, stderr tells the width."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def size(descriptor: int) -> os.terminal_size:
        if descriptor == 1:
            raise OSError(25, "Inappropriate ioctl for device")
        return os.terminal_size((91, 20))

    monkeypatch.setattr(os, "get_terminal_size", size)
    assert terminal_look()[0] == 91


def test_forms_agree(capsys: pytest.CaptureFixture[str]) -> None:
    """The same entries in JSON and in CSV."""
    assert main(["list", "gpus", "--format", "json"]) == 0
    documents = json.loads(capsys.readouterr().out)["gpus"]
    assert main(["list", "gpus", "--format", "csv"]) == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [d["name"] for d in documents] == [r["name"] for r in records]
    assert [d["total_bytes"] for d in documents] == [int(r["total_bytes"]) for r in records]
