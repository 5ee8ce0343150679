"""`lorafa-prof sweep`: every row is what `predict` says, and no way to end it costs more than the row at hand."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lorafa_prof
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.cli import main, sweep
from lorafa_prof.cli.options import _OPTIONS, _SIZES
from lorafa_prof.cli.sweep_grid import KEYS, Figures, SweepGrid
from lorafa_prof.cli.sweep_rows import Task
from lorafa_prof.cli.sweep_workers import rows_of
from lorafa_prof.speed.defaults import default_profile

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
WINDOWED = CONFIG | {"model_type": "mistral", "sliding_window": 100}
posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with two models."""
    for name, config in (("m", CONFIG), ("w", WINDOWED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> int:
    return main(["sweep", "--model", "./m", "--method", "lora", *args])


def rows(path: str = "s.csv") -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


#: What a sweep's rows have with --timed alone.
TIMES = frozenset({"profile", "step_s", "tokens_per_s", "mfu", "mfu_6n", "hfu", "why_no_time"})


def predicted(capsys: pytest.CaptureFixture[str], *args: str, without: frozenset[str] = TIMES) -> list[dict[str, str]]:
    """The rows of predict's CSV, step times left out."""
    capsys.readouterr()
    assert main(["predict", "--format", "csv", *args]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    return [{name: value for name, value in row.items() if name not in without} for row in found]


def test_every_row_is_what_predict_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Each configuration and card has its row, whose columns have the names and the values of predict's CSV."""
    args = ["--model", "./m,./w", "--bs", "1,3", "--seq", "99:101", "--method", "full,lora-fa", "--rank", "4,8"]
    args += ["--amp", "on,off", "--attn", "eager,sdpa", "--gpu", "rtx4090,h100", "--max-bs", "-o", "s.csv"]
    assert main(["sweep", *args]) == 0
    found = rows()
    assert len(found) == 2 * 2 * 3 * (1 + 2) * 2 * 2 * 2
    assert len({tuple(row[key] for key in KEYS) for row in found}) == len(found)
    for row in found[::9]:
        options = ("model", "bs", "seq", "method", "rank", "attn")
        one = [word for name in options for word in (f"--{name}", row[name])]
        one += ["--gpu", row["device"], "--amp" if row["amp"] == "true" else "--no-amp"]
        (alone,) = predicted(capsys, *one)
        assert {name: row[name] for name in alone} == alone
        assert row["error"] == ""


def card_of(total_bytes: int) -> str:
    """A file that describes a T4 with another memory."""
    device = json.loads((ROOT / "lorafa_prof/catalog/devices/t4.json").read_text("utf-8"))
    device["memory"]["total_bytes"] = total_bytes
    Path("card.json").write_text(json.dumps(device))
    return "./card.json"


def check_largest_batches(found: list[dict[str, str]]) -> list[int]:
    """Hold max_bs to the rows' own verdicts: of each configuration it is one number, the last batch that fits."""
    largest = []
    for _, group in itertools.groupby(found, lambda row: [row[key] for key in KEYS if key != "bs"]):
        same = list(group)
        (said,) = {int(row["max_bs"]) for row in same}
        fitting = [int(row["bs"]) for row in same if row["fits"] == "true"]
        assert said == max(fitting, default=0)
        assert said < int(same[-1]["bs"]), "the rows show the first that does not fit as well"
        largest.append(said)
    return largest


def test_the_largest_batch_is_the_last_that_fits() -> None:
    """Whatever the batch of the row is; 0 where not even one fits. Not looked for unless asked for, not there for a
    row that is refused.
    """
    args = ("--model", "./w", "--method", "full", "--seq", "64,101,300")
    assert run(*args, "--bs", "1", "--gpu", "t4", "-o", "t4.csv") == 0
    assert "max_bs" not in rows("t4.csv")[0]
    needed = [int(row["peak_allocated_bytes"]) + int(row["context_bytes"]) for row in rows("t4.csv")]
    card = card_of(max(needed) + 2**21)
    assert run(*args, "--bs", "1:60", "--gpu", card, "--max-bs", "-o", "s.csv") == 0
    largest = check_largest_batches(rows())
    assert len(largest) == 2 * 2 * 3  # models, methods, lengths
    assert len(set(largest)) > 4
    assert run(*args, "--bs", "1:60", "--gpu", card_of(min(needed) - 1), "--max-bs", "-o", "none.csv") == 0
    assert set(check_largest_batches(rows("none.csv"))) == {0}
    assert run("--seq", "600", "--gpu", card, "--max-bs", "-o", "long.csv") == 0
    assert [(row["max_bs"], row["error"] != "") for row in rows("long.csv")] == [("", True)]


def test_times_are_those_of_predict(capsys: pytest.CaptureFixture[str]) -> None:
    """With --timed each row has its step time on its card, to the last digit; without data the row says why not."""
    sizes = ["--bs", "1:3", "--seq", "99,128", "--method", "full,lora", "--rank", "4"]
    args = ["--model", "./w", *sizes, "--gpu", "a100-80gb,t4", "--timed", "-o", "s.csv"]
    assert main(["sweep", *args]) == 0
    found = rows()
    assert len(found) == 2 * 2 * 3 * 2
    for row in found:
        options = [f"--{name}={row[name]}" for name in ("model", "bs", "seq", "method", "rank")]
        [told] = predicted(capsys, *options, "--gpu", row["device"], without=frozenset({"max_bs"}))
        assert told.items() <= row.items()
    timed = [row for row in found if row["device"] == "a100-80gb"]
    assert all(float(row["step_s"]) > 0 and 0 < float(row["mfu"]) <= float(row["hfu"]) < 1 for row in timed)
    assert all("no rate of matrix products" in row["why_no_time"] for row in found if row["device"] == "t4")


def test_times_by_a_measured_profile(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The profile's card is the one that is asked about; a sweep by another profile is another sweep."""
    card = default_profile(load_device("a100-80gb"))
    for name, latency in (("one.json", 1e-3), ("other.json", 2e-3)):
        (folder / name).write_text(json.dumps(replace(card, measured=True, latency_s=latency).to_json()), "utf-8")
    args = ["--bs", "2", "--seq", "128", "--timed", "-o", "s.json"]
    assert run(*args, "--profile", "one.json") == 0
    [row] = json.loads(Path("s.json").read_text("utf-8"))["rows"]
    assert (row["device"], row["profile"]) == ("a100-80gb", "measured")
    assert row["step_s"] > 1e-3
    assert run(*args, "--profile", "other.json") == 2
    assert "was made with other options (profile)" in capsys.readouterr().err
    assert run("--profile", "one.json", "--bs", "2") == 2
    assert "add --timed" in capsys.readouterr().err
    assert run("--timed", "--bs", "2") == 2
    assert "--timed is for step times on a card" in capsys.readouterr().err


def test_the_largest_batch_by_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule, by the verdicts of simulated steps; without --max-bs it is not looked for."""
    pytest.importorskip("peft")
    from lorafa_prof.simulate.thresholds import Thresholds

    card = replace(load_device("t4"), total_bytes=300 * 10**6)
    axes = {option.names[-1]: (option.default,) for option in (*_SIZES, *_OPTIONS)} | {
        "seq": (512,), "bs": (4, 5, 6),
    }  # fmt: skip
    grid = SweepGrid(models=(load_model("./m"),), methods=("lora",), engine="simulate", axes=axes, devices=(card,))
    (block,) = grid.blocks()
    text = rows_of("simulate", Figures(max_bs=True))(Task(block=block, start=0, stop=3)).decode()
    names = Figures(max_bs=True).columns
    found = [dict(zip(names, row, strict=True)) for row in csv.reader(io.StringIO(text, newline=""))]
    assert [row["bs"] for row in found] == list("456")
    assert check_largest_batches(found)[0] in (4, 5)
    monkeypatch.delattr(Thresholds, "largest_batch")
    text = rows_of("simulate", Figures())(Task(block=block, start=0, stop=1)).decode()
    (alone,) = csv.reader(io.StringIO(text, newline=""))
    assert dict(zip(Figures().columns, alone, strict=True)).items() <= found[0].items()


def test_every_run_option_has_values(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever predict takes one of, sweep takes many of; the columns tell them apart."""
    axes = {
        "--dtype": "bf16,fp32", "--adapter-dtype": "bf16,fp32", "--attn": "sdpa,eager",
        "--checkpointing": "none,full", "--dropout": "0,0.1", "--optimizer": "adamw,sgd", "--quant": "none,nf4",
        "--loss": "hf,fused", "--accumulation": "1:2", "--clip": "off,on",
        "--gpus": "1:2", "--shard": "none,ddp", "--prepare-kbit": "none,peft", "--amp": "off,on",
    }  # fmt: skip
    for flag, values in axes.items():
        assert run("--seq", "64", flag, values, "-o", f"{flag}.csv") == 0
        assert [row[flag[2:].replace("-", "_")] for row in rows(f"{flag}.csv")] == [
            {"0": "0.0", "on": "true", "off": "false"}.get(v, v)
            for v in (values.split(",") if ":" not in values else ["1", "2"])
        ]
    assert run("--seq", "64", "--targets", "q_proj, v_proj", "--targets", "qv", "-o", "t.csv") == 0
    assert [row["targets"] for row in rows("t.csv")] == ["q_proj,v_proj", "qv"]
    assert run("--seq", "64", "--amp", "-o", "amp.csv") == 0
    assert [row["amp"] for row in rows("amp.csv")] == ["true"]
    assert run("--seq", "64", "--no-amp", "-o", "no.csv") == 0
    assert [row["amp"] for row in rows("no.csv")] == ["false"]


def test_what_means_the_same_is_one_row() -> None:
    """Values are taken once, also where only their names differ; full fine-tuning has no rank."""
    assert run("--seq", "64,64", "--bs", "1:3,2:4", "--adapter-dtype", "auto,bf16,fp32", "-o", "s.csv") == 0
    assert [(row["bs"], row["adapter_dtype"]) for row in rows()] == [
        (bs, dtype) for dtype in ("fp32", "bf16") for bs in "1234"
    ]
    assert run("--seq", "64", "--method", "full", "--rank", "4,8", "--dropout", "0,0.1", "-o", "f.csv") == 0
    assert [(row["method"], row["rank"]) for row in rows("f.csv")] == [
        ("lora", "4"), ("lora", "8"), ("lora", "4"), ("lora", "8"), ("full", "4"),
    ]  # fmt: skip


def test_layers_are_an_axis(capsys: pytest.CaptureFixture[str]) -> None:
    """A list of shares is as many values, a list of numbers one; what names the same layers is one row."""
    args = ("--seq", "64", "--layers", "50%,100%,all", "--layers", "1", "--layers", "0-0")
    assert run(*args, "-o", "s.csv") == 0
    assert [row["layers"] for row in rows()] == ["1 of 2", "all", "0 of 2"]
    peaks = [row["peak_allocated_bytes"] for row in rows()]
    for layers, peak in zip(("1", "all", "0-0"), peaks, strict=True):
        args = ("--model", "./m", "--method", "lora", "--seq", "64", "--layers", layers)
        assert [row["peak_allocated_bytes"] for row in predicted(capsys, *args)] == [peak]
    assert run("--seq", "64", "--method", "full", "--layers", "50%,all", "-o", "f.csv") == 0
    assert [(row["method"], row["layers"]) for row in rows("f.csv")] == [
        ("lora", "1 of 2"), ("lora", "all"), ("full", "all"),
    ]  # fmt: skip
    assert run("--layers", "50%,3", "-o", "x.csv") == 2
    assert "./m has 2 layers" in capsys.readouterr().err
    assert not Path("x.csv").exists()


def test_options_that_contradict_each_other_are_a_row() -> None:
    """A target that names a layer does not go with --layers: a row says so, whichever of the values comes first."""
    targets = ("model.layers.1.self_attn.q_proj", "all-linear")
    for name, order in (("a.csv", targets), ("b.csv", targets[::-1])):
        named = [word for target in order for word in ("--targets", target)]
        assert run(*named, "--seq", "64", "--layers", "1,all", "--accumulation", "1,2", "-o", name) == 0
        refused = {(row["targets"], row["layers"]) for row in rows(name) if "names a layer" in row["error"]}
        assert refused == {(targets[0], "1 of 2")}
        assert [row["error"] != "" for row in rows(name)].count(True) == 2


def test_a_refusal_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A method that is not modelled, a sequence that is too long, options that exclude each other: all else goes on."""
    assert (
        run("--method", "dora", "--seq", "64,600", "--quant", "none,nf4", "--prepare-kbit", "peft", "-o", "s.csv") == 0
    )
    assert "7 of them refused: see the column error" in capsys.readouterr().err
    found = {(row["method"], row["seq"], row["quant"]): row["error"] for row in rows()}
    assert found["lora", "64", "none"].startswith("the k-bit preparation is for quantised weights")
    assert found["lora", "600", "nf4"] == "sequence length 600 is beyond the 512 positions of ./m"
    assert found["dora", "64", "nf4"].startswith("the analytic engine does not model DoRA over quantised weights")
    assert found["lora", "64", "nf4"] == ""
    assert all((row["peak_allocated_bytes"] == "") == (row["error"] != "") for row in rows())
    assert run("--seq", "64,600", "-o", "t.csv") == 0
    assert [row["error"] != "" for row in rows("t.csv")] == [False, True]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--bs", "64:1"), "is reversed: write 1:64"),
        (("--bs", "0"), "must be between 1 and"),
        (("--bs", ""), "is not an integer"),
        (("--method", "lorra"), "did you mean lora"),
        (("--model", "llama-17b"), "unknown model"),
        (("--gpu", "rtx4091"), "did you mean rtx4090"),
        (("--attn", "sdpa,"), "an empty name among the values of --attn"),
        (("--attn", "spda"), "did you mean sdpa"),
        (("--amp", "maybe"), "Known: on, off"),
        (("--amp", "on,off", "--no-amp"), "contradict each other; for both write --amp on,off"),
        (("--no-amp", "--amp"), "contradict each other"),
        (("--dropout", "0,high"), "'high' is not a number"),
        (("--dropout", "1.5"), "dropout must be between 0 and 1"),
        (("--targets", "q_proj,"), "empty name"),
        (("--max-bs",), "name one with --gpu"),
        (("--bs", "1:100000", "--seq", "1:512", "--rank", "1:16"), "819,200,000 rows (100,000 of --bs, 512 of --seq"),
        (("--bs", "1:1000000", "--seq", "1:1000000"), "1,000,000,000,000 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2 and the nearest right thing, before a file is begun."""
    assert run(*args, "-o", "s.csv") == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("s.csv").exists()


# -- a file that is taken up again -----------------------------------------------------------------------------------

GRID = ("--method", "vera", "--bs", "1:5", "--seq", "64,600,128", "--gpu", "rtx4090,h100", "-o", "s.csv")


def test_a_file_is_taken_up_wherever_it_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing to everything: what is whole stays as it is, the rest is made, and the file is as it was."""
    monkeypatch.setitem(sweep.CHUNK, "analytic", 4)
    assert run(*GRID) == 0
    whole = Path("s.csv").read_bytes()
    assert whole.count(b"\r\n") == 1 + 2 * 5 * 3 * 2
    for cut in (0, 3, 600, 700, 1000, 1001, 3000, 5000, len(whole) - 1, len(whole)):
        Path("s.csv").write_bytes(whole[:cut])
        assert run(*GRID) == 0
        assert Path("s.csv").read_bytes() == whole, cut


def test_a_file_of_a_part_is_completed() -> None:
    """A sweep that begins with another one's rows goes on after these."""
    assert run("--seq", "64", "--rank", "4", "-o", "s.csv") == 0
    first = Path("s.csv").read_bytes()
    assert run("--seq", "64", "--rank", "4,8", "--method", "vera", "-o", "s.csv") == 0
    assert Path("s.csv").read_bytes().startswith(first)
    assert [(row["method"], row["rank"]) for row in rows()] == [
        ("lora", "4"), ("lora", "8"), ("vera", "4"), ("vera", "8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--seq", "128"), "row 1 is of seq 64, not 128"),
        (("--seq", "64", "--attn", "eager"), "row 1 is of attn sdpa, not eager"),
        (("--seq", "64", "--bs", "1,3"), "row 2 is of bs 2, not 3"),
        (("--seq", "64", "--bs", "1"), "has more rows than the 1 of this sweep"),
        (("--seq", "64", "--bs", "1:3", "--gpu", "h100"), "row 1 is of device , not h100"),
        (("--seq", "64", "--bs", "1:3", "--gpu", "h100", "--max-bs"), "has other columns than this sweep"),
    ],
)
def test_a_file_of_other_options_is_refused(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stays as it is, and the text says what differs; --restart gives it up."""
    assert run("--seq", "64", "--bs", "1:2", "-o", "s.csv") == 0
    before = Path("s.csv").read_bytes()
    assert run(*args, "-o", "s.csv") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--restart" in error
    assert Path("s.csv").read_bytes() == before
    assert run(*args, "-o", "s.csv", "--restart") == 0
    assert Path("s.csv").read_bytes() != before


@pytest.mark.parametrize(
    "content", [b"precious\n", b"model,method\r\n", b"\x00\xff", b"model,method,engine,bs,seq,x\r\n"]
)
@pytest.mark.parametrize("restart", [(), ("--restart",)])
def test_a_file_of_something_else_is_never_touched(
    content: bytes, restart: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even with --restart; a file that is empty, or cut within a sweep's header, is a sweep's."""
    Path("s.csv").write_bytes(content)
    assert run("--seq", "64", "-o", "s.csv", *restart) == 2
    assert "'s.csv' is there already and is not a sweep's" in capsys.readouterr().err
    assert Path("s.csv").read_bytes() == content


def test_damage_in_the_middle_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A row that lost its end, or its line end, is not taken for whole."""
    assert run("--seq", "64", "--bs", "1:3", "-o", "s.csv") == 0
    lines = Path("s.csv").read_bytes().split(b"\r\n")
    lines[2] = lines[2][:200]
    Path("s.csv").write_bytes(b"\r\n".join(lines))
    assert run("--seq", "64", "--bs", "1:4", "-o", "s.csv") == 2
    assert "row 2 of 's.csv' is damaged" in capsys.readouterr().err


def test_rows_of_another_installation_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    """The model's file has changed meanwhile: the last row is not what it was, and nothing is added."""
    assert run("--seq", "64", "--bs", "1:3", "-o", "s.csv") == 0
    before = Path("s.csv").read_bytes()
    Path("m/config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 3}))
    assert run("--seq", "64", "--bs", "1:4", "-o", "s.csv") == 2
    assert "the last row of 's.csv' is not what this installation makes of it" in capsys.readouterr().err
    assert Path("s.csv").read_bytes() == before


@posix
def test_two_sweeps_do_not_write_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused for as long as the first is at it."""
    import fcntl

    with open("s.csv", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run("--seq", "64", "-o", "s.csv") == 2
    assert "another sweep is writing 's.csv'" in capsys.readouterr().err
    assert run("--seq", "64", "-o", "s.csv") == 0


def test_names_tell_rows_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """A card that is named twice is one; two cards of one name are refused; a name of two lines stands in one."""
    assert run("--seq", "64", "--gpu", "rtx4090,h100", "--gpu", "4090", "-o", "s.csv") == 0
    assert [row["device"] for row in rows()] == ["rtx4090", "h100"]
    catalog = Path(lorafa_prof.__file__).parent / "catalog" / "devices"
    Path("mine.json").write_text((catalog / "h100.json").read_text().replace('"h100"', '"rtx4090"'))
    assert run("--seq", "64", "--gpu", "rtx4090,./mine.json", "-o", "t.csv") == 2
    assert "two that differ are both called 'rtx4090'" in capsys.readouterr().err
    if os.name != "nt":
        Path("two\nlines").mkdir()
        Path("two\nlines/config.json").write_text(json.dumps(CONFIG))
        assert run("--model", "./two\nlines", "--seq", "64", "-o", "t.csv") == 0
        assert run("--model", "./two\nlines", "--seq", "64", "--bs", "1", "-o", "t.csv") == 0
        assert len(Path("t.csv").read_text().splitlines()) == 3


@posix
def test_a_full_disk_leaves_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is kept, the exit code is 2, and the same command goes on when there is room."""
    args = [sys.executable, "-m", "lorafa_prof", "sweep", "--model", "./m", "--method", "lora", "--seq", "64:512:8"]
    args += ["--bs", "1:400", "-o", "s.csv"]

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))

    done = subprocess.run(args, check=False, capture_output=True, text=True, preexec_fn=limit, env=environment())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot write 's.csv': File too large" in done.stderr
    part = Path("s.csv").read_bytes()
    assert part.endswith(b"\r\n")
    assert len(part) > 3_900_000
    done = subprocess.run(args, check=False, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert Path("s.csv").read_bytes().startswith(part)
    assert len(rows()) == 400 * 57


@posix
def test_a_document_for_which_there_is_no_room_keeps_its_rows() -> None:
    """JSON takes more than its lines of CSV: nothing half-written is left, and the text says where the rows are."""
    args = [sys.executable, "-m", "lorafa_prof", "sweep", "--model", "./m", "--method", "lora", "--seq", "64"]
    args += ["--bs", "1:400", "-o", "s.json"]

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(args, check=False, capture_output=True, text=True, preexec_fn=limit, env=environment())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "its rows stay in 's.json.partial.csv', and the same command goes on" in done.stderr
    assert not [path.name for path in Path().glob("*s.json*") if path.name != "s.json.partial.csv"]
    assert subprocess.run(args, check=False, capture_output=True, env=environment()).returncode == 0
    assert len(json.loads(Path("s.json").read_text())["rows"]) == 400


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that is drawn anew, ten times a second at most, with what is left to wait; elsewhere nothing."""
    from lorafa_prof.cli.progress import Bar

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    times = iter([0.0, 0.0, 0.05, 50.0, 51.0])
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = Bar(1000, 200, clock=lambda: next(times))
    for done in (200, 300, 400, 980):
        bar.show(done)
    bar.say("done")
    shown = [line for line in screen.getvalue().split("\r") if line.strip()]
    assert shown == [
        "lorafa-prof: [###.............] 200 of 1,000 rows",
        "lorafa-prof: [######..........] 400 of 1,000 rows, 240/min, 2 min 30 s left",
        "lorafa-prof: [###############.] 980 of 1,000 rows, 15/s, 2 s left",
        "lorafa-prof: done\n",
    ]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Bar(1000, 0).show(500)
    assert sys.stderr.getvalue() == ""


# -- the forms -------------------------------------------------------------------------------------------------------


def test_rows_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Without -o, and with -o -: CSV, for a pipe."""
    for args in ((), ("-o", "-"), ("-o", "/dev/stdout"))[: 2 if os.name == "nt" else 3]:
        capsys.readouterr()
        assert run("--seq", "64", "--bs", "1:2", *args) == 0
    capsys.readouterr()
    assert run("--seq", "64", "--bs", "1:2") == 0
    out = capsys.readouterr().out
    assert run("--seq", "64", "--bs", "1:2", "-o", "s.csv") == 0
    assert out.encode() == Path("s.csv").read_bytes()


def typed(name: str, text: str) -> Any:
    """What a field of CSV means."""
    if text == "":
        return None
    if name in ("amp", "clip", "fits"):
        return {"true": True, "false": False}[text]
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text) if name == "dropout" else text


def check_document(kind: str, read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--seq", "64,600", "--bs", "1:3", "--amp", "on,off", "--gpu", "rtx4090")
    assert run(*args, "-o", "s.csv") == 0
    expected = [{name: typed(name, text) for name, text in row.items()} for row in rows()]
    assert run(*args, "-o", f"s.{kind}") == 0
    definition, found = read(f"s.{kind}")
    assert found == expected
    assert definition["versions"]["torch"] == "2.13"
    assert definition["bs"] == [1, 2, 3]
    assert not Path(f"s.{kind}.partial.csv").exists()
    before = Path(f"s.{kind}").read_bytes()
    capsys.readouterr()
    assert run(*args, "-o", f"s.{kind}") == 0
    assert "holds this sweep already" in capsys.readouterr().err
    assert run(*args, "--rank", "4", "-o", f"s.{kind}") == 2
    assert f"'s.{kind}' was made with other options (rank)" in capsys.readouterr().err
    assert Path(f"s.{kind}").read_bytes() == before
    assert run(*args, "--rank", "4", "-o", f"s.{kind}", "--restart") == 0
    assert {row["rank"] for row in read(f"s.{kind}")[1]} == {4}
    Path(f"s.{kind}").write_bytes(b"precious")
    assert run(*args, "-o", f"s.{kind}", "--restart") == 2
    assert Path(f"s.{kind}").read_bytes() == b"precious"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One document: what the sweep was, and the rows with numbers as numbers and nothing as null."""

    def read(path: str) -> tuple[Any, Any]:
        document = json.loads(Path(path).read_text())
        return document["sweep"], document["rows"]

    check_document("json", read, capsys)


def test_parquet(capsys: pytest.CaptureFixture[str]) -> None:
    """The same, with columns of their types, and the sweep among the file's metadata."""
    parquet = pytest.importorskip("pyarrow.parquet")

    def read(path: str) -> tuple[Any, Any]:
        table = parquet.read_table(path)
        return json.loads(table.schema.metadata[b"lorafa_prof_sweep"]), table.to_pylist()

    check_document("parquet", read, capsys)


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3 and the command that installs it, before anything is computed or written."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("--seq", "64", "-o", "s.parquet") == 3
    assert "pip install 'lorafa-prof[parquet]'" in capsys.readouterr().err
    assert not Path("s.parquet.partial.csv").exists()


def test_a_document_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """It is whole or not there, which stdout cannot be."""
    assert run("--seq", "64", "--format", "json") == 2
    assert "name a file with -o" in capsys.readouterr().err


@posix
def test_a_document_is_taken_up_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until all is there its rows are lines beside it."""
    monkeypatch.setitem(sweep.CHUNK, "analytic", 2)
    args = ("--seq", "64", "--bs", "1:9", "-o", "s.json")
    stop_after(monkeypatch, 2)
    assert run(*args) == 130
    assert not Path("s.json").exists()
    assert [row["bs"] for row in rows("s.json.partial.csv")] == ["1", "2", "3", "4"]
    stop_after(monkeypatch, 100)
    assert run(*args) == 0
    assert len(json.loads(Path("s.json").read_text())["rows"]) == 9


# -- interruption ----------------------------------------------------------------------------------------------------


def stop_after(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    """Send this process what Ctrl-C sends while the rows of a task are computed."""
    from lorafa_prof.cli.sweep_closed_forms import AnalyticRows

    compute, seen = AnalyticRows.__call__, []

    def counting(self: Any, task: Any) -> bytes:
        seen.append(task)
        if len(seen) == tasks:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, task)

    monkeypatch.setattr(AnalyticRows, "__call__", counting)


@posix
def test_ctrl_c_leaves_whole_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The task at hand is finished, the exit code is 130, and how to go on is said."""
    monkeypatch.setitem(sweep.CHUNK, "analytic", 2)
    stop_after(monkeypatch, 3)
    assert run("--seq", "64", "--bs", "1:9", "-o", "s.csv") == 130
    assert "s.csv has 6 of 9 rows; the same command goes on" in capsys.readouterr().err
    assert [row["bs"] for row in rows()] == ["1", "2", "3", "4", "5", "6"]


def sweep_of(*args: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "lorafa_prof", "sweep", "--model", "./m", "--method", "lora", "-o", "s.csv", *args]


def processes_of(group: int) -> list[str]:
    """The processes of a group that are still there, by Linux's account."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


def end_when_begun(args: list[str], number: signal.Signals, *, all_of_them: bool) -> tuple[int, str]:
    """Send a signal when a sweep has written some rows; return its exit code and what it said, and see none survive."""
    begun = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment())
    file = Path("s.csv")
    while begun.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") > 2):
        time.sleep(0.01)
    (os.killpg if all_of_them else os.kill)(begun.pid, number)
    _, error = begun.communicate(timeout=60)
    patience = time.monotonic() + 30
    while processes_of(begun.pid) and time.monotonic() < patience:
        time.sleep(0.05)
    assert processes_of(begun.pid) == []
    return begun.returncode, error


INTERRUPTED = re.compile(
    r"lorafa-prof: s\.csv has \d+ of \d+ rows; the same command goes on\nlorafa-prof: interrupted\n"
)


@posix
@pytest.mark.parametrize(
    ("number", "all_of_them"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)],
    ids=["Ctrl-C", "kill", "kill -9"],
)
def test_processes_end_with_their_sweep(number: signal.Signals, all_of_them: bool) -> None:
    """Whole rows are left, no process is, and the same command goes on to the file that nothing interrupted."""
    args = sweep_of("--seq", "64,128", "--rank", "1:80", "--jobs", "2")
    code, error = end_when_begun(args, number, all_of_them=all_of_them)
    if number == signal.SIGKILL:
        assert (code, error) == (-signal.SIGKILL, "")
    else:
        assert code == 130
        assert INTERRUPTED.fullmatch(error)
    part = Path("s.csv").read_bytes()
    assert part.endswith(b"\r\n")
    assert 2 < part.count(b"\r\n") < 160
    assert run("--seq", "64,128", "--rank", "1:80", "-o", "s.csv") == 0
    assert Path("s.csv").read_bytes().startswith(part)
    assert run("--seq", "64,128", "--rank", "1:80", "-o", "t.csv") == 0
    assert Path("s.csv").read_bytes() == Path("t.csv").read_bytes()


def test_a_process_that_dies_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configurations it worked on have the reason, and the others their figures."""
    from lorafa_prof.cli import sweep_workers

    give = sweep_workers.Workers._give

    def deadly(self: Any, number: int, task: Task) -> None:
        give(self, number, task)
        if task.block.options["rank"] == 3:
            (busy,) = [worker for worker, _, of in self._busy.values() if of is task]
            busy.process.kill()

    monkeypatch.setattr(sweep_workers.Workers, "_give", deadly)
    assert run("--seq", "64", "--bs", "1:2", "--rank", "1:5", "--jobs", "2", "-o", "s.csv") == 0
    assert [(row["rank"], row["error"]) for row in rows() if row["error"]] == [
        ("3", "the process that worked on this was ended by SIGKILL")
    ] * 2
    assert [row["peak_allocated_bytes"] == "" for row in rows()] == [row["rank"] == "3" for row in rows()]


SIMULATED = ("--engine", "simulate", "--seq", "64,600", "--bs", "1:3", "--gpu", "rtx4090,h100", "--jobs", "2")


def test_simulation_over_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes make the rows in order, with each card's own kernels: those of predict."""
    pytest.importorskip("peft")
    assert run(*SIMULATED, "-o", "s.csv") == 0
    found = rows()
    assert [(row["seq"], row["bs"], row["device"]) for row in found] == [
        (seq, bs, gpu) for seq in ("64", "600") for bs in "123" for gpu in ("rtx4090", "h100")
    ]
    assert [row["error"] != "" for row in found] == [False] * 6 + [True] * 6
    args = ("--model", "./m", "--method", "lora", "--engine", "simulate", "--seq", "64", "--bs", "3", "--gpu", "h100")
    (alone,) = predicted(capsys, *args)
    assert {**found[5], "max_bs": alone["max_bs"]} == {**found[5], **alone}


@posix
@pytest.mark.slow
def test_simulation_is_taken_up_after_ctrl_c() -> None:
    """As the closed forms are."""
    pytest.importorskip("peft")
    args = sweep_of(*SIMULATED)
    code, error = end_when_begun(args, signal.SIGINT, all_of_them=True)
    assert code == 130
    assert INTERRUPTED.fullmatch(error)
    part = Path("s.csv").read_bytes()
    assert part.endswith(b"\r\n")
    done = subprocess.run(args, check=False, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert Path("s.csv").read_bytes().startswith(part)
    assert len(rows()) == 12


def test_a_link_times_several_cards(capsys: pytest.CaptureFixture[str]) -> None:
    """With what a card can send there is a time; without it the reason; a link without times is refused."""
    args = ["sweep", "--model", "llama2-7b", "--method", "lora", "--gpu", "l40s", "--gpus", "8", "--shard", "ddp"]
    assert main([*args, "--timed", "--link", "20GB/s"]) == 0
    [linked] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert main([*args, "--timed"]) == 0
    [alone] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(linked["step_s"]) > 0
    assert alone["step_s"] == ""
    assert "--link" in alone["why_no_time"]
    assert main([*args, "--link", "20GB/s"]) == 2
    assert "--link is for step times: add --timed" in capsys.readouterr().err
