"""Results that earlier releases wrote are read: `written_before/` holds one of each kind as it was first written.

Keys have been added since (layers, kept results, lengths, profiles); a file that lacks them is of before there was a
choice, and means what was done then. A change of what a key means is a new schema, and not done yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main
from lorafa_prof.results import results_in
from lorafa_prof.specs import KEPT_BY_DEFAULT

BEFORE = Path(__file__).parent / "written_before"
KINDS = ("predictions", "measurements", "comparisons", "thresholds")


def document(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BEFORE / f"{kind}.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read(kind: str) -> None:
    """With the figures that are in it; what was added since has the value of before there was a choice."""
    old = document(kind)
    (entry,) = old[kind]
    (result,) = results_in(old)
    now: dict[str, Any] = result.to_json()
    for name in ("memory", "throughput", "parameters", "max", "first_oom", "device"):
        if isinstance(entry.get(name), dict):
            assert {key: now[name][key] for key in entry[name]} == entry[name]
        elif name in entry:
            assert now[name] == entry[name]
    run = getattr(result, "run", None) or result.measurement.run  # type: ignore[union-attr]
    assert run.method.layers is None
    assert run.keep == KEPT_BY_DEFAULT
    assert "layers" not in json.dumps(entry["run"]["method"] if "run" in entry else {})


def test_a_page_is_made_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All together."""
    files = [str(BEFORE / f"{kind}.json") for kind in KINDS]
    assert main(["report", *files, "--no-figures", "-o", str(tmp_path / "page.html")]) == 0
    assert "gpt2" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_schema_is_refused_by_name(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A guess at what its keys mean would be worse."""
    newer = document(kind)
    newer[kind][0]["schema"] = 2
    (tmp_path / "a.json").write_text(json.dumps(newer))
    assert main(["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "page.html")]) == 2
    assert "a newer lorafa-prof wrote it, and reads it" in capsys.readouterr().err
