"""`lorafa-prof predict --engine simulate`, end to end on tiny models described by files."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.catalog import load_device
from lorafa_prof.cli import main
from lorafa_prof.results import PART_FIELDS, Prediction
from lorafa_prof.simulate.engine import simulate
from tests.support.configs import tiny_configs


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """A folder with the config.json of a tiny Llama."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_configs()["llama"] | {"max_position_embeddings": 512}))
    return str(tmp_path)


def command(model: str, *args: str) -> list[str]:
    return ["predict", "--engine", "simulate", "--model", model, "--bs", "2", "--seq", "64", "--rank", "4", *args]


def predicted(capsys: pytest.CaptureFixture[str], model: str, *args: str) -> list[dict[str, Any]]:
    assert main([*command(model, *args), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: list[dict[str, Any]] = json.loads(out)["predictions"]
    return found


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    assert main(list(args)) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_all_figures(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """The parts add up to the peak; reserved is no less, device-used is reserved and context; JSON reads back."""
    [data] = predicted(capsys, llama, "--method", "lora", "--gpu", "a100-80gb")
    memory = data["memory"]
    assert sum(memory[part] for part in PART_FIELDS) == memory["peak_allocated_bytes"]
    assert memory["peak_requested_bytes"] <= memory["peak_allocated_bytes"] <= memory["peak_reserved_bytes"]
    assert memory["peak_device_bytes"] == memory["peak_reserved_bytes"] + memory["context_bytes"]
    assert max(memory["moments"].values()) == memory["peak_allocated_bytes"]
    assert 0 <= memory["fragmentation_bytes"] < memory["peak_reserved_bytes"]
    assert data["engine"] == "simulate"
    assert set(data["versions"]) == {"engine", "torch", "transformers", "peft"}
    assert data["throughput"]["tokens_per_s"] == 2 * 64 / data["throughput"]["step_s"]
    [fit] = data["fit"]
    assert data["throughput"]["step_s"] == fit["step_s"] > 0
    assert fit["time_by_kind"]["waiting"] > 0.5 * fit["step_s"]  # so small a model is bound by launching
    assert (fit["fits"], fit["oom"], fit["device"]) == (True, None, "a100-80gb")
    found, card = Prediction.from_json(data), load_device("a100-80gb")
    assert found.to_json() == data
    largest = simulate(found.run.replace(bs=fit["max_bs"]), card)
    assert fit["max_bs"] > 1000
    assert largest.prediction([card], largest_batch=False).fit[0].fits


def test_default_methods_stand_side_by_side(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """Without --method the same five as with closed forms."""
    found = predicted(capsys, llama)
    assert [p["run"]["method"]["name"] for p in found] == ["full", "lora", "lora-fa", "qlora", "vera"]


def test_allocator_settings_change_reserved_memory_alone(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """Expandable segments take pages of 2 and 20 MiB; what is requested stays."""
    [plain] = predicted(capsys, llama, "--method", "lora")
    [expandable] = predicted(capsys, llama, "--method", "lora", "--expandable-segments")
    [spelled] = predicted(capsys, llama, "--method", "lora", "--alloc-conf", "expandable_segments:True")
    assert expandable["memory"] == spelled["memory"]
    assert expandable["memory"]["peak_requested_bytes"] == plain["memory"]["peak_requested_bytes"]
    assert any("expandable_segments=True" in line for line in expandable["assumptions"])


def test_settings_are_told_as_they_were_written(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """A list of divisions stays the list, and does not become one for each of the sixteen intervals."""
    conf = "roundup_power2_divisions:[256:1, 512:2,>:4],max_split_size_mb:128"
    [data] = predicted(capsys, llama, "--method", "lora", "--alloc-conf", conf)
    said = "allocator settings max_split_size_mb=128, roundup_power2_divisions=[256:1,512:2,>:4]"
    assert said in data["assumptions"]


def test_a_snapshot_on_stdout(llama: str, tmp_path: Path) -> None:
    """Nothing but the snapshot goes there, the prediction into its file."""
    args = command(llama, "--method", "lora", "--snapshot", "-", "-o", str(tmp_path / "run.json"))
    done = subprocess.run([sys.executable, "-m", "lorafa_prof", *args], capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert set(pickle.loads(done.stdout)) >= {"segments", "device_traces", "allocator_settings"}
    assert len(json.loads((tmp_path / "run.json").read_text())["predictions"]) == 1


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        (("--quant", "nf4"), ["full"]),
        (("--optimizer", "lorafa"), ["full", "lora", "qlora", "vera"]),
        (("--prepare-kbit", "peft"), ["full", "lora", "lora-fa", "vera"]),
    ],
)
def test_default_methods_that_options_exclude(
    capsys: pytest.CaptureFixture[str], llama: str, options: tuple[str, ...], left_out: list[str]
) -> None:
    """As with closed forms: left out with a note, and the others answered."""
    assert main([*command(llama), *options, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    named = [p["run"]["method"]["name"] for p in json.loads(out)["predictions"]]
    assert named == [name for name in ("full", "lora", "lora-fa", "qlora", "vera") if name not in left_out]
    assert [line.split()[1] for line in err.splitlines()] == left_out


def test_a_snapshot_is_written_and_replayed(capsys: pytest.CaptureFixture[str], llama: str, tmp_path: Path) -> None:
    """What PyTorch's viewer opens, our own replay reads: the same peaks, the same segments."""
    file = tmp_path / "run.pickle"
    [data] = predicted(capsys, llama, "--method", "lora-fa", "--snapshot", str(file))
    assert set(pickle.loads(file.read_bytes())) >= {"segments", "device_traces", "allocator_settings"}
    assert main(["replay", str(file), "--format", "json"]) == 0
    replayed = json.loads(capsys.readouterr().out)["replay"]
    for name in ("peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes"):
        assert replayed[name] == data["memory"][name]
    assert replayed["segments_as_recorded"] is True
    assert replayed["recorded_reserved_bytes"] == replayed["end_reserved_bytes"]


def test_a_card_that_is_too_small(capsys: pytest.CaptureFixture[str], tmp_path: Path, llama: str) -> None:
    """The verdict comes with PyTorch's own message, and --check turns it into exit code 1."""
    card = json.loads((Path(__file__).parents[2] / "lorafa_prof/catalog/devices/a100-40gb.json").read_text())
    card["name"], card["context"] = "small", None
    card["memory"]["total_bytes"] = 21 * 2**20
    file = tmp_path / "small.json"
    file.write_text(json.dumps(card))
    [data] = predicted(capsys, llama, "--method", "lora", "--gpu", str(file))
    [fit] = data["fit"]
    assert (fit["fits"], fit["max_bs"]) == (False, 0)
    assert fit["headroom_bytes"] < 0
    assert fit["oom"].startswith(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 21.00 MiB"
    )
    assert main([*command(llama, "--method", "lora", "--gpu", str(file)), "--check"]) == 1


def test_explain_names_modules_and_operators(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """Every tensor at the peak, alike layers together."""
    assert main(command(llama, "--method", "lora", "--explain")) == 0
    out = capsys.readouterr().out
    assert "model.layers.*.mlp.down_proj.lora_A.default: weight" in out
    assert "cuBLAS workspace" in out
    assert "For batch 2 x 64 tokens" in out
    assert "b = 2" not in out


def test_explain_names_states_and_gradients(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """As what they are, in the module of their parameter."""
    [data] = predicted(capsys, llama, "--method", "full", "--checkpointing", "full", "--attn", "eager", "--seq", "256")
    items = {(i["module"], i["tensor"]): i["category"] for i in data["ledger"]["items"]}
    projection = "model.layers.*.mlp.down_proj"
    assert items[projection, "exp_avg"] == items[projection, "exp_avg_sq"] == "optimizer"
    assert items["lm_head", "gradient of weight"] == "gradients"
    assert not any(tensor.startswith("zeros_like") for (_, tensor), kind in items.items() if kind == "optimizer")


def test_recomputation_is_a_phase(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """With the names that closed forms have for phases; what is kept of it is activations, as they say."""
    args = ("--method", "lora", "--checkpointing", "full", "--attn", "eager", "--seq", "256")
    [data] = predicted(capsys, llama, *args)
    memory = data["memory"]
    assert main(["predict", *command(llama, *args)[3:], "--format", "json"]) == 0
    closed = json.loads(capsys.readouterr().out)["predictions"][0]["memory"]
    assert set(memory["moments"]) == set(closed["moments"])
    assert memory["peak_moment"].startswith(("recompute: ", "backward: "))
    assert memory["peak_moment"].startswith(closed["peak_moment"])
    assert memory["saved_activations_bytes"] == closed["saved_activations_bytes"]
    assert memory["activations_bytes"] == pytest.approx(closed["activations_bytes"], rel=0.05)  # blocks are larger


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--alloc-conf", "expandable_segment:True"), "expandable_segments"),
        (("--method", "lora", "--gpu", "mi300x"), "CUDA's kernels"),
        (("--method", "lora", "--gpu", "a100-80gb", "--gpu", "mi300x"), "CUDA's kernels"),
        (("--snapshot", "/nowhere/x.pickle"), "does not exist"),
        (("--snapshot", "x.pickle"), "one method"),
        (("--method", "lora", "--snapshot", "-"), "-o FILE"),
        (("--method", "lora", "--snapshot", "-", "-o", "-"), "-o FILE"),
        (("--expandable-segments", "--alloc-conf", "expandable_segments: False"), "contradict"),
        (("--method", "lora-ga", "--quant", "nf4"), "nf4 weights have none"),
        (("--method", "lora", "--optimizer", "lorafa"), "lora-fa"),
        (("--method", "full", "--quant", "nf4"), "full fine-tuning"),
        (("--method", "lora", "--prepare-kbit", "peft"), "quantised"),
        (("--method", "lora", "--targets", "nowhere"), "nowhere"),
        (("--method", "lora", "--targets", "q_proj,nowhere"), "unknown target module 'nowhere'"),
        (("--method", "lora", "--targets", "all-linear,q_proj"), "stands alone"),
        (("--method", "vera", "--targets", "q_proj,embed_tokens"), "Embedding"),
        (("--method", "lora", "--gpus", "2"), "--shard ddp or fsdp"),
        (("--method", "lora", "--gpus", "2", "--shard", "zero2"), "--engine analytic"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], llama: str, args: tuple[str, ...], said: str) -> None:
    """One clear line, exit code 2, nothing half-done."""
    assert said in refused(capsys, *command(llama, *args))


@pytest.mark.parametrize(
    "option", [("--snapshot", "x.pickle"), ("--alloc-conf", "max_split_size_mb:64"), ("--expandable-segments",)]
)
def test_options_of_the_other_engine(capsys: pytest.CaptureFixture[str], llama: str, option: tuple[str, ...]) -> None:
    """A snapshot and allocator settings are of the replay: closed forms have none."""
    args = ["predict", "--model", llama, *option]
    assert "--engine simulate" in refused(capsys, *args)


@pytest.mark.parametrize(("missing", "extra"), [("torch", "torch"), ("peft", "torch"), ("bitsandbytes", "qlora")])
def test_a_missing_package(llama: str, missing: str, extra: str) -> None:
    """Exit code 3, and the command that installs it."""
    quant = ["--quant", "nf4"] if missing == "bitsandbytes" else []
    script = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        f"            raise ModuleNotFoundError('No module named {missing}', name={missing!r})\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from lorafa_prof.cli import main\n"
        f"sys.exit(main({command(llama, '--method', 'lora', *quant)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 3, done.stderr
    assert f"pip install 'lorafa-prof[{extra}]'" in done.stderr
    assert done.stdout == ""


def test_default_methods_without_bitsandbytes(
    capsys: pytest.CaptureFixture[str], llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the method that needs the package is left out; the others are answered."""
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main([*command(llama), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert [p["run"]["method"]["name"] for p in json.loads(out)["predictions"]] == ["full", "lora", "lora-fa", "vera"]
    assert "qlora is left out" in err
    assert "pip install 'lorafa-prof[qlora]'" in err


def test_each_card_is_judged_with_its_own_kernels(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """The verdict on a card does not depend on the cards named beside it: T4 has no flash attention, Hopper more
    workspace.
    """
    cards = ["a100-80gb", "t4", "h100"]
    alone = [predicted(capsys, llama, "--method", "lora", "--gpu", card)[0]["fit"][0] for card in cards]
    [together] = predicted(capsys, llama, "--method", "lora", "--gpu", ",".join(cards))
    assert together["fit"] == alone
    left = [fit["capacity_bytes"] - (fit["context_bytes"] or 0) - fit["headroom_bytes"] for fit in alone]
    assert left[2] > left[0]


def test_a_part_of_targets_that_means_several(capsys: pytest.CaptureFixture[str], llama: str) -> None:
    """qv within a list stands for the query and value projections, as it does alone."""
    [mixed] = predicted(capsys, llama, "--method", "lora", "--targets", "qv,o_proj")
    [spelled] = predicted(capsys, llama, "--method", "lora", "--targets", "q_proj,v_proj,o_proj")
    assert mixed["parameters"] == spelled["parameters"]


def test_moments_hold_the_peak_of_any_step(capsys: pytest.CaptureFixture[str]) -> None:
    """The peak may be in another step than the last, as it is here: the largest moment is the peak all the same."""
    [data] = predicted(capsys, "roberta-base", "--method", "full", "--seq", "512")
    assert max(data["memory"]["moments"].values()) == data["memory"]["peak_allocated_bytes"]


def test_libraries_say_nothing_and_all_versions_are_named(tmp_path: Path) -> None:
    """transformers' remarks on a configuration stay off stderr; the notes name bitsandbytes when any method used it."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_configs()["llama"] | {"loss_type": None}))
    args = [sys.executable, "-m", "lorafa_prof", *command(str(tmp_path), "--method", "lora,qlora")]
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bitsandbytes 0." in done.stdout.replace("\n  ", " ")
