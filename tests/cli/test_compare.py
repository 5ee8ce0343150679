"""`lorafa-prof compare`, end to end: files in, tables and exit codes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main
from lorafa_prof.ledger import Category
from lorafa_prof.results import (
    Comparison,
    Measurement,
    Prediction,
    measurements_to_json,
    predictions_to_json,
)
from lorafa_prof.specs import RunSpec
from tests.analytic.runs import run_of
from tests.support.hand_made import CARD, MIB, ledger, measurement, memory, prediction, without_memory

CPU = {"device": "a processor", "device_type": "cpu", "total_bytes": 2**34, "threads": 2}


@pytest.fixture(scope="module")
def run() -> RunSpec:
    """A tiny Llama with LoRA, as the catalog reads it: engines can build it."""
    return run_of("llama", "lora")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes measurements (or predictions) to a file of their kind, and returns its path."""

    def written(*results: Measurement | Prediction, name: str = "run.json") -> str:
        measured = [result for result in results if isinstance(result, Measurement)]
        predicted = [result for result in results if isinstance(result, Prediction)]
        text = predictions_to_json(predicted) if predicted else json.dumps(measurements_to_json(measured))
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def compared(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[list[Comparison], str]:
    """The comparisons of a command's JSON, and what it said on stderr."""
    assert main(["compare", *args, "--format", "json"]) == code
    out, err = capsys.readouterr()
    return [Comparison.from_json(entry) for entry in json.loads(out)["comparisons"]], err


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    assert main(["compare", *args]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def engines(comparison: Comparison) -> list[str]:
    return [side.engine for side in comparison.sides]


class TestOnACard:
    """A measurement on CUDA: both engines, with the card and the memory that it names."""

    def test_both_engines(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """What the engines themselves say, held against the observation."""
        from lorafa_prof.analytic import predict
        from lorafa_prof.catalog import load_device

        [found], err = compared(capsys, write(measurement(run=run)))
        assert err == ""
        assert engines(found) == ["analytic", "simulate"]
        peak = found.row("peak_allocated_bytes")
        assert peak is not None
        assert peak.predicted[0] == predict(run, [load_device("a100-80gb")]).memory.peak_allocated_bytes
        assert all(side.verdict is not None and side.verdict.agrees for side in found.sides)
        assert found.remarks == ()

    def test_step_times(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec, tmp_path: Path) -> None:
        """By the default profile of the measured card, or by one that was measured; never by another card's."""
        from lorafa_prof.catalog import load_device
        from lorafa_prof.speed.defaults import default_profile

        file, said = write(measurement(run=run)), []
        made = {"a100-80gb": 1e-3, "h100": 2e-3}
        for name, latency in made.items():
            profile = replace(default_profile(load_device(name)), measured=True, latency_s=latency)
            (tmp_path / f"{name}.json").write_text(json.dumps(profile.to_json()))
        for args in ((), ("--profile", str(tmp_path / "a100-80gb.json")), ("--profile", str(tmp_path / "h100.json"))):
            [found], _ = compared(capsys, file, "--engine", "analytic", *args)
            row = found.row("step_s", "time")
            assert row is not None
            assert row.observed == 0.5
            said.append((row.predicted[0] or 0, found.remarks))
        (default, none), (slow, _), (other, remarks) = said
        assert none == ()
        assert slow > default + 0.9e-3
        assert other == default
        assert "the profile is of" in remarks[0]
        assert "it times nothing here" in remarks[0]
        assert "--profile is for predictions that are computed here" in refused(
            capsys, file, write(prediction(run=run), name="p.json"), "--profile", str(tmp_path / "h100.json")
        )

    def test_one_engine(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """--engine may be repeated, and decides the order."""
        file = write(measurement(run=run))
        [found], _ = compared(capsys, file, "--engine", "simulate")
        assert engines(found) == ["simulate"]
        [found], _ = compared(capsys, file, "--engine", "simulate", "--engine", "analytic")
        assert engines(found) == ["simulate", "analytic"]

    def test_a_smaller_card_is_emulated(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """With a cap of 20 MiB it ran out of memory, and both engines say that it had to."""
        gone = replace(
            without_memory("oom", error="CUDA out of memory"), run=run, environment=CARD | {"cap_bytes": 17 * MIB}
        )
        [found], err = compared(capsys, write(gone), "--tolerance", "0")
        assert err == ""
        assert [side.verdict and (side.verdict.fits, side.verdict.agrees) for side in found.sides] == [
            (False, True)
        ] * 2

    def test_an_oom_that_no_engine_sees(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """80 GiB are plenty for a tiny model: the observation is another, and a tolerance says so."""
        gone = replace(without_memory("oom", error="CUDA out of memory"), run=run)
        found, err = compared(capsys, write(gone), "--tolerance", "50%", code=1)
        assert found[0].error == "CUDA out of memory"
        assert err.count("said that it fits, and the run ended: oom") == 2

    def test_a_card_that_nobody_knows(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """Its kernels follow from its compute capability; the name is never taken for a file's."""
        for name in ("Some New Card", "/etc/passwd", "./card.json"):
            unknown = {"device": name, "device_type": "cuda", "total_bytes": 2**33, "compute_capability": [9, 0]}
            [found], _ = compared(capsys, write(measurement(run=run, environment=unknown)), "--engine", "simulate")
            [remark] = found.remarks
            assert "not in the catalog" in remark
            # Hopper has cuBLAS workspaces of 32 MiB, the two of cards before it are 8.125 MiB each
            assert found.row("workspace_bytes").predicted[0] > 32 * MIB  # type: ignore[union-attr, operator]
        [found], _ = compared(capsys, write(measurement(run=run, environment={})), "--engine", "simulate")
        assert "the card is not known" in found.remarks[0]

    def test_a_card_by_name(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """--gpu says which card it was; how much of it could be used the measurement says."""
        file = write(measurement(run=run, environment={"device": "?", "total_bytes": 2**33}))
        [found], _ = compared(capsys, file, "--gpu", "h100", "--engine", "analytic")
        assert found.remarks == ()
        assert found.sides[0].verdict is not None
        assert found.sides[0].verdict.capacity_bytes == 2**33
        assert "nonesuch" in refused(capsys, file, "--gpu", "nonesuch")

    def test_allocator_settings_are_those_of_the_measurement(
        self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec
    ) -> None:
        """They are simulated; what PyTorch would refuse is a remark."""
        plain = measurement(run=run)
        other = replace(plain, environment=CARD | {"alloc_conf": "expandable_segments:True"})
        wrong = replace(plain, environment=CARD | {"alloc_conf": "expandable_segment:True"})
        found, _ = compared(capsys, write(plain, other, wrong), "--engine", "simulate")
        settings = [[line for line in each.sides[0].assumptions if "allocator" in line] for each in found[:2]]
        assert settings == [
            ["allocator settings as they are by default"], ["allocator settings expandable_segments=True"],
        ]  # fmt: skip
        assert "expandable_segments" in found[2].remarks[0]

    def test_what_an_engine_refuses_is_a_remark(
        self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec
    ) -> None:
        """FSDP2 of 8-bit weights is known to no engine: the measurement stands alone, and is compared with nothing."""
        several = run.replace(gpus=2, shard="fsdp", quant="int8")
        [found], _ = compared(capsys, write(measurement(run=several, rank=1, world_size=2)))
        assert engines(found) == []
        assert [remark.partition(" has no prediction")[0] for remark in found.remarks] == ["analytic", "simulate"]
        assert (found.rank, found.world_size) == (1, 2)

    def test_other_releases_are_said(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """Same versions in, same bytes out: measured with another transformers, the table says so."""
        file = write(measurement(run=run, versions={"transformers": "4.0.1", "torch": "2.13.0"}))
        assert main(["compare", file]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "(measured: 4.0.1); same releases in, same bytes out" in out


class TestOnTheCpu:
    """A measurement on the CPU: the simulated CPU, in as many threads."""

    def observed(self, run: RunSpec, **figures: Any) -> Measurement:
        from lorafa_prof.simulate.on_cpu import predict_on_cpu

        said = predict_on_cpu(run, 2)
        return measurement(said.memory, run=run, environment=CPU, versions=said.versions, ledger=said.ledger, **figures)

    def test_the_simulated_cpu_is_held_against_it(
        self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec
    ) -> None:
        """An observation like the simulation has no error in any byte; closed forms are CUDA's, and it says so."""
        [found], _ = compared(capsys, write(self.observed(run)))
        assert engines(found) == ["analytic", "simulate"]
        memories = [row for row in found.rows if row.unit == "bytes" and row.observed is not None]
        assert len(memories) > 12
        assert all(row.error(1) == 0 for row in memories)
        assert found.sides[1].unexplained_bytes == 0
        assert found.sides[1].items == ()
        assert "closed forms are for CUDA" in found.remarks[0]
        peak = found.row("peak_allocated_bytes")
        assert peak is not None
        assert (peak.error(0) or 0) > 16 * MIB  # cuBLAS workspaces, which the CPU has not

    @pytest.mark.parametrize(("family", "method"), [("llama", "lora-fa"), ("gpt2", "full")])
    def test_a_real_step(self, capsys: pytest.CaptureFixture[str], write: Any, family: str, method: str) -> None:
        """Measured here and now: every part of the peak, its moment and every byte of it are as simulated."""
        from lorafa_prof.measure.harness import Options, measure

        seen = measure(run_of(family, method), Options(device="cpu", steps=1, warmup=1))
        capsys.readouterr()  # torch's profiler talks
        [found], err = compared(capsys, write(seen), "--engine", "simulate", "--tolerance", "0")
        assert err == ""
        [side] = found.sides
        assert (side.peak_moment, side.unexplained_bytes, side.items) == (found.peak_moment, 0, ())
        parts = [row for row in found.rows if row.section == "parts"]
        assert [row.error(0) for row in parts] == [0] * len(parts)
        assert side.version_differences == ()

    def test_threads_have_to_be_known(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """They decide the size of buffers."""
        for threads, said in ((None, "does not say"), (0, "between 1 and"), ("2", "must be an integer")):
            environment = CPU | {"threads": threads}
            [found], _ = compared(capsys, write(measurement(run=run, environment=environment)), "--engine", "simulate")
            assert engines(found) == []
            assert said in found.remarks[0]


class TestSavedPredictions:
    """Predictions from a file instead of computed ones."""

    def test_they_are_held_against_the_measurement(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """In any order of the files; those of other runs are not used."""
        other = prediction(run=prediction().run.replace(bs=7))
        seen = write(measurement())
        saved = write(prediction(engine="analytic"), prediction(), other, name="predictions.json")
        for files in ((seen, saved), (saved, seen)):
            [found], _ = compared(capsys, *files)
            assert engines(found) == ["analytic", "simulate"]
        [found], _ = compared(capsys, seen, saved, "--engine", "simulate")
        assert engines(found) == ["simulate"]

    def test_none_of_this_run(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """It is said, and a tolerance cannot be judged."""
        saved = write(prediction(run=prediction().run.replace(bs=7)), name="predictions.json")
        [found], err = compared(capsys, write(measurement()), saved, "--tolerance", "1%", code=2)
        assert found.remarks == ("none of the saved predictions is of this run",)
        why, refusal = err.splitlines()
        assert why == "lorafa-prof: nothing is compared: none of the saved predictions is of this run"
        assert "nothing could be held to --tolerance" in refusal

    def test_predictions_alone(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """There is nothing to hold them against."""
        assert "no measurement" in refused(capsys, write(prediction()))
        assert "--gpu" in refused(capsys, write(prediction()), "--gpu", "t4")

    def test_a_saved_comparison_is_shown_again(
        self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path
    ) -> None:
        """The same figures, without an engine."""
        file = str(tmp_path / "compared.json")
        saved = write(prediction(), name="predictions.json")
        assert main(["compare", write(measurement()), saved, "-o", file]) == 0
        [again], _ = compared(capsys, file)
        assert again.to_json() == json.loads(Path(file).read_text())["comparisons"][0]


class TestTolerance:
    """Exit code 1, and a line on stderr for each miss."""

    @pytest.mark.parametrize(
        ("tolerance", "code"),
        [("0", 1), ("4.99%", 1), ("5%", 0), ("10MiB", 0), ("10485759", 1), ("100%", 0)],
    )
    def test_of_allocated(self, capsys: pytest.CaptureFixture[str], write: Any, tolerance: str, code: int) -> None:
        """The prediction is 10 MiB of 200 too high."""
        saved = write(prediction(memory(peak_allocated_bytes=210 * MIB)), name="predictions.json")
        _, err = compared(capsys, write(measurement()), saved, "--tolerance", tolerance, code=code)
        assert ("simulate: peak allocated 220200960 bytes, observed 209715200" in err) is (code == 1)
        assert err.count("\n") == code

    def test_without_one_a_miss_is_a_result(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """Exit code 0."""
        saved = write(prediction(memory(peak_allocated_bytes=1)), name="predictions.json")
        compared(capsys, write(measurement()), saved)

    def test_a_script_holds_nothing(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """Nothing can be predicted of it: that is said, and a tolerance which nothing was held to is not met: exit 2.
        The ranks of one script have one reason.
        """
        script = measurement(run=None, command=("train.py", "--lr", "1e-4"), world_size=2)
        file = write(script, replace(script, rank=1))
        found, err = compared(capsys, file, "--tolerance", "1%", code=2)
        why, refusal = err.splitlines()
        assert why.startswith("lorafa-prof: nothing is compared: this is a script of your own: what it runs is not")
        assert "nothing could be held to --tolerance" in refusal
        assert [engines(each) for each in found] == [[], []]
        assert "nothing can be predicted" in found[0].remarks[0]
        assert main(["compare", file]) == 0
        out, err = capsys.readouterr()
        assert "train.py --lr 1e-4" in out
        assert "This is a script of your own: what it runs" in " ".join(out.split())
        assert err == why + "\n"

    def test_a_script_beside_a_run(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """What can be held is held, and decides; of the script it is said that it was not."""
        saved = write(prediction(), name="predictions.json")
        file = write(measurement(), measurement(run=None, command=("train.py",)))
        _, err = compared(capsys, file, saved, "--tolerance", "0", code=0)
        assert "this is a script of your own" in err
        assert err.count("\n") == 1

    def test_a_bad_one(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """Told before anything is computed."""
        assert "write for example" in refused(capsys, write(measurement()), "--tolerance", "2 percent")


class TestForms:
    """Table, CSV, Markdown, and a figure."""

    @pytest.fixture
    def files(self, write: Any) -> list[str]:
        saved = write(prediction(memory(activations_bytes=54 * MIB, peak_allocated_bytes=190 * MIB)), name="p.json")
        return [write(measurement(), without_memory("killed", error="killed by signal 9")), saved]

    def test_table(self, capsys: pytest.CaptureFixture[str], files: Sequence[str]) -> None:
        """Every measurement has its own."""
        assert main(["compare", *files]) == 0
        out = capsys.readouterr().out
        assert out.count("LoRA on small: batch 2 x 32 tokens") == 2
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert "saved activations 60.00 MiB 54.00 MiB -6.00 MiB -10.00%" in lines
        assert "unexplained rest -4.00 MiB" in lines
        assert "step time 500.00 ms - - -" in lines
        assert "- The run did not end well: killed: killed by signal 9." in lines

    def test_csv(self, capsys: pytest.CaptureFixture[str], files: Sequence[str]) -> None:
        """One row a figure and engine."""
        assert main(["compare", *files, "--format", "csv"]) == 0
        lines = capsys.readouterr().out.replace("\r\n", "\n").splitlines()
        assert lines[0].endswith("outcome,engine,section,figure,unit,observed,predicted,error,relative_error")
        assert any(
            line.endswith("simulate,parts,activations_bytes,bytes,62914560,56623104,-6291456,-0.1") for line in lines
        )
        assert any(line.endswith("simulate,parts,unexplained_bytes,bytes,,,-4194304,") for line in lines)

    def test_markdown(self, capsys: pytest.CaptureFixture[str], files: Sequence[str], tmp_path: Path) -> None:
        """By the file's suffix."""
        file = tmp_path / "out.md"
        assert main(["compare", *files, "-o", str(file)]) == 0
        assert "| saved activations | 60.00 MiB | 54.00 MiB | -6.00 MiB | -10.00% |" in file.read_text()

    @pytest.mark.parametrize(("name", "magic"), [("bars.png", b"\x89PNG"), ("bars.svg", b"<?xml"), ("B.SVG", b"<?xml")])
    def test_figure(
        self, capsys: pytest.CaptureFixture[str], files: Sequence[str], tmp_path: Path, name: str, magic: bytes
    ) -> None:
        """Beside the table, in the form of its suffix."""
        file = tmp_path / name
        assert main(["compare", *files, "--figure", str(file)]) == 0
        assert "unexplained rest" in capsys.readouterr().out
        assert file.read_bytes().startswith(magic)

    def test_a_figure_that_cannot_be(self, capsys: pytest.CaptureFixture[str], files: Sequence[str]) -> None:
        """Told before anything is computed."""
        assert ".png or .svg" in refused(capsys, *files, "--figure", "bars.jpeg")
        assert "does not exist" in refused(capsys, *files, "--figure", os.path.join("nowhere", "bars.png"))


GOOD = measurements_to_json([measurement(ledger=ledger((Category.WEIGHTS, "a", "b", 1)))])


def with_(path: str, value: Any) -> str:
    """The text of a good file with one value replaced."""
    data: Any = json.loads(json.dumps(GOOD))
    *outer, last = path.split(".")
    inner = data
    for key in outer:
        inner = inner[int(key) if key.isdecimal() else key]
    inner[last] = value
    return json.dumps(data)


FOREIGN: dict[str, str] = {
    "empty": "",
    "truncated": json.dumps(GOOD)[:-40],
    "a list": "[]",
    "another file": json.dumps({"model_type": "llama"}),
    "two kinds": json.dumps({"measurements": [], "predictions": []}),
    "nothing in it": json.dumps({"measurements": []}),
    "no list": json.dumps({"measurements": {}}),
    "no objects": json.dumps({"measurements": [3]}),
    "nested": "[" * 100_000,
    "nested inside": '{"measurements": ' + "[" * 50 + "]" * 50 + "}",
    "not finite": json.dumps(GOOD).replace("0.4", "NaN"),
    "a long number": json.dumps(GOOD).replace("0.5", "9" * 5000),
    "twice": '{"measurements": [], "measurements": []}',
    "a newer schema": with_("measurements.0.schema", 99),
    "another engine": with_("measurements.0.engine", "guess"),
    "an unknown outcome": with_("measurements.0.outcome", "fine"),
    "memory is text": with_("measurements.0.memory", "much"),
    "a peak is text": with_("measurements.0.memory.peak_allocated_bytes", "1"),
    "a part is a list": with_("measurements.0.memory.weights_bytes", [1]),
    "moments are a list": with_("measurements.0.memory.moments", [1]),
    "a moment is text": with_("measurements.0.memory.moments.forward", "1"),
    "an unknown memory": with_("measurements.0.memory.more", 1),
    "versions are numbers": with_("measurements.0.versions.torch", 2.13),
    "the environment is a list": with_("measurements.0.environment", []),
    "parameters are text": with_("measurements.0.parameters.total", "7B"),
    "time is text": with_("measurements.0.throughput.step_s", "1 s"),
    "the run is text": with_("measurements.0.run", "llama"),
    "the model is text": with_("measurements.0.run.model", "llama"),
    "the model's name is a number": with_("measurements.0.run.model.name", 1),
    "a batch of none": with_("measurements.0.run.bs", 0),
    "an unknown method": with_("measurements.0.run.method.name", "magic"),
    "an unknown task": with_("measurements.0.run.model.task", "chess"),
    "a ledger of text": with_("measurements.0.ledger", "x"),
    "an unknown category": with_("measurements.0.ledger.items.0.category", "x"),
    "phases are numbers": with_("measurements.0.phases", [1]),
    "the card is too large": with_("measurements.0.environment.total_bytes", 10**30),
}


class TestHostileFiles:
    """Exit code 2 and one clear line that names the file, never a traceback."""

    @pytest.mark.parametrize("name", FOREIGN)
    def test_refused(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
        """Whatever is wrong with it."""
        file = tmp_path / "foreign.json"
        file.write_text(FOREIGN[name])
        line = refused(capsys, str(file), "--engine", "analytic")
        assert len(line) < 900

    @pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x80\x04\x95", b"PK\x03\x04"])
    def test_no_text_at_all(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, data: bytes) -> None:
        """A pickle is not read as one."""
        file = tmp_path / "run.json"
        file.write_bytes(data)
        assert "run.json" in refused(capsys, str(file))

    def test_no_file(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """Missing, a folder, none named."""
        assert "No such file" in refused(capsys, str(tmp_path / "run.json"))
        assert "not a regular file" in refused(capsys, str(tmp_path))
        assert main(["compare"]) == 2
        assert "FILE" in capsys.readouterr().err

    def test_a_model_that_cannot_be_built(self, capsys: pytest.CaptureFixture[str], write: Any, run: RunSpec) -> None:
        """Its configuration is read again before it is built: the simulation has no prediction, and says why."""
        broken = {**run.model.config, "num_attention_heads": "six"}
        [found], _ = compared(
            capsys, write(measurement(run=run.replace(model=replace(run.model, config=broken)))), "--engine", "simulate"
        )
        assert "num_attention_heads" in found.remarks[0]

    def test_text_that_would_steer_a_terminal(
        self, capsys: pytest.CaptureFixture[str], write: Any, tmp_path: Path
    ) -> None:
        """Names and messages from the file are shown without control characters, and are no formulas in a figure."""
        seen = without_memory("error", error="\x1b[2Jgone\n$\\frac{$", environment={"device": "card\x07 $x_"})
        seen = replace(seen, run=seen.run and seen.run.replace(model=replace(seen.run.model, name="$\\x^{$\x1b")))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert main(["compare", write(seen), "--engine", "analytic", "--figure", str(tmp_path / "x.svg")]) == 0
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        assert "\x07" not in out + err
        assert "gone" in out

    def test_sums_are_computed_of_large_numbers(self, capsys: pytest.CaptureFixture[str], write: Any) -> None:
        """Nonsense of any size has its errors, exactly."""
        seen = measurement(memory(peak_allocated_bytes=10**38, weights_bytes=-5))
        saved = write(prediction(memory(peak_allocated_bytes=1)), name="predictions.json")
        assert main(["compare", write(seen), saved, "--tolerance", "1%"]) == 1
        assert str(10**38) in capsys.readouterr().err


@pytest.mark.parametrize(("args", "code"), [((), 0), (("--engine", "simulate"), 3)])
def test_without_pytorch(write: Any, run: RunSpec, args: tuple[str, ...], code: int) -> None:
    """The simulation is left out with a note, unless it was asked for: then exit code 3 and the command to install."""
    command = ["compare", write(measurement(run=run)), *args]
    script = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError('No module named torch', name='torch')\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from lorafa_prof.cli import main\n"
        f"sys.exit(main({command!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr
    assert "pip install 'lorafa-prof[torch]'" in done.stderr
    assert ("analytic" in done.stdout) is (code == 0)
