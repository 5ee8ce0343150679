"""`lorafa-prof oom`: what it prints, what scripts get, what it refuses, and the search on a device that is there.

Measuring processes are the ones of tests/measure/faults.py, which go wrong as the model's folder is called.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.catalog import device_names, load_device
from lorafa_prof.cli import main
from lorafa_prof.results import Threshold, results_in
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.profile import MatmulRates
from tests.measure.runs import pretend
from tests.support.configs import tiny_configs

LLAMA = ("oom", "--model", "llama2-7b", "--seq", "1024")


def answered(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run the command, expect success and nothing on stderr, and return stdout."""
    assert main(list(args)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """Run the command, expect a refusal in one line on stderr, and return that line."""
    assert main(list(args)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def thresholds(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(answered(capsys, *args, "--format", "json"))["thresholds"]
    return found


# -- what it prints ----------------------------------------------------------------------------------------------


def test_a_row_for_each_card_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    """Card by card the five methods, the largest batch, what is left there and what one more lacks; then advice."""
    text = answered(capsys, *LLAMA, "--gpu", "rtx4090", "--gpu", "a100-80gb")
    lines = [line.split() for line in text.splitlines()]
    rows = [line for line in lines if line[:1] in (["rtx4090"], ["a100-80gb"]) and "GiB" in line[2:3]]
    assert [row[3] for row in rows] == ["Full-FT", "LoRA", "LoRA-FA", "QLoRA", "VeRA"] * 2
    assert [int(row[4]) for row in rows] == [0, 0, 2, 1, 1, 6, 7, 14, 8, 6]
    assert "largest batch that fits: llama2-7b: 1,024 tokens, bf16" in text
    assert "what would make the next batch fit at the least time" in text
    text = answered(capsys, *LLAMA, "--gpu", "a10,a100-80gb", "--method", "lora", "--no-advice")
    assert "CUDA context not known, and so not counted: a10." in " ".join(text.split())


def test_a_single_threshold_has_all_its_advice(capsys: pytest.CaptureFixture[str]) -> None:
    """With options to copy, bytes saved, the verdict, the new threshold, FLOPs, and whether the result changes."""
    text = answered(capsys, *LLAMA, "--gpu", "rtx4090", "--method", "lora")
    assert "rtx4090, LoRA: what would make batch 1 fit" in text
    [found] = thresholds(capsys, *LLAMA, "--gpu", "rtx4090", "--method", "lora")
    assert Threshold.from_json(found).to_json() == found
    assert [change["options"] in " ".join(text.split()) for change in found["advice"]] == [True] * len(found["advice"])
    [row] = [line for line in text.splitlines() if "--checkpointing full" in line]
    assert row.split()[-1] == "no"
    assert " yes " in row
    assert "- Time: of a token, as a share of that without the change" in text
    assert "what would make" not in answered(capsys, *LLAMA, "--gpu", "rtx4090", "--method", "lora", "--no-advice")


def test_markdown_and_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """CSV has a row a threshold with plain integers; the value along the axis is empty, since it is what was found."""
    args = (*LLAMA, "--gpu", "rtx4090,t4", "--method", "lora,lora-fa")
    rows = list(csv.DictReader(io.StringIO(answered(capsys, *args, "--format", "csv"), newline="")))
    assert [(row["device"], row["method"]) for row in rows] == [
        ("rtx4090", "lora"), ("rtx4090", "lora-fa"), ("t4", "lora"), ("t4", "lora-fa"),
    ]  # fmt: skip
    assert (rows[1]["max"], rows[1]["first_oom"], rows[1]["bs"], rows[1]["seq"]) == ("2", "3", "", "1024")
    assert rows[1]["peak_device_bytes_at_max"] == ""
    assert int(rows[1]["headroom_bytes_at_max"]) > 0 > -int(rows[1]["shortfall_bytes"])
    assert rows[1]["advice"] == "gradient accumulation: 2 micro-batches of 2 at most"
    file = tmp_path / "found.md"
    assert main([*args, "-o", str(file)]) == 0
    assert file.read_text("utf-8").startswith("### largest batch that fits: llama2-7b")


# -- what scripts get --------------------------------------------------------------------------------------------


def test_json_holds_the_contract_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Device, method, axis, max, first_oom and the bytes at max; unknown figures are null; `results_in` reads it."""
    found = thresholds(capsys, *LLAMA, "--gpu", "a100-80gb", "--axis", "rank", "--method", "lora,vera", "--no-advice")
    assert [t["method"] for t in found] == ["lora", "vera"]
    for data in found:
        assert (data["schema"], data["engine"], data["device"], data["axis"]) == (1, "analytic", "a100-80gb", "rank")
        assert data["peak_device_bytes_at_max"] is None
        assert data["peak_allocated_bytes_at_max"] == data["at_max"]["memory"]["peak_allocated_bytes"]
        room = data["capacity_bytes"] - data["context_bytes"]
        assert data["headroom_bytes_at_max"] == room - data["peak_allocated_bytes_at_max"]
        assert Threshold.from_json(data).to_json() == data
    assert [t.to_json() for t in results_in({"thresholds": found})] == found


def test_the_verdicts_are_those_of_predict(capsys: pytest.CaptureFixture[str]) -> None:
    """The command against the other command, on both sides of the threshold, along each axis."""
    for axis in ("bs", "seq", "rank"):
        args = ["--model", "qwen2.5-0.5b", "--bs", "2", "--gpu", "t4", "--method", "lora"]
        [found] = thresholds(capsys, "oom", *args, "--axis", axis, "--no-advice")
        for value, fits in ((found["max"], True), (found["first_oom"], False)):
            assert main(["predict", *args, f"--{axis}", str(value), "--format", "json"]) == 0
            [told] = json.loads(capsys.readouterr().out)["predictions"]
            assert told["fit"][0]["fits"] is fits
            edge = found["at_max"] if fits else found["at_first_oom"]
            del told["memory"]["peak_blocks_bytes"], edge["memory"]["peak_blocks_bytes"]  # predict's alone
            assert edge["memory"] == told["memory"]
            assert edge["headroom_bytes"] == told["fit"][0]["headroom_bytes"]


def test_the_times_are_those_of_predict(capsys: pytest.CaptureFixture[str]) -> None:
    """Step time, tokens per second and MFU at the threshold, as the other command has them for that batch."""
    args = ["--model", "llama2-7b", "--seq", "1024", "--gpu", "a100-80gb", "--method", "lora"]
    [found] = thresholds(capsys, "oom", *args, "--no-advice")
    assert main(["predict", *args, "--bs", str(found["max"]), "--format", "json"]) == 0
    [fit] = json.loads(capsys.readouterr().out)["predictions"][0]["fit"]
    assert (found["profile"], found["why_no_time"]) == ("default", None)
    for name in ("step_s", "tokens_per_s", "mfu"):
        assert found[f"{name}_at_max"] == found["at_max"][name] == fit[name]
    assert "step time by the default profile of a100-80gb" in " ".join(found["assumptions"])
    text = answered(capsys, "oom", *args, "--no-advice")
    assert "how fast the largest batch trains" in text


def test_no_time_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    """bf16 on a T4 has no rate, and a card of which only the memory is known has none: null, and a sentence."""
    args = ("oom", "--model", "qwen2.5-0.5b", "--method", "lora", "--seq", "128", "--no-advice")
    [found] = thresholds(capsys, *args, "--gpu", "t4")
    assert (found["step_s_at_max"], found["mfu_at_max"], found["profile"]) == (None, None, None)
    assert "no rate of matrix products in bf16" in found["why_no_time"]
    [found] = thresholds(capsys, *args, "--cap", "16GiB")
    assert found["step_s_at_max"] is None
    assert "no memory bandwidth of 16.00 GiB card is known" in found["why_no_time"]
    assert "no memory bandwidth of 16.00 GiB card is known" in " ".join(
        answered(capsys, *args, "--cap", "16GiB").split()
    )


def test_a_measured_profile_times_its_card(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its card is the one that is asked about where none is named; another one's profile is refused."""
    card = default_profile(load_device("a100-80gb"))
    slow = replace(card, measured=True, matmul={"bf16": MatmulRates(flops_per_s=23e12)})
    slow = replace(slow, matmul={**slow.matmul, "fp32": card.matmul["fp32"]})
    file = tmp_path / "slow.json"
    file.write_text(json.dumps(slow.to_json()), "utf-8")
    args = ("oom", "--model", "qwen2.5-0.5b", "--method", "lora", "--seq", "512", "--no-advice")
    [before] = thresholds(capsys, *args, "--gpu", "a100-80gb")
    [after] = thresholds(capsys, *args, "--profile", str(file))
    assert (after["device"], after["max"], after["profile"]) == ("a100-80gb", before["max"], "measured")
    assert after["step_s_at_max"] > 2 * before["step_s_at_max"]
    assert "a profile of a100-80gb, which --gpu does not name (h100)" in refused(
        capsys, *args, "--profile", str(file), "--gpu", "h100"
    )
    assert "--profile is for predicted step times" in refused(
        capsys, *args, "--profile", str(file), "--engine", "measure"
    )


def test_default_methods_that_have_no_rank_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """And said to be; named, full fine-tuning is refused."""
    assert main([*LLAMA, "--gpu", "a100-80gb", "--axis", "rank", "--no-advice"]) == 0
    assert capsys.readouterr().err == (
        "lorafa-prof: full is left out: full fine-tuning has no rank: --axis rank needs an adapter method\n"
    )
    assert "has no rank" in refused(capsys, *LLAMA, "--gpu", "a100-80gb", "--axis", "rank", "--method", "full")


def test_every_card_of_the_catalog(capsys: pytest.CaptureFixture[str]) -> None:
    """`--gpu all`, each card once."""
    found = thresholds(capsys, *LLAMA, "--gpu", "all,t4", "--method", "lora-fa", "--no-advice")
    assert [t["device"] for t in found] == device_names()


def test_a_cap_is_a_smaller_card(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone it is a card of that size; of a card with a known CUDA context it is what the allocator may have, as for
    `measure`; it makes no card larger.
    """
    one = ("--method", "lora-fa", "--no-advice")
    [alone] = thresholds(capsys, *LLAMA, "--cap", "24GiB", *one)
    assert (alone["device"], alone["capacity_bytes"], alone["context_bytes"]) == ("24.00 GiB card", 24 * 2**30, None)
    [capped] = thresholds(capsys, *LLAMA, "--cap", "24GiB", "--gpu", "a100-80gb", *one)
    assert capped["capacity_bytes"] == 24 * 2**30 + capped["context_bytes"]
    assert (capped["max"], capped["headroom_bytes_at_max"]) == (alone["max"], alone["headroom_bytes_at_max"])
    [whole] = thresholds(capsys, *LLAMA, "--cap", "200GiB", "--gpu", "a100-80gb", *one)
    assert whole["capacity_bytes"] == 84974501888


def test_the_length_to_begin_with_is_of_no_account(capsys: pytest.CaptureFixture[str]) -> None:
    """RoBERTa has 512 positions, fewer than the default length: along that axis it does not matter."""
    args = ("oom", "--model", "roberta-base", "--axis", "seq", "--gpu", "a100-80gb", "--method", "lora")
    [found] = thresholds(capsys, *args)
    assert (found["max"], found["first_oom"], found["limit"]) == (512, None, 512)
    assert "the table of positions of roberta-base ends at 512" in found["limited_by"]
    assert thresholds(capsys, *args, "--seq", "64")[0]["at_max"] == found["at_max"]


# -- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "on which card? Name one with --gpu"),
        (("--gpu", "rtx4091"), "unknown gpu 'rtx4091'; did you mean rtx4090"),
        (("--gpu", ""), "an empty name"),
        (("--cap", "much"), "not a size in bytes: 'much'"),
        (("--cap", "1KiB"), "memory must be between"),
        (("--cap", "999999999TiB"), "memory must be between"),
        (("--gpu", "t4", "--method", "lorra"), "unknown method 'lorra'; did you mean lora"),
        (("--gpu", "t4", "--seq", "5000"), "beyond the 4096 positions of llama2-7b"),
        (("--gpu", "t4", "--bs", "99999999"), "batch size must be between 1 and 1048576"),
        (("--gpu", "t4", "--rank", "0"), "rank must be between"),
        (("--gpu", "t4", "--method", "lora-ga", "--quant", "int8"), "int8 weights have none"),
        (("--gpu", "t4", "--expandable-segments"), "go with --engine simulate"),
        (("--gpu", "t4", "--device", "cpu"), "go with --engine measure"),
    ],
)
def test_refusals_name_the_mistake(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str) -> None:
    """In one line, before anything is searched."""
    assert said in refused(capsys, "oom", "--model", "llama2-7b", *args)


@pytest.mark.parametrize("engine", ["analytic", "simulate", "measure"])
def test_several_processes_do_not_search(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """As torchrun starts them: each would search for itself; one process alone, as torchrun counts it, may."""
    args = ("--gpu", "t4", "--method", "lora", "--no-advice")
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refused(capsys, *LLAMA, *args, "--engine", engine)
    assert "oom searches in one process, and WORLD_SIZE says that 2 were started: start it without torchrun" in said
    if engine == "analytic":
        monkeypatch.setenv("WORLD_SIZE", "1")
        answered(capsys, *LLAMA, *args)


def test_an_unknown_axis(capsys: pytest.CaptureFixture[str]) -> None:
    """The ones that there are are named."""
    assert main([*LLAMA, "--gpu", "t4", "--axis", "batch"]) == 2
    assert "'batch' is not one of 'bs', 'seq', 'rank'" in capsys.readouterr().err


def test_a_model_that_fits_at_no_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """A result and no failure: max 0, and what would help most, though nothing makes it fit."""
    [found] = thresholds(capsys, "oom", "--model", "llama3-70b", "--gpu", "t4", "--method", "lora")
    assert (found["max"], found["first_oom"], found["at_max"]) == (0, 1, None)
    assert found["shortfall_bytes"] > 100 * 2**30
    assert found["advice"]
    assert not any(change["fits"] for change in found["advice"])


def test_thresholds_are_compared_with_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`compare` says what the file holds."""
    file = tmp_path / "found.json"
    assert main([*LLAMA, "--gpu", "t4", "--method", "lora", "--no-advice", "-o", str(file)]) == 0
    assert "holds thresholds" in refused(capsys, "compare", str(file))


# -- by simulated steps ------------------------------------------------------------------------------------------


def test_a_simulated_search(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Trials are told on stderr; the failing one has PyTorch's message; settings of the allocator are heeded."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_configs()["llama"]))
    model = ("--model", str(tmp_path), "--method", "lora", "--rank", "4", "--seq", "32", "--cap", "2MiB")
    args = ["oom", *model, "--engine", "simulate", "--alloc-conf", "expandable_segments:True", "--format", "json"]
    assert main([*args, "--no-advice"]) == 0
    out, err = capsys.readouterr()
    [found] = json.loads(out)["thresholds"]
    assert (found["max"], found["first_oom"], found["engine"], found["advice"]) == (0, 1, "simulate", [])
    assert found["at_first_oom"]["oom"].startswith("CUDA out of memory.")
    assert any("expandable_segments" in line for line in found["assumptions"])
    assert "trial 1 lora, batch 2 x 32, rank 4 on 2.00 MiB card: simulating" in err


# -- on the device that is there ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and measuring processes that only pretend: each step peaks at 8 MiB."""
    return pretend(tmp_path, monkeypatch)


def measuring(folder: Path, deeds: str, *args: str) -> list[str]:
    (folder / deeds).mkdir(exist_ok=True)
    config = tiny_configs()["llama"] | {"max_position_embeddings": 512}
    (folder / deeds / "config.json").write_text(json.dumps(config))
    model = ("--model", f"./{deeds}", "--method", "lora", "--rank", "4", "--seq", "64")
    return ["oom", *model, "--engine", "measure", "--device", "cpu", *args]


def tried(folder: Path) -> list[int]:
    """The batches of the trials that really ran."""
    log = folder / "log"
    return [int(line.split()[1]) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_search_by_runs_goes_on_where_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials are kept beside the result, as measurements; the same command has nothing left to run; --restart has."""
    args = measuring(folder, "oom-above+3", "--cap", "16MiB", "-o", "found.json")
    assert main(args) == 0
    assert "trial 1 lora, batch 1 x 64, rank 4" in capsys.readouterr().err
    [found] = json.loads((folder / "found.json").read_text())["thresholds"]
    assert (found["max"], found["first_oom"], found["engine"]) == (3, 4, "measure")
    assert found["device"] == "16.00 MiB emulated on Fake 1"
    assert found["headroom_bytes_at_max"] == 8 * 2**20
    assert found["at_first_oom"]["memory"] is None
    assert found["at_first_oom"]["oom"].startswith("OutOfMemoryError: CUDA out of memory.")
    assert found["advice"] == []
    before = tried(folder)
    assert len(before) == len(set(before))
    kept = json.loads((folder / "found.trials.json").read_text())["measurements"]
    assert sorted(m["run"]["bs"] for m in kept) == sorted(before)
    assert main(args) == 0
    assert "kept from found.trials.json" in capsys.readouterr().err
    assert tried(folder) == before
    assert main([*args, "--restart"]) == 0
    assert len(tried(folder)) == 2 * len(before)


def test_a_trial_that_fails_is_no_threshold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A crash says nothing of memory: exit code 4, with the configuration and what happened."""
    assert main(measuring(folder, "error", "--cap", "16MiB")) == 4
    err = capsys.readouterr().err.splitlines()[-1]
    assert "lora, batch 1 x 64: error: ValueError: the layers do not match" in err


def test_no_such_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4; and the CPU needs a size to emulate, no larger than there is."""
    args = measuring(folder, "well")
    args[args.index("cpu")] = "cuda"
    assert "no CUDA device" in refused(capsys, *args, code=4)
    assert "say how much of it a run may have, with --cap" in refused(capsys, *measuring(folder, "well"))
    assert "cannot emulate it" in refused(capsys, *measuring(folder, "well", "--gpu", "t4"))


@pytest.mark.slow
def test_a_real_search_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny Llama's real steps on 4 MiB: what fits peaks within the cap, one sequence more beyond it."""
    config = tiny_configs()["llama"] | {"max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ("--model", str(tmp_path), "--method", "lora", "--rank", "4", "--seq", "64")
    args = ["oom", *model, "--engine", "measure", "--device", "cpu", "--cap", "4MiB", "--format", "json"]
    assert main(args) == 0
    [found] = json.loads(capsys.readouterr().out)["thresholds"]
    assert found["first_oom"] == found["max"] + 1
    assert found["at_max"]["memory"]["peak_allocated_bytes"] <= 4 * 2**20
    assert found["at_first_oom"]["memory"]["peak_allocated_bytes"] > 4 * 2**20


def test_a_link_times_what_advice_adds(capsys: pytest.CaptureFixture[str]) -> None:
    """Cards without NVLink send what the user says that they can: less takes longer, and without it nobody knows."""

    def ratio(*args: str) -> float | None:
        [found] = thresholds(capsys, "oom", "--model", "llama2-7b", "--method", "lora", "--gpu", "rtx4090", *args)
        [change] = [each for each in found["advice"] if each["options"] == "--gpus 8 --shard fsdp"]
        return change["time_ratio"]

    slow, fast = ratio("--link", "5GB/s"), ratio("--link", "50GB/s")
    assert slow is not None
    assert fast is not None
    assert slow > fast
    assert ratio() is None


def test_what_is_no_link(capsys: pytest.CaptureFixture[str]) -> None:
    """A rate of nothing, and a rate where no time is predicted."""
    args = ["oom", "--model", "llama2-7b", "--gpu", "rtx4090", "--link"]
    assert main([*args, "0GB/s"]) == 2
    assert "--link '0GB/s' is no rate" in capsys.readouterr().err
    assert main([*args, "5GB/s", "--engine", "measure"]) == 2
    assert "--link is for predicted step times" in capsys.readouterr().err
