"""`lorafa-prof plot`, end to end: files in, figures in a folder out, exit codes."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main
from lorafa_prof.results import (
    Fit,
    Measurement,
    Prediction,
    Threshold,
    comparisons_to_json,
    measurements_to_json,
    predictions_to_json,
    thresholds_to_json,
)
from lorafa_prof.specs import MethodSpec
from tests.support.hand_made import MIB, RUN, VERSIONS, measurement, memory, prediction, without_memory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes results of one kind to a file, and returns its path."""

    def written(*results: Measurement | Prediction | Threshold, name: str = "run.json") -> str:
        if isinstance(results[0], Prediction):
            text = predictions_to_json(list(results))  # type: ignore[arg-type]
        elif isinstance(results[0], Threshold):
            text = json.dumps(thresholds_to_json(results))  # type: ignore[arg-type]
        else:
            text = json.dumps(measurements_to_json(results))  # type: ignore[arg-type]
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def plotted(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> list[str]:
    """The names of the figures, as stderr lists them and as they are there."""
    assert main(["plot", *args, "-o", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    names = [os.path.basename(line) for line in err.splitlines()]
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    return names


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["plot", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


class TestWhatIsDrawn:
    """All that the files have data for, or what is asked for."""

    def test_predictions(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """Parts alone: nothing was measured, and there is one rank."""
        folder = tmp_path / "figures"
        assert plotted(capsys, folder, write(prediction())) == ["parts.png"]
        assert (folder / "parts.png").read_bytes().startswith(b"\x89PNG")

    def test_measurements_beside_their_predictions(
        self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path
    ) -> None:
        """Are compared: the scatter is drawn, whatever order the files come in."""
        files = [write(prediction(), name="p.json"), write(measurement())]
        for number, order in enumerate((files, files[::-1])):
            folder = tmp_path / f"figures{number}"
            assert plotted(capsys, folder, *order, "--format", "svg") == ["parts.svg", "scatter.svg", "mfu.svg"]
        assert (tmp_path / "figures0/scatter.svg").read_bytes() == (tmp_path / "figures1/scatter.svg").read_bytes()

    def test_a_saved_comparison(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """Is drawn as it was saved."""
        from lorafa_prof.compare import compare

        file = tmp_path / "compared.json"
        file.write_text(json.dumps(comparisons_to_json([compare(measurement(), [prediction()])])))
        assert plotted(capsys, tmp_path / "figures", str(file)) == ["parts.png", "scatter.png"]

    def test_thresholds(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """At two sequence lengths; over several files."""
        files = [
            write(
                Threshold(
                    engine="analytic", device="rtx4090", axis="bs", run=RUN.replace(seq=seq), versions=VERSIONS,
                    max=most, first_oom=most + 1, limit=99, limited_by="", capacity_bytes=2**34, context_bytes=None,
                    at_max=None, at_first_oom=None,
                ), name=f"oom{seq}.json",
            ) for seq, most in ((16, 4), (32, 2))
        ]  # fmt: skip
        assert plotted(capsys, tmp_path / "figures", *files) == ["frontier.png"]

    def test_a_table(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """What predict writes as CSV, as a sweep does."""
        parts = []
        for rank in ("8", "32"):
            file = tmp_path / f"{rank}.csv"
            options = ["--model", "llama2-7b", "--method", "lora,full", "--rank", rank, "--gpu", "rtx4090"]
            assert main(["predict", *options, "-o", str(file)]) == 0
            parts.append(str(file))
        assert plotted(capsys, tmp_path / "figures", *parts) == ["rank.png"]

    def test_a_timed_sweep(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """Tokens per second against the batch, of the rows of a sweep that was asked for times, and of no other."""
        options = [
            "--model",
            "qwen2.5-0.5b",
            "--method",
            "lora",
            "--bs",
            "1,2,8",
            "--seq",
            "128",
            "--gpu",
            "a100-80gb,t4",
        ]
        for name, more in (("timed", ["--timed"]), ("plain", [])):
            assert main(["sweep", *options, *more, "-o", str(tmp_path / f"{name}.csv")]) == 0
        capsys.readouterr()
        args = (str(tmp_path / "timed.csv"), "--kind", "throughput", "--format", "svg")
        assert plotted(capsys, tmp_path / "figures", *args) == ["throughput.svg"]
        text = (tmp_path / "figures/throughput.svg").read_text("utf-8")
        assert "a100-80gb" in text
        assert "t4" not in text
        file = str(tmp_path / "plain.csv")
        assert "two batches" in refused(capsys, file, "--kind", "throughput", "-o", str(tmp_path / "none"))

    def test_one_kind(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """The others are not drawn."""
        args = (write(measurement()), "--kind", "mfu", "--format", "svg")
        assert plotted(capsys, tmp_path / "figures", *args) == ["mfu.svg"]

    def test_the_same_file_twice(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """Is read once."""
        file = write(measurement())
        plotted(capsys, tmp_path / "once", file, "--kind", "mfu")
        plotted(capsys, tmp_path / "twice", file, file, "--kind", "mfu")
        assert (tmp_path / "once/mfu.png").read_bytes() == (tmp_path / "twice/mfu.png").read_bytes()


NEEDS = {
    "scatter": "beside the predictions", "frontier": "two sequence lengths", "timeline": "--trace", "rank": "rank",
    "cards": "more than one card", "mfu": "FLOP/s", "throughput": "two batches",
}  # fmt: skip


class TestWhatIsNot:
    """Exit code 2 and one clear line, and no folder left behind."""

    @pytest.mark.parametrize("kind", NEEDS)
    def test_no_data(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path, kind: str) -> None:
        """The kind that was asked for says what it needs."""
        folder = tmp_path / "figures"
        line = refused(capsys, write(prediction()), "--kind", "parts", "--kind", kind, "-o", str(folder))
        assert f"nothing to draw as {kind}" in line
        assert NEEDS[kind] in line
        assert not folder.exists()

    def test_nothing_at_all(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """A run that came to nothing; a file without results."""
        folder = tmp_path / "figures"
        assert "nothing to draw" in refused(capsys, write(without_memory("error")), "-o", str(folder))
        (tmp_path / "empty.json").write_text('{"measurements": []}')
        assert "no result" in refused(capsys, str(tmp_path / "empty.json"), "-o", str(folder))
        assert not folder.exists()

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("a.json", "", "the file is empty"),
            ("a.json", '{"predictions": [], "thresholds": []}', "predictions and thresholds in one file"),
            ("a.json", '{"thresholds": [{"schema": 1, "kind": "threshold"}]}', "not a threshold: it has no run"),
            ("a.json", '{"model_type": "llama"}', "no result of lorafa-prof"),
            (
                "a.json",
                '{"predictions": [{"schema": 99}]}',
                "schema 99; this version reads schema 1: a newer lorafa-prof",
            ),
            ("a.json", '{"thresholds": [{"schema": 99, "kind": "threshold"}]}', "a newer lorafa-prof wrote it"),
            ("a.csv", "", "the file is empty"),
            ("a.csv", "model,method\r\n", "no column engine"),
            ("a.csv", "source,model,engine,figure\r\nx,y,z,1\r\n", "no column method"),
            ("a.csv", "model,method,engine,bs,seq,rank,peak_allocated_bytes\r\n", "no result in these files"),
            ("a.csv", "model,method,engine,bs,seq,rank,peak_allocated_bytes\r\nm,lora,a,1,1\r\n", "line 2"),
            ("a.csv", "model,method,engine,bs,seq,rank,peak_allocated_bytes\r\nm,lora,a,1,1,8,1e9\r\n", "whole number"),
            ("a.csv", "model,method,engine,bs,seq,rank,peak_allocated_bytes\r\nm,magic,a,1,1,8,1\r\n", "magic"),
            ("a.csv", "model,method,engine,bs,seq,rank,peak_allocated_bytes\r\nm,lora,a,x,1,8,1\r\n", "bs is 'x'"),
            ("a.csv", "model,method,engine,bs,seq,rank,peak_allocated_bytes\r\nm,lora,a,0,1,8,1\r\n", "bs is 0"),
            ("a.json", '{"sweep": {}, "rows": 3}', "list of objects"),
            ("a.json", '{"sweep": {}, "rows": [{"model": "m"}]}', "no method"),
            ("a.parquet", "PAR1", "as .csv or .json"),
        ],
    )
    def test_foreign_files(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str, words: str
    ) -> None:
        """The file is named, and what is wrong with it."""
        (tmp_path / name).write_text(text)
        line = refused(capsys, str(tmp_path / name), "-o", str(tmp_path / "figures"))
        assert words in line
        assert name in line or words.startswith("no result in")

    @pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"PK\x03\x04\x00", b"a" * 10 + b"\x00" * 10])
    def test_no_text(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, data: bytes) -> None:
        """Whatever its name says."""
        for name in ("a.csv", "a.json"):
            (tmp_path / name).write_bytes(data)
            assert name in refused(capsys, str(tmp_path / name), "-o", str(tmp_path / "figures"))

    def test_folders_that_cannot_be(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """Told before anything is read."""
        file = write(prediction())
        assert "is no folder" in refused(capsys, "missing.json", "-o", file)
        assert "does not exist" in refused(capsys, file, "-o", str(tmp_path / "no" / "figures"))
        assert "no name of a folder" in refused(capsys, file, "-o", "")
        assert main(["plot", file]) == 2
        assert "--output" in capsys.readouterr().err

    def test_all_figures_or_none(
        self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that fills up while the second one is written leaves neither of them, and what was there before."""
        from lorafa_prof.reports import folder as writing

        folder, calls, write_one = tmp_path / "figures", [], writing.write_bytes_atomically
        folder.mkdir()
        (folder / "parts.png").write_bytes(b"old")

        def full(place: Path, data: bytes) -> None:
            calls.append(place)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            write_one(place, data)

        monkeypatch.setattr(writing, "write_bytes_atomically", full)
        assert "No space left" in refused(capsys, write(measurement()), "-o", str(folder))
        assert [path.name for path in folder.iterdir()] == ["parts.png"]
        assert (folder / "parts.png").read_bytes() == b"old"

    def test_names_cannot_steer(self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path) -> None:
        """Neither the terminal nor matplotlib."""
        run = RUN.replace(model=replace(RUN.model, name="\x1b[2J$\\frac{$ <b>\n/" + "x" * 4000))
        said = [
            prediction(run=run.replace(method=MethodSpec(name="lora", rank=rank)), memory=memory()) for rank in (8, 16)
        ]
        assert plotted(capsys, tmp_path / "figures", write(*said)) == ["parts.png", "rank.png"]


def test_a_sweeps_refusals_are_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A row that could not be predicted has no figures, and is not drawn as 0."""
    from lorafa_prof.cli.results_files import read_collection

    lines = [
        "model,method,engine,bs,seq,rank,device,capacity_bytes,fits,headroom_bytes,max_bs,peak_allocated_bytes,amp,error",
        f"m,lora,analytic,1,16,8,rtx4090,{2**34},true,5,3,{MIB},false,",
        "m,lora,analytic,1,16,16,rtx4090,,,,,,false,not modelled",
        f"'=m,lora,analytic,1,16,32,rtx4090,{2**34},true,5,,{MIB},true,",
    ]
    (tmp_path / "sweep.csv").write_text("\r\n".join(lines))
    first, second, third = read_collection([str(tmp_path / "sweep.csv")]).rows
    assert first.memory is not None
    assert first.memory.peak_allocated_bytes == MIB
    assert first.memory.weights_bytes is None
    assert first.fit == (
        Fit(device="rtx4090", capacity_bytes=2**34, context_bytes=None, fits=True, headroom_bytes=5, max_bs=3),
    )
    assert (second.memory, second.fit) == (None, ())
    assert (third.settings["model"], third.settings["amp"], third.fit[0].max_bs) == ("=m", True, None)
    assert refused(capsys, str(tmp_path / "sweep.csv"), "--kind", "rank", "-o", str(tmp_path / "figures"))


def test_a_row_has_the_settings_of_its_run(tmp_path: Path) -> None:
    """Under the same names and of the same types, so that rows and other results of a run meet in one figure."""
    from lorafa_prof.cli.results_files import read_collection
    from lorafa_prof.results.records import settings_of

    run = RUN.replace(amp=True, method=MethodSpec(name="lora", rank=4, dropout=0.1))
    values = {**settings_of(run), "engine": "analytic", "peak_allocated_bytes": 5}
    with (tmp_path / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerow(values)
        csv.writer(file).writerow(str(v).lower() if isinstance(v, bool) else v for v in values.values())
    [row] = read_collection([str(tmp_path / "sweep.csv")]).rows
    assert dict(row.settings) == settings_of(run)


def test_a_sweep_as_json(tmp_path: Path) -> None:
    """The rows of the CSV, with numbers as numbers and truths as truths."""
    from lorafa_prof.cli.results_files import read_collection

    row = {
        "model": "m", "method": "lora", "engine": "analytic", "bs": 1, "seq": 16, "rank": 8, "amp": True,
        "dropout": 0.5,
        "device": "rtx4090", "capacity_bytes": 2**34, "fits": False, "headroom_bytes": -5, "peak_allocated_bytes": MIB,
        "weights_bytes": None, "error": None,
    }  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": {"bs": [1]}, "rows": [row]}))
    text = ",".join("" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in row.values())
    (tmp_path / "sweep.csv").write_text(f"{','.join(row)}\r\n{text}\r\n")
    [one], [other] = (read_collection([str(tmp_path / name)]).rows for name in ("sweep.json", "sweep.csv"))
    assert one == other
    assert (one.settings["amp"], one.settings["dropout"], one.settings["rank"]) == (True, 0.5, 8)
    assert one.fit[0].headroom_bytes == -5


#: Drawn from the recorded ground truth by `make accuracy`, and held to it by that page's own test.
OF_THE_GROUND_TRUTH = {"docs/figures/accuracy.svg"}


def figures_of_the_readme() -> list[tuple[str, list[list[str]]]]:
    """Every picture of the README that a command makes, and the commands of the block that writes its folder."""
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = [
        [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("    lorafa-prof ")]
        for block in re.findall(r"(?:^    .*\n)+", readme, flags=re.MULTILINE)
    ]
    pictures = dict.fromkeys(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme))
    return [
        (path, next((block for block in blocks if any(str(Path(path).parent) in line for line in block)), []))
        for path in pictures
        if path not in OF_THE_GROUND_TRUTH
    ]


def test_the_readme_has_figures() -> None:
    """Else the next test would pass without looking at one; and each file of docs/figures is shown somewhere."""
    assert figures_of_the_readme()
    pages = [
        (ROOT / "README.md").read_text("utf-8"),
        *(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")),
    ]
    for path in (ROOT / "docs" / "figures").iterdir():
        assert any(f"figures/{path.name})" in page for page in pages), f"{path.name} is shown nowhere"


@pytest.mark.parametrize(("path", "commands"), figures_of_the_readme())
def test_a_figure_of_the_readme_is_what_its_commands_make(
    path: str, commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's commands write that very file, and all that is written in it is the same today."""
    assert commands, f"no command of the README writes {path}"
    monkeypatch.chdir(tmp_path)
    Path(path).parent.parent.mkdir(parents=True, exist_ok=True)  # as in a clone
    for command in commands:
        assert main(command) == 0, command
    texts = [
        ["".join(text.itertext()) for text in ET.parse(folder / path).iter("{http://www.w3.org/2000/svg}text")]
        for folder in (tmp_path, ROOT)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 10
