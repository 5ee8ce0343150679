"""`lorafa-prof diff`, end to end on a tiny model: recordings, other interpreters, refusals and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main
from tests.support.configs import tiny_configs

BS, SEQ = 2, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, and its step recorded with fused and with eager attention."""
    path = tmp_path_factory.mktemp("diff")
    (path / "config.json").write_text(json.dumps(tiny_configs()["llama"] | {"max_position_embeddings": 512}))
    for attn in ("sdpa", "eager"):
        assert main(["diff", *run_of(path), "--attn", attn, "--record", str(path / f"{attn}.json")]) == 0
    return path


def run_of(path: Path) -> list[str]:
    return ["--model", str(path), "--bs", str(BS), "--seq", str(SEQ), "--rank", "4"]


def difference(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[dict[str, Any], str]:
    assert main(["diff", *args, "--format", "json"]) == code
    out, err = capsys.readouterr()
    [found] = json.loads(out)["differences"]
    return found, err


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    assert main(["diff", *args]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_eager_attention_adds_its_scores(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The probabilities that eager attention keeps in fp32 have b x heads x s x s elements in each layer: these are
    added to the peak, and what the fused kernel makes is removed; the changes add up to that of the peak.
    """
    found, _ = difference(capsys, str(folder / "sdpa.json"), str(folder / "eager.json"))
    config, peak = tiny_configs()["llama"], found["peak"]
    changes = {(c["kind"], c["operation"]): c for c in peak["changes"]}
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    added = changes["added", "_softmax"]
    assert added["after"]["nbytes"] == layers * BS * heads * SEQ * SEQ * 4
    assert added["after"]["count"] == layers
    assert ("removed", "_scaled_dot_product_flash_attention") in changes
    before, after = (found[side]["memory"]["peak_allocated_bytes"] for side in ("before", "after"))
    assert (peak["before_bytes"], peak["after_bytes"]) == (before, after)
    assert sum(c["change_bytes"] for c in peak["changes"]) == after - before > 0


def test_a_recording_is_the_prediction(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Its memory and FLOPs are those that `predict --engine simulate` says of the run."""
    [record] = json.loads((folder / "sdpa.json").read_text())["step_records"]
    args = ["predict", "--engine", "simulate", *run_of(folder), "--method", "lora", "--format", "json"]
    assert main(args) == 0
    [said] = json.loads(capsys.readouterr().out)["predictions"]
    assert record["memory"] == said["memory"]
    assert record["throughput"]["model_flops"] == said["throughput"]["model_flops"]
    assert sum(o["peak_bytes"] for o in record["operations"]) == said["memory"]["peak_allocated_bytes"]


def test_one_file_is_held_against_here(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Its run, simulated again in the environment that recorded it, differs in nothing: a test that can be kept."""
    found, err = difference(capsys, str(folder / "eager.json"), "--tolerance", "0")
    assert found["peak"]["changes"] == found["step"]["changes"] == []
    assert found["after"]["run"]["attn"] == "eager"
    assert err == ""


def test_another_interpreter(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """This environment asked through its interpreter says the same bytes."""
    found, _ = difference(capsys, str(folder / "sdpa.json"), "--python", sys.executable)
    assert found["peak"]["changes"] == found["step"]["changes"] == []
    assert found["after"]["source"] == sys.executable
    assert found["before"]["versions"] == found["after"]["versions"]


def test_a_tolerance_is_a_gate(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Exit code 1 where a peak changes by more, with a line for each; 0 within it."""
    files = (str(folder / "sdpa.json"), str(folder / "eager.json"))
    _, err = difference(capsys, *files, "--tolerance", "0", code=1)
    assert "peak allocated" in err
    difference(capsys, *files, "--tolerance", "1000%")


def test_as_text(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Figures, then the operations at the peak and over the step."""
    assert main(["diff", str(folder / "sdpa.json"), str(folder / "eager.json"), "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "The runs differ in attn (sdpa, eager)." in out
    assert "alive at the peak: operations whose bytes differ" in out
    assert "allocated over the step: operations whose bytes differ" in out


class TestRefusals:
    """What cannot be compared, in one line."""

    def test_sides(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        """Too many, too few, or a run that is said twice."""
        one = str(folder / "sdpa.json")
        assert "two sides are compared" in refused(capsys, one, one, one)
        assert "two sides are compared" in refused(capsys, one, "--record", "x.json")
        assert "Name another environment with --python" in refused(capsys, *run_of(folder))
        assert "which run?" in refused(capsys, "--python", sys.executable)
        assert "says another" in refused(capsys, one, "--bs", "4")
        assert "says another" in refused(capsys, one, one, "--gpu", "rtx4090")
        assert "one method" in refused(capsys, *run_of(folder), "--method", "lora,dora", "--record", "-")

    def test_files(self, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
        """What is no record, or a damaged one."""
        assert "no record of a step" in refused(capsys, str(folder / "config.json"))
        document = json.loads((folder / "sdpa.json").read_text())
        document["step_records"][0]["operations"][0]["step_bytes"] = "many"
        (tmp_path / "bad.json").write_text(json.dumps(document))
        assert "step_bytes cannot be 'many'" in refused(capsys, str(tmp_path / "bad.json"))

    def test_interpreters(self, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
        """One that is none, and one that lacks a package: exit code 3, with what is missing and where."""
        assert "no program of this name" in refused(capsys, *run_of(folder), "--python", "nonesuch-python")
        assert "no Python interpreter" in refused(capsys, *run_of(folder), "--python", "true")
        bare = tmp_path / "bare"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
        python = bare / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        said = refused(capsys, *run_of(folder), "--python", str(python), code=3)
        assert "python: " in said
        assert "numpy" in said or "torch" in said
