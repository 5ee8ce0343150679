"""`lorafa-prof predict`: what it prints, what it answers to scripts, what it refuses and how."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.catalog import load_device
from lorafa_prof.cli import main
from lorafa_prof.results import PART_FIELDS, Prediction
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.profile import AttentionRates, Curve, MatmulRates

LLAMA = ("predict", "--model", "llama2-7b", "--bs", "8", "--seq", "1024")


def answered(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """Run the command, expect this exit code and nothing on stderr, and return stdout."""
    assert main(list(args)) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run the command, expect exit code 2, nothing on stdout and one line on stderr, and return that line."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def predictions(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    """Return the predictions that the JSON form holds."""
    found: list[dict[str, Any]] = json.loads(answered(capsys, *args, "--format", "json"))["predictions"]
    return found


# -- what it prints ----------------------------------------------------------------------------------------------


def test_five_methods_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """Methods are columns, parts are rows, in GiB; the total, its moment and what is trained follow."""
    rows = {}
    for line in answered(capsys, *LLAMA).splitlines():
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if len(cells) == 6:
            rows[cells[0]] = cells[1:]
    assert rows["GiB"] == ["Full-FT", "LoRA", "LoRA-FA", "QLoRA", "VeRA"]
    assert rows["base weights"] == ["12.55", "12.55", "12.55", "3.88", "12.55"]
    assert rows["trained values"] == ["6.74 B", "159.91 M", "87.03 M", "159.91 M", "1.37 M"]
    assert rows["reached in"] == ["loss backward"] * 5


def test_a_token_costs_the_same_in_every_micro_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """FLOPs are those of the whole step, and so are the tokens that they are divided by."""
    of_one, of_four = (
        [
            line.split()[-1]
            for line in answered(capsys, *LLAMA, "--method", "lora", "--accumulation", times).splitlines()
            if "GFLOP/token" in line
        ]
        for times in ("1", "4")
    )
    assert of_one == of_four == ["28.90", "29.16"]  # the closed forms' per token, see docs/analytic.md


def test_the_parts_of_the_table_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown in GiB adds up to the peak within the rounding of what is shown."""
    for found in predictions(capsys, *LLAMA):
        memory = found["memory"]
        assert sum(memory[part] for part in PART_FIELDS) == memory["peak_allocated_bytes"]


def test_each_gpu_gets_a_verdict_and_a_largest_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """In the table by words, in JSON by fields; the largest batch is consistent with the verdict."""
    args = (*LLAMA, "--gpu", "rtx4090,a100-80gb", "--method", "lora,lora-fa")
    text = answered(capsys, *args)
    assert "does not fit" in text
    assert "fits" in text
    for found in predictions(capsys, *args):
        assert [fit["device"] for fit in found["fit"]] == ["rtx4090", "a100-80gb"]
        for fit in found["fit"]:
            assert fit["fits"] == (fit["headroom_bytes"] >= 0) == (fit["max_bs"] >= 8)


@pytest.mark.parametrize("method", ["full", "lora", "lora-fa", "qlora", "vera"])
def test_the_largest_batch_fits_and_the_next_does_not(capsys: pytest.CaptureFixture[str], method: str) -> None:
    """The threshold that is printed is one by the command's own verdicts."""
    args = ("predict", "--model", "qwen2.5-0.5b", "--seq", "2048", "--method", method, "--gpu", "rtx3090")
    largest = predictions(capsys, *args)[0]["fit"][0]["max_bs"]
    for bs, fits in ((largest, True), (largest + 1, False)):
        assert predictions(capsys, *args, "--bs", str(bs))[0]["fit"][0]["fits"] is fits


def test_explain_names_every_tensor_at_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    """The r-wide A x of LoRA-FA is there with its formula; LoRA's full-width fp32 input is not."""
    text = answered(capsys, *LLAMA, "--method", "lora-fa", "--explain")
    assert "model.layers.*.mlp.down_proj: A x" in text
    assert "128·b·s x32" in text  # 2 bytes x rank 64, in the activations' dtype
    assert "adapter input to fp32" not in text
    assert "adapter input to fp32" in answered(capsys, *LLAMA, "--method", "lora", "--explain")


# -- what scripts get --------------------------------------------------------------------------------------------


ASSUMED = (
    "steady state: optimizer states exist, gradients are set to None after each step",
    "every sequence is full, nothing is padded; labels are a tensor of their own",
    "of the model's output only the loss is held in backward (loss = model(**batch).loss)",
)
ASSUMED_OF = {
    "full": ("optimizer adamw",),
    "lora": ("optimizer adamw", "adapters in fp32"),
    "lora-fa": ("optimizer lorafa", "adapters in fp32"),
    "qlora": (
        "optimizer adamw", "adapters in fp32", "linear weights in nf4 without double quantisation",
        "norms, embeddings and head stay as loaded: prepare_model_for_kbit_training is not called",
    ),
    "vera": ("optimizer adamw", "adapters in fp32"),
}  # fmt: skip
_PROFILE = "step time by the default profile of a100-80gb: its peaks, and published micro-benchmarks"
_WORKSPACES = "two cuBLAS workspaces, 16.25 MiB together, as on a100-80gb"
UNMODELLED = (
    "reserved memory: what the caching allocator keeps beyond what is allocated, and its fragmentation",
    (
        "what blocks above 1 MiB have beyond their tensors, up to 1 MiB each: in peak_blocks_bytes alone, which does "
        "not know what earlier steps have left free"
    ),
    "scratch buffers inside kernels other than attention's (sorts of embedding backward, reductions)",
    (
        "in the step time: data loading, logging, what other processes take of card and host, clocks lowered by heat "
        "or a power limit of one's own, the first steps (compilation, autotuning, the allocator's requests to the "
        "driver)"
    ),
    (
        "in the step time: operators that only make views, small tables or masks, which cost the host time (--engine "
        "simulate counts them): a small batch is launch-bound earlier than is said here"
    ),
)


def test_json_holds_the_contract_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown figures are null; every prediction says engine, versions, assumptions and what is left out."""
    found = predictions(capsys, *LLAMA, "--gpu", "a100-80gb")
    assert [p["run"]["method"]["name"] for p in found] == ["full", "lora", "lora-fa", "qlora", "vera"]
    for data in found:
        assert (data["schema"], data["engine"]) == (1, "analytic")
        assert data["memory"]["peak_reserved_bytes"] is None
        assert data["fit"][0]["oom"] is None
        assert data["versions"]["transformers"] == "5.23"
        method = data["run"]["method"]["name"]
        assert data["assumptions"] == [*ASSUMED, *ASSUMED_OF[method], _WORKSPACES, _PROFILE]
        assert data["unmodelled"] == [*UNMODELLED]
        assert Prediction.from_json(data).to_json() == data


def test_times_are_of_each_card_and_of_the_run_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """LoRA's utilisation is below full fine-tuning's; without a card there is no time; several have one each."""
    without = predictions(capsys, *LLAMA, "--method", "lora")[0]
    assert without["throughput"]["step_s"] is None
    assert "step time and MFU" in without["unmodelled"]
    full, lora = predictions(capsys, *LLAMA, "--method", "full,lora", "--gpu", "a100-80gb")
    for data in (full, lora):
        (fit,) = data["fit"]
        assert fit["profile"] == "default"
        assert data["throughput"]["step_s"] == fit["step_s"]
        assert fit["tokens_per_s"] == pytest.approx(8 * 1024 / fit["step_s"])
        assert sum(fit["time_by_kind"].values()) == pytest.approx(fit["step_s"])
        assert fit["mfu"] <= fit["hfu"]
    assert 0.3 < lora["throughput"]["mfu"] < full["throughput"]["mfu"] < 0.7
    assert lora["throughput"]["mfu_6n"] > 1.3 * lora["throughput"]["mfu"]
    (several,) = predictions(capsys, *LLAMA, "--method", "lora", "--gpu", "a100-80gb", "--gpu", "h100")
    assert several["throughput"]["step_s"] is None
    assert several["fit"][1]["step_s"] < several["fit"][0]["step_s"]


def test_a_card_without_the_dtype_has_no_time_but_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """bf16 on a T4, and several cards of which no link is known; fp16 on a T4 has one."""
    (data,) = predictions(capsys, *LLAMA, "--method", "lora", "--gpu", "t4")
    assert data["fit"][0]["step_s"] is None
    assert "no rate of matrix products in bf16 is known for t4" in data["fit"][0]["why_no_time"]
    assert any("bf16 is known for t4" in line for line in data["unmodelled"])
    (half,) = predictions(capsys, *LLAMA, "--method", "lora", "--gpu", "t4", "--dtype", "fp16")
    assert half["fit"][0]["step_s"] > 0
    (ddp,) = predictions(capsys, *LLAMA, "--method", "lora", "--gpu", "rtx4090", "--gpus", "2", "--shard", "ddp")
    assert "--link 25GB/s" in ddp["fit"][0]["why_no_time"]


def test_several_cards_have_a_time_where_their_link_is_known_or_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A faster link is waited for less; what is waited for is a phase and a kind of its own; one card has no link."""
    shared = (*LLAMA, "--method", "full", "--gpus", "8", "--shard", "fsdp")
    (known,) = predictions(capsys, *shared, "--gpu", "a100-80gb")
    (slow,) = predictions(capsys, *shared, "--gpu", "a100-80gb", "--link", "5GB/s")
    (named,) = predictions(capsys, *shared, "--gpu", "rtx4090", "--link", "25GB/s")
    for data in (known, slow, named):
        (fit,) = data["fit"]
        assert fit["time_by_phase"]["communication"] == fit["time_by_kind"]["communication"] > 0
        assert sum(fit["time_by_phase"].values()) == pytest.approx(fit["step_s"]) == data["throughput"]["step_s"]
        assert any("several cards" in line for line in data["unmodelled"])
    assert known["throughput"]["step_s"] < slow["throughput"]["step_s"]
    assert main([*LLAMA, "--link", "25GB/s"]) == 2
    assert "--link is between several cards" in capsys.readouterr().err


def test_a_measured_profile_stands_for_its_card(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One twice as fast in all halves the time; without --gpu its card is the one that is meant."""
    slow = default_profile(load_device("a100-80gb"))
    rates = {dtype: MatmulRates(flops_per_s=2 * rate.flops_per_s) for dtype, rate in slow.matmul.items()}
    attention = {
        dtype: AttentionRates(**{f.name: doubled(getattr(rate, f.name)) for f in fields(rate)})
        for dtype, rate in slow.attention.items()
    }
    fast = replace(
        slow, measured=True, matmul=rates, attention=attention, bandwidth=doubled(slow.bandwidth), kernel_s=1e-6,
        on_chip_bytes_per_s=2 * (slow.on_chip_bytes_per_s or 0), environment={"date": "2026-11-30"},
    )  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(fast.to_json()), encoding="utf-8")
    (before,) = predictions(capsys, *LLAMA, "--method", "lora", "--gpu", "a100-80gb")
    (after,) = predictions(capsys, *LLAMA, "--method", "lora", "--profile", str(path))
    assert after["fit"][0]["device"] == "a100-80gb"
    assert after["fit"][0]["profile"] == "measured"
    assert after["throughput"]["step_s"] == pytest.approx(before["throughput"]["step_s"] / 2, rel=1e-3)
    assert any("measured on NVIDIA A100" in line for line in after["assumptions"])
    said = refused(capsys, *LLAMA, "--profile", str(path), "--gpu", "h100")
    assert "a profile of a100-80gb, which --gpu does not name (h100)" in said


def doubled(curve: Any) -> Curve:
    """A curve of twice the rates."""
    return Curve(tuple((size, 2 * rate) for size, rate in curve.points))


def test_csv_has_a_row_a_method_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain integers under the names of the JSON contract."""
    text = answered(capsys, *LLAMA, "--gpu", "rtx4090", "--gpu", "t4", "--method", "lora", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["device"] for row in rows] == ["rtx4090", "t4"]
    assert rows[0]["parameters_trainable"] == "159907840"
    assert rows[0]["peak_allocated_bytes"] == rows[1]["peak_allocated_bytes"]


def test_markdown_is_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A header, a rule and as many columns in every row."""
    lines = [x for x in answered(capsys, *LLAMA, "--format", "markdown").splitlines() if x.startswith("|")]
    assert {line.count("|") for line in lines} == {7}


def test_a_file_gets_the_form_of_its_suffix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """-o writes the file whole and nothing to stdout."""
    target = tmp_path / "run.json"
    assert answered(capsys, *LLAMA, "-o", str(target)) == ""
    assert len(json.loads(target.read_text())["predictions"]) == 5


def test_check_turns_a_verdict_into_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """1 when something does not fit, 0 when all does; without --check the verdict is only told."""
    lora = (*LLAMA, "--method", "lora", "--gpu", "rtx4090")
    answered(capsys, *lora)
    answered(capsys, *lora, "--check", code=1)
    answered(capsys, *lora[:5], "--method", "lora-fa", "--bs", "1", "--gpu", "rtx4090", "--check")


def test_default_methods_that_a_model_rules_out_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, while the others are predicted; asked for by name, such a method is an error."""
    mixtral = ("predict", "--model", "mixtral-8x7b", "--seq", "512", "--dropout", "0.1")
    assert main(list(mixtral)) == 0
    out, err = capsys.readouterr()
    assert "VeRA" in out
    assert "LoRA-FA" not in out
    assert [line.split()[1] for line in err.splitlines()] == ["lora", "lora-fa", "qlora"]
    assert "fused experts" in refused(capsys, *mixtral, "--method", "vera,lora")


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        (("--quant", "nf4"), ["full"]),
        (("--optimizer", "lorafa"), ["full", "lora", "qlora", "vera"]),
    ],
)
def test_default_methods_that_options_exclude_are_named(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], left_out: list[str]
) -> None:
    """A method that nobody asked for does not stand in the way of those that can take the options."""
    assert main([*LLAMA, *options, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    named = [p["run"]["method"]["name"] for p in json.loads(out)["predictions"]]
    assert named == [name for name in ("full", "lora", "lora-fa", "qlora", "vera") if name not in left_out]
    assert [line.split()[1] for line in err.splitlines()] == left_out


def test_options_that_no_default_method_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """The error is the one that is not about a single method."""
    said = refused(capsys, "predict", "--model", "t5-base", "--bs", "8", "--seq", "512", "--loss", "fused")
    assert "does not model the fused loss for seq2seq-lm" in said


# -- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model", "lama2-7b"), "unknown model 'lama2-7b'; did you mean llama2-7b"),
        (("--model", "llama2-7b", "--gpu", "rtx409"), "unknown gpu 'rtx409'; did you mean rtx4090"),
        (("--model", "llama2-7b", "--method", "lorra"), "unknown method 'lorra'; did you mean lora"),
        (("--model", "llama2-7b", "--targets", "q_prj"), "unknown target module 'q_prj'; did you mean q_proj"),
        (("--model", "llama2-7b", "--targets", "q_proj,"), "--targets holds an empty name"),
        (("--model", "llama2-7b", "--bs", "0"), "batch size must be between 1 and"),
        (("--model", "llama2-7b", "--bs", "-3"), "batch size must be between 1 and"),
        (("--model", "llama2-7b", "--bs", "9" * 400), "batch size must be between 1 and"),
        (("--model", "llama2-7b", "--seq", "4097"), "beyond the 4096 positions of llama2-7b"),
        (("--model", "llama2-7b", "--rank", "0"), "rank must be between 1 and"),
        (("--model", "llama2-7b", "--dropout", "1"), "dropout must be below 1"),
        (("--model", "llama2-7b", "--dropout", "nan"), "dropout must be between 0 and 1"),
        (("--model", "llama2-7b", "--method", "lora-ga", "--quant", "nf4"), "nf4 weights have none"),
        (("--model", "llama2-7b", "--check"), "--check needs a card"),
        (("--model", "llama2-7b", "--gpus", "8"), "how are 8 GPUs to share the work? --shard ddp or fsdp"),
        (("--model", "llama2-7b", "--method", "lora-fa-peft", "--gpus", "8", "--shard", "fsdp"), "--optimizer adamw"),
        (("--model", "llama2-7b", "--method", "qlora", "--gpus", "8", "--shard", "zero3"), "--shard zero2"),
        (("--model", "llama2-7b", "--method", "full", "--gpus", "8", "--shard", "frozen"), "trains all"),
        (("--model", "/dev/zero"), "not a regular file"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_line(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str) -> None:
    """The mistake by its name and the nearest right thing, exit 2."""
    assert words in refused(capsys, "predict", *args)


HOSTILE = {
    "not json": "{",
    "a list": "[1, 2]",
    "endless nesting": "[" * 100_000,
    "too many layers": '{"model_type": "llama", "num_hidden_layers": 1' + "0" * 30 + "}",
    "a huge number": '{"model_type": "llama", "hidden_size": 1' + "0" * 5000 + "}",
    "text for a number": '{"model_type": "llama", "hidden_size": "4096"}',
    "no model type": '{"hidden_size": 4096}',
    "an unknown model type": '{"model_type": "perceptron"}',
    "not a number": '{"model_type": "llama", "hidden_size": NaN}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    """One line that names the file, never a traceback, and nothing is written."""
    config = tmp_path / "config.json"
    config.write_text(HOSTILE[name])
    output = tmp_path / "out.json"
    assert "config.json" in refused(capsys, "predict", "--model", str(config), "-o", str(output))
    assert not output.exists()


def test_a_folder_with_a_config_is_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Keys that a config leaves out have the defaults of transformers' class."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 512, "num_attention_heads": 8})
    )
    found = predictions(capsys, "predict", "--model", str(tmp_path), "--method", "full", "--seq", "128")[0]
    # 2 x 32000 x 512 for the tables, 512 for the last norm, and in each layer 4 d^2 + 3 x 11008 d + 2 d
    assert found["parameters"]["total"] == 2 * 32000 * 512 + 512 + 3 * (4 * 512**2 + 3 * 11008 * 512 + 2 * 512)


def test_an_unwritable_output_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Told before the work begins."""
    missing = tmp_path / "nowhere" / "run.json"
    assert "nowhere" in refused(capsys, *LLAMA, "-o", str(missing))
    assert not missing.parent.exists()
    if os.geteuid() != 0:  # root may write everywhere
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        refused(capsys, *LLAMA, "-o", str(tmp_path / "run.json"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--gpu", ""), "an empty name"),
        (("--gpu", ",", "--check"), "an empty name"),
        (("--method", "full", "--quant", "nf4"), "full fine-tuning cannot train nf4 weights"),
        (("--method", "lora", "--optimizer", "lorafa"), "the lorafa optimizer freezes A"),
        (("--method", "lora", "--targets", "all-linear,lm_head"), "all-linear stands alone"),
    ],
)
def test_what_contradicts_itself_is_refused(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
) -> None:
    """An unset variable in a script must not pass as a check, nor a run that could not train."""
    assert words in refused(capsys, *LLAMA, *args)


def test_a_target_in_one_layer_is_one_module(capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT matches whole name parts from the end, so a number names one layer: r (m + k) parameters."""
    for layer in (0, 1, 5, 31):
        args = (*LLAMA, "--method", "lora", "--rank", "8", "--targets", f"layers.{layer}.mlp.down_proj")
        assert predictions(capsys, *args)[0]["parameters"]["trainable"] == 8 * (11008 + 4096)


def test_qv_may_stand_beside_module_names(capsys: pytest.CaptureFixture[str]) -> None:
    """qv names the query and value projections, whatever the family calls them."""
    args = (*LLAMA, "--method", "lora", "--rank", "1", "--targets", "qv,o_proj")
    assert predictions(capsys, *args)[0]["parameters"]["trainable"] == 32 * 3 * (4096 + 4096)


def test_what_is_executed_beyond_model_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Flash attention's backward makes the scores again, 2 s d a token and layer; where only the head is adapted no
    attention runs backward.
    """
    for more, repeated in (((), 32 * 2 * 1024 * 4096), (("--targets", "lm_head"), 0)):
        throughput = predictions(capsys, *LLAMA, "--method", "lora", *more)[0]["throughput"]
        assert throughput["executed_flops"] - throughput["model_flops"] == 8 * 1024 * repeated


def test_the_context_of_a_card_is_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It decides the verdict, so it is shown; where nobody has measured it, that is said."""
    args = (*LLAMA, "--method", "lora-fa", "--gpu", "a100-80gb,h100")
    text = answered(capsys, *args)
    assert "CUDA context" in text
    assert "unknown" in text
    known, unknown = (fit["context_bytes"] for fit in predictions(capsys, *args)[0]["fit"])
    assert isinstance(known, int)
    assert unknown is None


# -- layers with adapters ------------------------------------------------------------------------------------------


def test_layers_with_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    """The table's title, the run of the JSON form and a column of the CSV form say which they are."""
    asked = (*LLAMA, "--method", "lora-fa", "--layers", "25%")
    assert "rank 64 on all-linear in layers 24-31 of 32" in " ".join(answered(capsys, *asked).split())
    (found,) = predictions(capsys, *asked)
    assert found["run"]["method"]["layers"] == list(range(24, 32))
    assert found["parameters"]["trainable"] == 87_031_808 // 4
    assert Prediction.from_json(found).run.adapted_layers == "24-31 of 32"
    (row,) = csv.DictReader(io.StringIO(answered(capsys, *asked, "--format", "csv")))
    assert row["layers"] == "24-31 of 32"


def test_layers_that_there_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with those that there are; of the default methods full fine-tuning is left out."""
    assert "no layer 40: its 32 layers are numbered 0 to 31" in refused(capsys, *LLAMA, "--layers", "0,40")
    assert "no adapters" in refused(capsys, *LLAMA, "--layers", "8", "--method", "full")
    assert main([*LLAMA, "--layers", "8"]) == 0
    out, err = capsys.readouterr()
    assert "Full-FT" not in out
    assert err.startswith("lorafa-prof: full is left out: full fine-tuning has no adapters")
