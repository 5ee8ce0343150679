"""`lorafa-prof paper`: the paper's tables at the command line."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from lorafa_prof import claims
from lorafa_prof.analytic.paper import TABLES
from lorafa_prof.claims import figure_4
from lorafa_prof.cli import main, paper_page
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.results import Prediction
from lorafa_prof.specs import DeviceSpec, RunSpec


def paper(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["paper", *args]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return str(out)


def test_the_saving_reads_as_the_paper_and_its_corrections_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 18 GB of C.3 and the three other sharing rules, in full."""
    monkeypatch.setenv("COLUMNS", "200")
    title, header, rule, *rows = paper(capsys, "--table", "c3").splitlines()[:7]
    assert title == (
        "C.3: activations that LoRA-FA saves over LoRA, llama2-7b (b = 8, s = 1024, d = 4096, f = 11008, L = 32)"
    )
    assert set(rule) == {"─"}
    shown = [re.split(r"  +", line) for line in (header, *rows)]
    assert [cells[2:] for cells in shown] == [
        ["formula", "one block, GiB", "all, GB", "all, GiB", "paper", "certainty"],
        ["12bsd+2bsf", "0.54", "18.66", "17.38", "at least 18 GB", "reconstructed"],
        ["6bsd+2bsf", "0.36", "12.21", "11.38", "-", "derived"],
        ["4bsd+2bsf", "0.29", "10.07", "9.38", "-", "derived"],
        ["24bsd+4bsf", "1.09", "37.31", "34.75", "-", "derived"],
    ]
    assert shown[3][:2] == ["shared once, SDPA or flash", "16-bit adapters, SDPA or flash attention"]


def test_table_7_shows_what_was_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    """The two wrong cells stand beside what they should be; the sums say which printed row does not add up."""
    text = paper(capsys, "--table", "7")
    rows = {" ".join(line.split()) for line in text.splitlines()}
    assert "MLP gelu 64bsd 8bsd → 32bsd 5sd → 56bsd" in rows
    assert "sum sum 114bsd+9bhss 58bsd+5bhss 86bsd+7bhss" in rows
    assert "sum printed cells added up 114bsd+9bhss 34bsd+5bhss 30bsd+7bhss+5sd" in rows
    assert "sum with a fused GELU 66bsd+9bhss 34bsd+5bhss 38bsd+7bhss" in rows


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("table", TABLES)
def test_no_line_is_too_wide_and_no_figure_is_cut(
    table: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrow terminals get more blocks of columns, never an ellipsis."""
    monkeypatch.setenv("COLUMNS", "400")
    wide = set(paper(capsys, "--table", table).split())
    monkeypatch.setenv("COLUMNS", str(width))
    text = paper(capsys, "--table", table)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    figures = {word for word in wide if word[:1].isdigit()}
    assert figures <= set(text.split())


def test_json_cells_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """Each cell has its formula, the numbers in it, the value and how sure it is."""
    document = json.loads(paper(capsys, "--format", "json", "--rank", "8"))
    assert [table["table"] for table in document["tables"]] == list(TABLES)
    assert (document["model"], document["bs"], document["seq"], document["rank"]) == ("llama2-7b", 8, 1024, 8)
    cells = [cell for table in document["tables"] for cell in table["cells"]]
    assert {cell["certainty"] for cell in cells} == set(document["certainty"])
    (saving,) = [cell for cell in cells if cell["paper"] == "at least 18 GB"]
    assert saving == {
        "group": "fp32 adapters under bf16 autocast: every layer makes a private 16-bit copy",
        "row": "own inputs, 16-bit",
        "column": "all blocks",
        "formula": "12bsdL+2bsfL",
        "symbols": {"L": 32, "b": 8, "d": 4096, "f": 11008, "s": 1024},
        "value": 18_656_264_192,
        "unit": "bytes",
        "certainty": "reconstructed",
        "paper": "at least 18 GB",
    }


def test_csv_has_a_row_for_each_cell(capsys: pytest.CaptureFixture[str]) -> None:
    """The same cells as in JSON, one a line."""
    records = list(csv.DictReader(io.StringIO(paper(capsys, "--format", "csv"), newline="")))
    document = json.loads(paper(capsys, "--format", "json"))
    cells = [cell for table in document["tables"] for cell in table["cells"]]
    assert [int(record["value"]) for record in records] == [cell["value"] for cell in cells]
    assert [record["formula"] for record in records] == [cell["formula"] for cell in cells]


@pytest.mark.parametrize("model", ["gpt2", "qwen2.5-7b", "llama3-8b", "roberta-base", "phi-4", "gemma2-2b"])
def test_other_dense_models(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables are not bound to Llama2-7B; what the paper says is quoted for its own case only."""
    out = paper(capsys, "--model", model, "--seq", "128")
    assert model in out
    assert "at least 18 GB" not in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "mixtral-8x7b"], "is a mixture of experts"),
        (["--model", "deepseek-v2-lite"], "is a mixture of experts"),
        (["--model", "t5-base"], "is an encoder-decoder"),
        (["--model", "llama2-7"], "did you mean"),
        (["--bs", "0"], "batch size must be between 1"),
        (["--seq", "-1"], "sequence length must be between 1"),
        (["--rank", "99999999999999999999"], "rank must be between 1"),
        (["--table", "2"], "'1', '6', '7', 'c3', 'text', 'all'"),
    ],
)
def test_wrong_input(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with a reason, and nothing on stdout."""
    assert main(["paper", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True)


def test_the_file_is_the_whole_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """-o gives the file what stdout would have got, and stdout nothing."""
    target = tmp_path / "paper.md"
    assert paper(capsys, "-o", str(target)) == ""
    assert target.read_text("utf-8") == paper(capsys, "--format", "markdown")
    assert [path.name for path in tmp_path.iterdir()] == ["paper.md"]


# -- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page with one group, whose answers cost little."""
    monkeypatch.setattr(claims, "GROUPS", (figure_4.layers,))


@pytest.mark.usefixtures("short_page")
@pytest.mark.parametrize("folder", ["page/", "there"])
def test_a_folder_gets_the_page(folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Into a folder, made or there, go the page and the figures that it shows; the tables are its end."""
    (tmp_path / "there").mkdir()
    target = f"{tmp_path}/{folder}"
    assert main(["paper", "--engine", "analytic", "-o", target]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    page = (Path(target) / "paper.md").read_text("utf-8")
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", page)
    assert (Path(target) / picture).read_bytes().startswith(b"<?xml")
    assert err.splitlines() == [str(Path(target) / "paper.md"), str(Path(target) / picture)]
    assert page.endswith(paper(capsys, "--format", "markdown"))
    assert str(tmp_path) not in page


@pytest.mark.usefixtures("short_page")
def test_what_an_engine_refuses_is_not_modelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Neither a guess nor a failure: the page says so, with the engine's own words."""

    def refusing(run: RunSpec, device: DeviceSpec | None, *, largest_batch: bool, timed: bool = False) -> Prediction:
        raise UnsupportedError("no such step is built")

    monkeypatch.setattr(paper_page, "simulating_on_cards", lambda: refusing)
    assert main(["paper", "-o", f"{tmp_path}/"]) == 0
    capsys.readouterr()
    page = (tmp_path / "paper.md").read_text("utf-8")
    assert re.search(r"\| LoRA-FA, 1 of 32 blocks \| .* GiB .* \| not modelled \| - \|", page)
    assert re.search(r"- simulate, lora-fa, 1 of 32 blocks; .*: no such step is built\n", page)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--engine", "analytic"], "--engine goes with -o DIR"),
        (["--format", "json", "-o", "."], "--format goes with a FILE"),
        (["-o", "missing/page/"], "does not exist"),
    ],
)
def test_wrong_input_for_the_page(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exit 2 before any engine is asked."""
    monkeypatch.chdir(tmp_path)
    assert main(["paper", *args]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
