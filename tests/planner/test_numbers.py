"""The page's own arithmetic against the command line's: the same integers, moments, verdicts and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.analytic.export import MIXED, OPTIONS, export
from lorafa_prof.cli.planner import in_processes, opening
from lorafa_prof.reports.planner import planner_page
from lorafa_prof.runs import DEFAULT_METHODS
from tests.planner.browser import Browser
from tests.planner.runs import comparable, device_of, model_of, predicted, random_runs

TOO_LARGE = "batch and sequence length are too large for any memory"


def held_against_predict(browser: Browser, plans: dict[str, Any], number: int) -> tuple[int, int]:
    """Assert that every answer equals the command line's; return how many were figures and how many refusals.

    The page refuses by itself what mixes bf16 and fp16 and what is beyond exact doubles.
    """
    figures = refusals = 0
    for run in random_runs(plans, number):
        answer = browser.evaluate(run)
        if answer.get("refused") == MIXED:
            assert {"bf16", "fp16"} <= {run["dtype"], run["adapter_dtype"], "bf16" if run["amp"] else ""}
            continue
        expected = predicted(run)
        if answer.get("refused") == TOO_LARGE:  # for doubles; no card comes near
            assert expected["memory"]["peak_allocated_bytes"] > 2**53, run
            continue
        assert comparable(answer) == expected, run
        figures, refusals = figures + ("memory" in answer), refusals + ("refused" in answer)
    return figures, refusals


def test_the_page_equals_predict(browser: Browser, plans: dict[str, Any]) -> None:
    """Parts, peak, moment, context, verdict, headroom, largest batch and remarks of random runs, to the byte."""
    figures, _ = held_against_predict(browser, plans, 50)
    assert figures >= 25


@pytest.mark.parametrize("seq", [1, 16, 4095, 4096, 4097, 32768])
@pytest.mark.parametrize("bs", [1, 2])
def test_the_edges_of_the_plans(browser: Browser, bs: int, seq: int) -> None:
    """A single sequence or two, just below, at and above the sliding window: each has the plan that `predict` takes."""
    for method in ("full", "lora-fa"):
        run = {
            "model": "mistral-7b", "method": method, "gpu": "h100", "bs": bs, "seq": seq, "rank": 8, "dtype": "bf16",
            "adapter_dtype": "auto", "amp": False, "attn": "sdpa", "checkpointing": "none",
        }  # fmt: skip
        assert comparable(browser.evaluate(run)) == predicted(run)


@pytest.mark.parametrize("rank", [4096, 4097, 65519, 65521, 65536])
def test_a_rank_beyond_a_layer_s_width(browser: Browser, rank: int) -> None:
    """LoRA-FA inverts a matrix of the rank: where it is singular the page refuses it in `predict`'s own words."""
    run = {
        "model": "mistral-7b", "method": "lora-fa", "gpu": "h100", "bs": 2, "seq": 16, "rank": rank, "dtype": "bf16",
        "adapter_dtype": "auto", "amp": False, "attn": "sdpa", "checkpointing": "none",
    }  # fmt: skip
    answer = browser.evaluate(run)
    assert ("refused" in answer) is (rank > 4096)
    assert comparable(answer) == predicted(run)


def test_of_equal_moments_the_first_is_the_peak(browser: Browser) -> None:
    """As `StepPlan.peak` has it; a later one counts only if it is higher."""
    script = """
        const sums = [[], [0, 1], [0, 2]], moments = [[0, 0, 1, 1, 2, 0, 2, 0, 2, 3, 1, 0]];
        const data = { engine: { granule: 512 }, models: [], devices: [], parts: ["a", "b"], terms: [[512, "b"]], sums,
          moments, plans: [{ moments: 0 }] };
        const { bytes, row } = new Engine(data).peak(0, 3, 1, 1);
        return [bytes, moments[0][row]];
    """
    assert browser.run(script) == [2 * 512 * 3, 1]


def test_the_controls_ask_what_the_table_answers(browser: Browser, plans: dict[str, Any]) -> None:
    """Runs that are set with the controls: the table shows the command line's bytes, and the verdict is its own."""
    asked = [run for run in random_runs(plans, 60, seed=7) if "memory" in browser.evaluate(run)][:6]
    for run in asked:
        for name in ("model", "method", "gpu", "dtype", "adapter_dtype", "attn", "checkpointing"):
            if browser.find(name).is_enabled():
                browser.choose(name, run[name])
        browser.choose("amp", "1" if run["amp"] else "0")
        for name in ("bs", "seq", "rank"):
            if browser.find(name).is_enabled():
                browser.type_into(name, str(run[name]))
        expected = predicted(run)
        cells = browser.run("return [...document.querySelectorAll('#parts td.chosen')].map((c) => c.title)")
        shown = [int(title.removesuffix(" bytes").replace(",", "")) for title in cells if title.endswith("bytes")]
        *parts, peak, headroom = shown
        memory = expected["memory"]
        assert parts == [memory[name] for name in list(memory)[:8]], run
        assert (peak, headroom) == (memory["peak_allocated_bytes"], expected["fit"]["headroom_bytes"]), run
        assert browser.text("answer") == ("Fits" if expected["fit"]["fits"] else "Does not fit")
        assert memory["peak_moment"] in browser.text("facts")


#: Whole pages, and pages of models that are built otherwise: (models, methods, options).
PAGES = {
    "all options": (("llama3.1-8b", "mistral-7b", "gpt2"), DEFAULT_METHODS, OPTIONS),
    "other families": (
        ("gemma2-9b", "mixtral-8x7b", "deepseek-v2-lite", "phi-4", "t5-base", "roberta-base"),
        ("full", "lora", "lora-fa", "lora-fb", "qlora"),
        {**OPTIONS, "dtype": ("bf16", "fp32"), "adapter_dtype": ("auto",), "checkpointing": ("none",)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAGES)
def test_larger_pages_equal_predict(chromium: Browser, tmp_path: Path, kind: str) -> None:
    """200 random runs each; what `predict` refuses, the page refuses in the same words."""
    names, methods, options = PAGES[kind]
    cards = [device_of(name) for name in ("rtx4090", "h100", "v100-16gb", "b200", "mi300x")]
    plans = export([model_of(name) for name in names], methods, cards, options=options, mapped=in_processes)
    page = tmp_path / "planner.html"
    page.write_text(planner_page(plans, opening(plans)), "utf-8")
    chromium.forget()
    chromium.open(page)
    figures, refusals = held_against_predict(chromium, plans, 200)
    assert figures >= 80
    assert refusals >= 5 or kind == "other families"  # closed forms take all that is asked of these
    assert chromium.complaints() == []
    assert chromium.requests_elsewhere(page) == []
