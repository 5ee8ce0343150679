"""A page with a few plans, and a real browser to open it in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.analytic.export import OPTIONS, export
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.cli.planner import in_processes, opening
from lorafa_prof.reports.planner import planner_page
from tests.planner.browser import Browser

#: mistral-7b has a sliding window of 4,096 tokens, llama3.2-1b ties its embeddings.
MODELS = ("llama3.2-1b", "mistral-7b")
METHODS = ("full", "lora-fa")
#: A card before Hopper, one from Hopper on, and one whose CUDA context nobody has measured.
CARDS = ("rtx4090", "h100", "b200")


@pytest.fixture(scope="session")
def plans() -> dict[str, Any]:
    """Plans of two models and two methods, with 16-bit weights."""
    options = {**OPTIONS, "dtype": ("bf16", "fp16"), "adapter_dtype": ("auto", "bf16")}
    models, cards = [load_model(name) for name in MODELS], [load_device(name) for name in CARDS]
    return export(models, METHODS, cards, options=options, mapped=in_processes)


@pytest.fixture(scope="session")
def page(plans: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as a file."""
    path = tmp_path_factory.mktemp("planner") / "planner.html"
    path.write_text(planner_page(plans, opening(plans)), "utf-8")
    return path


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a window; skipped where it, its driver or selenium is missing."""
    pytest.importorskip("selenium", reason="selenium drives the browser: pip install 'lorafa-prof[test]'")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    with Browser.started(program, driver, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The page, open; whatever a test does, no error is logged and nothing is asked of any network."""
    chromium.forget()
    chromium.open(page)
    yield chromium
    assert chromium.complaints() == []
    assert chromium.requests_elsewhere(page) == []
