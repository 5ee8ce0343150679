"""docs/support.md is what the engines say now, and every cell of it is an answer.

The closed forms are asked again by default, everything by the slow test; `make support` writes the page anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from lorafa_prof.specs import METHODS
from tests.support import supported
from tests.support.proofs import PROOFS, Proof, function_of, parametrised, proof_of_method, proof_of_technique
from tests.support.support_page import NOT_COMPARED, PAGE, Reasons, cell, engine_section, page
from tests.support.supported import ARCHITECTURES, ENGINES, TECHNIQUES, Answer, ask, first_sentence, technique_name


@dataclass(frozen=True)
class Section:
    """A section of the page, read back."""

    text: str
    cells: dict[str, dict[str, str]]
    """Row -> column -> what is written there."""
    reasons: frozenset[str]
    """Numbers of the reasons under the table."""

    def is_answer(self, text: str) -> bool:
        """Whether a cell says yes, with its tests or that there are none, or no for a reason that is stated."""
        yes = re.fullmatch(rf"yes ([A-Za-z]+|{NOT_COMPARED})", text)
        no = re.fullmatch(r"no (\d+)", text)
        return yes is not None or (no is not None and no[1] in self.reasons)


def read(text: str) -> Section:
    lines = text.splitlines()
    head, _, *rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    cells = {name.strip("`"): dict(zip(head[1:], found, strict=True)) for name, *found in rows}
    return Section(text, cells, frozenset(re.findall(r"^(\d+)\. \S", text, re.MULTILINE)))


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    """Of the page as it is committed."""
    found = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {text.partition("\n")[0]: read("## " + text.rstrip() + "\n") for text in found}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_no_cell_of_a_method_is_empty(sections: dict[str, Section], engine: str, method: str) -> None:
    """A method or an architecture that is new to the package is not in the page, which fails here."""
    row = sections[engine].cells[method]
    assert set(row) == set(ARCHITECTURES)
    assert {name: text for name, text in row.items() if not sections[engine].is_answer(text)} == {}


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique_name(*technique))
def test_no_cell_of_a_technique_is_empty(sections: dict[str, Section], technique: tuple[str, object]) -> None:
    """Likewise a value of an option."""
    row = sections["Techniques"].cells[technique_name(*technique)]
    assert set(row) == set(ENGINES)
    assert {name: text for name, text in row.items() if not sections["Techniques"].is_answer(text)} == {}


def test_an_empty_cell_is_seen() -> None:
    """A refusal that says nothing leaves the cell empty; so does a number without its reason."""
    reasons = Reasons()
    assert cell(Answer(""), "A", reasons) == ""
    section = read("| m | a | b |\n|---|---|---|\n| x | yes A | no 1 |\n\n1. why not\n")
    assert [section.is_answer(text) for text in ("yes A", "yes –", "no 1", "", "yes", "no 2", "no")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip


def test_the_closed_forms_say_what_the_page_says(sections: dict[str, Section]) -> None:
    """Every cell, every reason, every letter of the section."""
    made = engine_section("analytic", supported.methods_by_architecture("analytic"))
    assert sections["analytic"].text == made


def test_the_closed_forms_of_techniques(sections: dict[str, Section]) -> None:
    answers = supported.techniques("analytic")
    said = {key: sections["Techniques"].cells[technique_name(*key)]["analytic"].startswith("yes") for key in answers}
    assert said == {key: answer.reason is None for key, answer in answers.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_letters_are_of_what_tests_cover_now(sections: dict[str, Section], engine: str) -> None:
    """A test that lost a family, or won one, is not what the page says any more: `make support`."""
    said, found = {}, {}
    for method, row in sections[engine].cells.items():
        for architecture, text in row.items():
            if text.startswith("yes"):
                said[method, architecture] = text.removeprefix("yes ")
                found[method, architecture] = proof_of_method(engine, method, architecture) or NOT_COMPARED
    for option, value in TECHNIQUES:
        name = technique_name(option, value)
        if (text := sections["Techniques"].cells[name][engine]).startswith("yes"):
            said[name, ""] = text.removeprefix("yes ")
            found[name, ""] = proof_of_technique(engine, option, value) or NOT_COMPARED
    assert said == found


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: f"{proof.letter} {proof.engine} {proof.file}")
def test_every_test_that_is_named_is_there(proof: Proof) -> None:
    """And has cases; a test that is renamed or emptied is found out."""
    assert all(list(parametrised(function_of(proof, test))) for test in proof.tests)


def test_a_refusal_is_told_from_a_failure() -> None:
    """An engine that breaks is not one that refuses: the page says so."""

    def broken() -> supported.RunSpec:
        raise ZeroDivisionError

    assert ask("analytic", broken).reason == "fails without a refusal, ZeroDivisionError: "
    assert ask("analytic", lambda: supported.technique_run("adapter_dtype", "fp16")).reason


def test_first_sentences() -> None:
    assert first_sentence("llama: there is no way. Take another.") == "there is no way"
    assert first_sentence("not y (it does: a, b); --quant nf4") == "not y; --quant nf4"


@pytest.mark.slow
def test_the_page_is_what_all_engines_say() -> None:
    """The step of every cell recorded on meta tensors, and taken on the CPU."""
    methods = {engine: supported.methods_by_architecture(engine) for engine in ENGINES}
    techniques = {engine: supported.techniques(engine) for engine in ENGINES}
    assert PAGE.read_text(encoding="utf-8") == page(methods, techniques)
