"""`--lengths` of predict and oom: what is printed, what scripts get, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main
from tests.support.configs import tiny_configs

PREDICT = ("predict", "--model", "llama2-7b", "--method", "lora", "--bs", "2", "--seq", "1024")
OOM = ("oom", "--model", "llama2-7b", "--method", "lora", "--gpu", "a100-80gb", "--seq", "2048")
VALUES = [100, 2000, 300, 400, 250, 60, 700]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "lengths.csv"
    path.write_text("length\n" + "\n".join(map(str, VALUES)), "utf-8")
    return str(path)


def answered(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(list(args)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def predicted(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answered(capsys, *args, "--format", "json"))["predictions"][0]
    return found


def test_what_people_read(capsys: pytest.CaptureFixture[str], file: str) -> None:
    """The largest batch, what the others stay within, and how much is padding, beside the parts of the peak."""
    text = answered(capsys, *PREDICT, "--lengths", file, "--batching", "file")
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    assert ["largest batch is", "2 x 1,024"] in rows
    assert ["padding", "30.0%"] in rows
    assert "half of the batches within" in text
    said = " ".join(text.split())
    assert "number 0 of 4 from 0 on: 2 x 1024 tokens; batches by the rule file; the last one has what is left" in said
    assert "truncated to 1,024 tokens" in said


def test_what_scripts_get(capsys: pytest.CaptureFixture[str], file: str) -> None:
    """The epoch in a member of its own, the run that of its largest batch; the file's name without its folder."""
    found = predicted(
        capsys,
        *PREDICT,
        "--lengths",
        file,
        "--batching",
        "grouped",
        "--batching-seed",
        "7",
        "--pad-to-multiple-of",
        "8",
    )
    said = found["lengths"]
    assert (said["file"], said["rule"], said["seed"], said["sequences"]) == ("lengths.csv", "grouped", 7, 7)
    assert (said["truncated"], said["max_length"], said["batches"]) == (1, 1024, 4)
    assert (found["run"]["bs"], found["run"]["seq"], found["run"]["padded"]) == (2, 1024, True)
    assert said["peak_allocated_bytes"]["max"] == found["memory"]["peak_allocated_bytes"]
    assert found["throughput"]["step_s"] is None
    assert "lengths" not in predicted(capsys, *PREDICT)


def test_no_shuffle_has_no_seed(capsys: pytest.CaptureFixture[str], file: str) -> None:
    """A budget of tokens has no batch size."""
    assert predicted(capsys, *PREDICT, "--lengths", file, "--batching", "sorted")["lengths"]["seed"] is None
    said = predicted(capsys, *PREDICT, "--lengths", file, "--batching", "tokens:1500")["lengths"]
    assert (said["batch_size"], said["rule"], said["seed"]) == (None, "tokens:1500", 42)


def test_the_largest_batch_size(capsys: pytest.CaptureFixture[str], file: str) -> None:
    """Not all sequences at once; a batch that holds the whole data set is where the search ends."""
    (found,) = json.loads(answered(capsys, *OOM, "--lengths", file, "--format", "json"))["thresholds"]
    assert (found["max"], found["first_oom"], found["advice"]) == (3, 4, [])
    assert any("batches by the rule random" in line for line in found["assumptions"])
    small = [option if option != "2048" else "64" for option in OOM]
    (found,) = json.loads(answered(capsys, *small, "--lengths", file, "--format", "json"))["thresholds"]
    assert (found["max"], found["first_oom"], found["limit"]) == (7, None, 7)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a rule without lengths": (("--batching", "sorted"), "--batching says how batches are made of lengths"),
    "a seed without lengths": (("--batching-seed", "1"), "--batching-seed says how"),
    "no such file": (("--lengths", "absent.txt"), "absent.txt: No such file"),
    "no such rule": (("--lengths", "FILE", "--batching", "rnadom"), "did you mean random"),
    "a budget that is none": (("--lengths", "FILE", "--batching", "tokens:x"), "write it as tokens:16384"),
    "a budget too small": (("--lengths", "FILE", "--batching", "tokens:99"), "beyond the batch's budget of 99"),
    "a seed of 64 bits": (("--lengths", "FILE", "--batching-seed", str(2**32)), "batching seed must be between"),
    "no padding": (("--lengths", "FILE", "--pad-to-multiple-of", "0"), "pad to multiple of must be between"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], file: str, name: str) -> None:
    """One line and exit code 2."""
    options, said = REFUSED[name]
    assert said in refused(capsys, *PREDICT, *(file if option == "FILE" else option for option in options))


def test_no_times(capsys: pytest.CaptureFixture[str], file: str) -> None:
    """The time of a mean step is not the mean of the times: a profile has no say."""
    with_profile = ("--engine", "simulate", "--profile", "cpu.json")
    assert "--profile is for step times" in refused(capsys, *PREDICT, "--lengths", file, *with_profile)


def test_what_oom_refuses(capsys: pytest.CaptureFixture[str], file: str) -> None:
    """Batches are not measured, nor advised on; those of a budget have no size."""
    with_file = (*OOM, "--lengths", file)
    assert "--lengths goes with --engine" in refused(capsys, *with_file, "--engine", "measure")
    assert "not with --advice" in refused(capsys, *with_file, "--advice")
    assert "no batch size" in refused(capsys, *with_file, "--batching", "tokens:2000")


def test_the_simulation_finds_the_largest_batch_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str
) -> None:
    """Of padded batches, each made anew for its size: no more of them than closed forms find, which do not know what
    the allocator keeps when lengths change; and with the refusal of PyTorch that ends the search.
    """
    pytest.importorskip("peft")
    config = tmp_path / "config.json"
    changes = {"max_position_embeddings": 512, "vocab_size": 60_000, "num_hidden_layers": 1}
    config.write_text(json.dumps(tiny_configs()["llama"] | changes), "utf-8")
    options = (
        "oom", "--model", str(config), "--method", "lora", "--seq", "400", "--lengths", file, "--gpu", "a100-40gb",
        "--cap", "1GiB", "--format", "json",
    )  # fmt: skip
    found = []
    for engine in ("analytic", "simulate"):
        assert main([*options, "--engine", engine]) == 0
        found += json.loads(capsys.readouterr().out)["thresholds"]
    forms, simulated = found
    assert 1 <= simulated["max"] <= forms["max"] < 7
    assert simulated["first_oom"] == simulated["max"] + 1
    assert simulated["peak_reserved_bytes_at_max"] >= simulated["peak_allocated_bytes_at_max"]
    assert simulated["at_first_oom"]["oom"].startswith("CUDA out of memory. Tried to allocate")
    assert any("steps in the epoch's order" in line for line in simulated["assumptions"])


def test_one_padded_batch(capsys: pytest.CaptureFixture[str], file: str) -> None:
    """Without a file: the run says so, and its attention takes a mask. A file says it of each batch itself."""
    full, padded = (predicted(capsys, *PREDICT, *more) for more in ((), ("--padded",)))
    assert (full["run"]["padded"], padded["run"]["padded"]) == (False, True)
    assert padded["memory"]["peak_allocated_bytes"] > full["memory"]["peak_allocated_bytes"]
    assert any("some of the batch is padding" in line for line in padded["assumptions"])
    assert "--padded is of one batch" in refused(capsys, *PREDICT, "--padded", "--lengths", file)


def test_both_engines_say_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str) -> None:
    """The largest batch, and what closed forms can know of the epoch; the simulation says what is reserved as well."""
    pytest.importorskip("peft")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_configs()["llama"] | {"max_position_embeddings": 512}), "utf-8")
    options = ("predict", "--model", str(config), "--method", "lora", "--bs", "2", "--seq", "400", "--lengths", file)
    forms, simulated = (predicted(capsys, *options, "--engine", engine) for engine in ("analytic", "simulate"))
    same = ("file", "rule", "seed", "batches", "shapes", "padding_share", "tokens_per_batch", "worst_bs", "worst_seq")
    assert {name: forms["lengths"][name] for name in same} == {name: simulated["lengths"][name] for name in same}
    assert forms["lengths"]["steps_played"] is None
    assert simulated["lengths"]["steps_played"] == 5
    assert simulated["memory"]["peak_reserved_bytes"] >= simulated["memory"]["peak_allocated_bytes"]
    assert forms["run"] == simulated["run"]
