"""Waiting for a script to import a module."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafa_prof.measure.script.after_import import when_imported

NAME = "lorafa_prof_awaited_module"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{NAME}.py").write_text("value = 7\n")
    yield NAME
    sys.modules.pop(NAME, None)


def test_the_call_comes_once_the_module_has_been_executed(module: str) -> None:
    """Also where somebody has asked before whether it is there; its loader is its own, and the wait leaves no trace."""
    before = list(sys.meta_path)
    told: list[int] = []
    when_imported(module, lambda: told.append(sys.modules[module].value))
    assert importlib.util.find_spec(module) is not None
    assert told == []
    imported = importlib.import_module(module)
    assert told == [7]
    assert "exec_module" not in vars(imported.__spec__.loader)
    assert imported.__loader__ is imported.__spec__.loader
    assert sys.meta_path == before
    importlib.reload(imported)
    assert told == [7]


def test_what_is_there_already_is_told_at_once(module: str) -> None:
    importlib.import_module(module)
    told: list[str] = []
    when_imported(module, lambda: told.append("there"))()
    assert told == ["there"]


def test_two_can_wait_for_one_module(module: str) -> None:
    told: list[str] = []
    when_imported(module, lambda: told.append("first"))
    when_imported(module, lambda: told.append("second"))
    imported = importlib.import_module(module)
    assert sorted(told) == ["first", "second"]
    assert "exec_module" not in vars(imported.__spec__.loader)


def test_a_wait_can_be_ended(module: str) -> None:
    before = list(sys.meta_path)
    told: list[str] = []
    when_imported(module, lambda: told.append("there"))()
    assert sys.meta_path == before
    importlib.import_module(module)
    assert told == []


def test_a_module_that_fails_is_told_when_it_succeeds(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.py").write_text("1 / 0\n")
    told: list[str] = []
    leave = when_imported(module, lambda: told.append("there"))
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(module)
    assert told == []
    (tmp_path / f"{NAME}.py").write_text("value = 'mended'\n")
    importlib.invalidate_caches()
    importlib.import_module(module)
    assert told == ["there"]
    leave()


def test_looking_at_a_script_imports_no_library_of_its_own() -> None:
    """It begins in the midst of the script's imports (accelerate imports torch first): others would be circular."""
    code = "import sys, lorafa_prof.measure.script.observer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"peft", "transformers", "accelerate"} & {*done.stdout.split()}
