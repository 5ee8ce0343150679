"""Writes docs/support.md: what each engine takes, and which tests compare it. `make support` runs this file.

Each section stands by itself, with its own legend and reasons, so that a test can make one of them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafa_prof.specs import METHODS
from tests.support import supported
from tests.support.proofs import PROOFS, proof_of_method, proof_of_technique, proves
from tests.support.supported import ARCHITECTURES, TECHNIQUES, Answer

PAGE = Path(__file__).parents[2] / "docs" / "support.md"

NOT_COMPARED = "–"

_HEAD = f"""\
# What is supported, and which test says so

Made by `make support` from the engines' own answers; do not edit. Every cell is one tiny run (a few layers, three
sequences of 22 tokens) that was given to the engine. A letter is a test that compares what the engine says of that
method on that architecture with other evidence; the lists under each table say which and with what. What a test covers
is read from its own parameters. A letter in lower case: only `make test-slow` has that case.

- `yes KS`: the engine takes the run, and the tests K and S compare it.
- `yes {NOT_COMPARED}`: the engine takes the run, but no test compares what it says of this method on this architecture:
  not compared.
- `no 3`: the engine refuses the run, for the third reason under the table.

Models are those that the catalog reads (`model_type` of transformers). `simulate` and `measure` also take other
architectures, which transformers builds and the catalog does not know: [simulate.md](simulate.md). Nothing here says
that a recorded GPU was compared: those rows are in the README, under its accuracy.
"""

_ABOUT: Mapping[str, str] = {
    "analytic": "Closed forms (`predict`). Bytes and FLOPs of CUDA's kernels.",
    "simulate": "The step of the installed libraries on meta tensors (`predict --engine simulate`), with CUDA's "
    "kernels and allocator.\nA real step, where one is the evidence, is one on the CPU, simulated with its kernels.",
    "measure": "Real steps (`measure`); one was taken on the CPU for each cell. Of several processes only refusals "
    "were\nasked for here; they run in the tests. Tests with a GPU are `make test-gpu`.",
}

#: Letters of the tests that compare no bytes, and what they do compare.
_NO_BYTES = "PFQ"
_ELSE = {"analytic": "parameters, FLOPs", "simulate": "", "measure": "what is promised"}


class Reasons:
    """Reasons for refusals, numbered as they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        return self.numbers.setdefault(reason, len(self.numbers) + 1)

    def lines(self) -> list[str]:
        return [f"{number}. {reason}" for reason, number in self.numbers.items()]


def cell(answer: Answer, proof: str, reasons: Reasons) -> str:
    """Return one cell; empty where there is no answer, neither yes nor a reason."""
    if answer.reason is None:
        return f"yes {proof or NOT_COMPARED}"
    return f"no {reasons.number(answer.reason)}" if answer.reason else ""


def table(corner: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return a Markdown table whose columns line up as plain text too."""
    lines = [(corner, *columns), *((name, *cells) for name, cells in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return [drawn[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *drawn[1:]]


def legend(engine: str) -> list[str]:
    """Return what the letters of an engine's tests stand for, and where the tests are."""
    says: dict[str, str] = {}
    files: dict[str, dict[str, list[str]]] = {}
    for proof in PROOFS:
        if proves(proof, engine):
            says[proof.letter] = says.get(proof.letter) or proof.says
            names = files.setdefault(proof.letter, {}).setdefault(proof.file, [])
            names += [f"`{test.rpartition('.')[2]}`" for test in proof.tests]
    lines = []
    for letter, text in says.items():
        lines.append(f"- **{letter}**: {text}.")
        lines += [f"  - tests/{file}: {', '.join(names)}" for file, names in files[letter].items()]
    return lines


def engine_section(engine: str, answers: Mapping[tuple[str, str], Answer]) -> str:
    """Return an engine's section: methods in rows, architectures in columns."""
    reasons = Reasons()
    rows = [
        (
            method,
            [cell(answers[method, a], proof_of_method(engine, method, a), reasons) for a in ARCHITECTURES],
        )
        for method in METHODS
    ]
    taken = [key for key, answer in answers.items() if answer.reason is None]
    compared = [key for key in taken if proof_of_method(engine, *key)]
    of_bytes = [key for key in taken if proof_of_method(engine, *key).upper().strip(_NO_BYTES)]
    count = f"Of {len(answers)} cells {len(taken)} are taken. In {len(of_bytes)} of these memory is compared"
    if len(compared) > len(of_bytes):
        count += f", in {len(compared) - len(of_bytes)} more something else alone ({_ELSE[engine]})"
    lines = [
        f"## {engine}", "", _ABOUT[engine], "", *table("method", ARCHITECTURES, rows), "", f"{count}.", "",
        *legend(engine),
    ]  # fmt: skip
    if reasons.numbers:
        lines += ["", f"Refused by `{engine}`:", "", *reasons.lines()]
    return "\n".join(lines) + "\n"


def techniques_section(answers: Mapping[str, Mapping[tuple[str, Any], Answer]]) -> str:
    """Return the section of options: one in a row, engines in columns."""
    reasons = Reasons()
    rows = []
    for technique in TECHNIQUES:
        cells = [cell(answers[e][technique], proof_of_technique(e, *technique), reasons) for e in answers]
        rows.append((f"`{supported.technique_name(*technique)}`", cells))
    lines = [
        "## Techniques", "", _TECHNIQUES, "", *table("option", list(answers), rows), "", "Refused:", "",
        *reasons.lines(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


_TECHNIQUES = """\
Each value of each option, on a tiny Llama by a method that has a use for it. Letters are as above, of tests on any
method and architecture; a letter says that the value is in the test, not that every combination with it is."""


def page(
    methods: Mapping[str, Mapping[tuple[str, str], Answer]],
    techniques: Mapping[str, Mapping[tuple[str, Any], Answer]],
) -> str:
    """Return the whole page."""
    sections = [engine_section(engine, answers) for engine, answers in methods.items()]
    return "\n".join([_HEAD, *sections, techniques_section(techniques)])


def main() -> None:
    """Ask all engines everything, and write the page."""
    methods = {engine: supported.methods_by_architecture(engine) for engine in supported.ENGINES}
    techniques = {engine: supported.techniques(engine) for engine in supported.ENGINES}
    PAGE.write_text(page(methods, techniques), encoding="utf-8")


if __name__ == "__main__":
    main()
