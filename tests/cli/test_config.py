"""`--config FILE`: other tools' files are predicted as the flags that they stand for, and none of it is passed over."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main
from tests.support.configs import tiny_configs
from tests.support.tool_file import ToolFile
from tests.support.tool_files import ADAPTER, AXOLOTL_QLORA, DEEPSPEED, PARTS, TRAINING_ARGUMENTS, WHOLE

#: What the files that name no model are given beside them.
MORE = ("--model", "llama3.2-1b", "--method", "lora,dora", "--seq", "512")
#: A Trainer's arguments for a model that real steps are taken of, and the flags that they stand for.
TINY = """
per_device_train_batch_size: 2
max_length: 64
use_peft: true
lora_r: 4
lora_dropout: 0.0
lora_target_modules: [q_proj, v_proj]
dtype: float32
bf16: false
gradient_checkpointing: false
optim: adamw_torch
max_grad_norm: 0
loss_type: nll
"""
TINY_FLAGS = (
    "--method", "lora", "--bs", "2", "--seq", "64", "--rank", "4", "--targets", "q_proj,v_proj", "--dtype", "fp32",
    "--optimizer", "adamw",
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in (*WHOLE, *PARTS):
        (tmp_path / file.name).write_text(file.text, encoding="utf-8")
    return tmp_path


def predicted(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[list[dict[str, Any]], str]:
    """Return the predictions that the command prints, and what it says beside them."""
    assert main(["predict", *args, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out)["predictions"], err


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the one line by which a command refuses, with exit code 2 and nothing on stdout."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("file", [*WHOLE, *PARTS], ids=lambda file: file.name)
def test_a_file_is_the_flags_that_it_stands_for(file: ToolFile, capsys: pytest.CaptureFixture[str]) -> None:
    """The run and every figure of it are the same; what the file says is said on stderr and among the assumptions."""
    more = (*(() if file in WHOLE else MORE), *file.more.split())
    by_file, said = predicted(capsys, "--config", file.name, *more)
    by_flags, _ = predicted(capsys, *file.flags.split(), *more)
    kept = ("run", "memory", "throughput", "parameters")
    # The catalog finds a model by its hub id as by its alias, so that even the names agree.
    assert [{key: p[key] for key in kept} for p in by_file] == [{key: p[key] for key in kept} for p in by_flags]
    for part in (f"{file.name}, ", *file.says):
        assert part in said
        assert all(part in " ".join((*p["assumptions"], *p["unmodelled"])) for p in by_file)


def test_flags_override_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag counts before the file, also the denial of a switch, and the answer says which were overridden."""
    (found,), said = predicted(capsys, "--config", AXOLOTL_QLORA.name, "--bs", "5", "--no-amp", "--model", "llama2-7b")
    run = found["run"]
    assert (run["bs"], run["amp"], run["model"]["name"], run["seq"]) == (5, False, "llama2-7b", 2048)
    assert "not taken from the files: model, bs, amp" in said


def test_an_adapter_and_a_trainer_are_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Files of one run are taken together: what one says counts before another's defaults."""
    (found,), _ = predicted(
        capsys, "--config", ADAPTER.name, "--config", TRAINING_ARGUMENTS.name, "--seq", "256", "--loss", "hf"
    )
    run = found["run"]
    assert (run["method"]["name"], run["method"]["rank"], run["bs"], run["optimizer"]) == ("dora", 4, 2, "sgd")


def test_files_that_contradict_each_other_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Which files, which keys, which option and which values."""
    line = refused(capsys, "predict", "--config", DEEPSPEED.name, "--config", TRAINING_ARGUMENTS.name, *MORE)
    assert "ds_config.json: train_micro_batch_size_per_gpu and arguments.json: per_device_train_batch_size" in line
    assert "bs 4 or 2?" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base_model: a/b\nmicro_batch_size: 1\nper_device_train_batch_size: 2", "keys of several formats"),
        ("hello: 1", "of no format that is known (axolotl, LLaMA-Factory, LLaMA-Factory v1, torchtune"),
        ('{"model_type": "llama", "hidden_size": 8}', "give it with --model"),
        ("base_model: a/b\nmicro_batch_size: two", "f.yml: micro_batch_size must be a number, not 'two'"),
        ("base_model: a/b\nmicro_batch_size: 0", "micro_batch_size must be at least 1, not 0"),
        ("base_model: a/b\nrl: dpo", "f.yml: rl is not modelled"),
        ("base_model: a/b\nadapter: lora\nlora_r: 8\nlora_target_linear: true\nlora_modules_to_save: [lm_head]",
         "lm_head would be copied and trained whole"),
        ("base_model: ./here\nmicro_batch_size: 1", "paths in a file are not followed; name the model with --model"),
        ("base_model: /etc/passwd\nmicro_batch_size: 1", "paths in a file are not followed"),
        ("base_model: llama2-7b\noptimizer: muon", "'muon' is not modelled; say with --optimizer"),
        ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}', "offload_param is not modelled"),
        ('{"zero_optimization": {"stage": 7}}', "stage must be 0, 1, 2 or 3"),
        ("distributed_type: MEGATRON_LM", "distributed_type is not modelled"),
        ("cutoff_len: 9\nstage: dpo", "f.yml: stage is not modelled"),
        ("micro_batch_size: 1", "The files name no model"),
        ("base_model: a/b\nexpert_parallel_size: 4", "expert_parallel_size is not modelled"),
        ("base_model: a/b\nfsdp: [full_shard]\nfsdp_config: {fsdp_sharding_strategy: HYBRID_SHARD}",
         "HYBRID_SHARD is not modelled"),
        ("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_sharding_strategy: HYBRID_SHARD}",
         "HYBRID_SHARD is not modelled"),
        ("cutoff_len: 9\ntensor_model_parallel_size: 2", "as Megatron does"),
        ("template: x\nexport_dir: out", "it writes a merged model, and trains none"),
        ("cutoff_len: 9\nuse_asft_loss: true", "the logits of a second model"),
        ("model: {_component_: torchtune.models.llama2.llama2_7b}\nloss: {_component_: torchtune.rlhf.loss.DPOLoss}",
         "DPOLoss takes more than one pass or model"),
        ("model: {_component_: a}\nteacher_model: {_component_: b}", "a second model, whose logits are distilled"),
        ("model: {_component_: a}\nprompt: hello", "it evaluates or generates, and trains nothing"),
        ("model: {_component_: a, image_size: 560}", "a model of text and images"),
        ("model_class: cls\nmicro_batch_size: 1", "model_class is not modelled: cls scores tokens"),
        ("model_class: llm\npref_loss: orpo", "pref_loss is not modelled: preferences"),
        ("train_dataset: a\ncutoff_len: 9\nfinetuning_type: lora", "cutoff_len (LLaMA-Factory), train_dataset"),
        ("peft_config: {r: 8}", "f.yml: peft_config.name must be a name"),
        ("model: llama2-7b\npeft_config: {name: freeze}", "'freeze' is not modelled; say with --method"),
        ("peft_config: {name: lora, export_dir: out}", "it writes a merged model, and trains none"),
        ("peft_config: {name: lora, modules_to_save: [lm_head]}", "lm_head would be copied and trained whole"),
        ("model: llama2-7b\npeft_config: {name: lora, adapter_name_or_path: out}", "the adapter's own counts"),
        ("model: llama2-7b\npeft_config: {name: lora, target_modules: '.*q_proj'}", "a pattern is nothing to this"),
        ("model: llama2-7b\nquant_config: {name: bnb, quantization_bit: 2}", "bnb nf4 of 2 bits is not modelled"),
        ("model: llama2-7b\noptim_config: {name: muon}", "'muon' is not modelled; say with --optimizer"),
        ("dist_config: {name: fsdp2, offload_params: true}", "dist_config.offload_params is not modelled"),
        ("model: llama2-7b\ndist_config: {name: fsdp2}\nbf16: false\npeft_config: {name: lora}",
         "in fp32 that it keeps as stored"),
        ("model: llama2-7b\ndist_config: {name: deepspeed, config_file: ds.json}", "give it with --config as well"),
        ("dist_config: {name: fsdpturbo, ep_size: 4}", "experts are split over GPUs"),
        ("model: llama2-7b\ndist_config: {name: fsdpturbo}", "'fsdpturbo' is not modelled; --shard fsdp is nearest"),
        ("model_class: llm\ncp_size: 2", "cp_size is not modelled: it splits sequences"),
        ("model_class: llm\nmp_replicate_size: 2", "mp_replicate_size is not modelled"),
        ("model_class: llm\ndp_size: 2\nmp_shard_size: 4", "mp_shard_size must be dp_size, 2, not 4"),
        ("model: llama2-7b\nmodel_class: llm\nglobal_batch_size: 16", "how many micro-batches of 1 a step has"),
        ("model_class: llm\ndp_size: 2\nglobal_batch_size: 3", "a multiple of micro_batch_size times the GPUs, 2"),
        ("model_class: llm\nbatching_strategy: packed", "batching_strategy must be one of normal, padding_free"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused(
    text: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With file and key, in one line, exit code 2."""
    (folder / "f.yml").write_text(text)
    more = ("--model", "llama2-7b") if "_SHARD" in words or "SHARD_" in words else ()
    assert words in refused(capsys, "predict", "--config", "f.yml", *more).replace("\n", " ")


def test_an_option_that_is_not_modelled_can_be_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal names the flag, and with it the rest of the file counts."""
    (folder / "f.yml").write_text("base_model: llama2-7b\nsequence_len: 256\noptimizer: muon")
    (found,), _ = predicted(capsys, "--config", "f.yml", "--optimizer", "adamw")
    assert (found["run"]["optimizer"], found["run"]["seq"]) == ("adamw", 256)


def test_a_file_of_v1_and_its_deepspeed_file_are_one_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """v1 says what is trained, DeepSpeed's file how GPUs share it; gradients are not clipped by v1 then."""
    (folder / "f.yml").write_text(
        "model: llama3.2-1b\ntrain_dataset: a\nmicro_batch_size: 4\ncutoff_len: 512\n"
        "dist_config: {name: deepspeed, config_file: ds_config.json}\n"
    )
    more = ("--gpus", "4", "--method", "lora")
    (found,), said = predicted(capsys, "--config", "f.yml", "--config", DEEPSPEED.name, *more)
    (wanted,), _ = predicted(
        capsys, "--model", "llama3.2-1b", "--bs", "4", "--seq", "512", "--attn", "sdpa", "--checkpointing", "full",
        "--optimizer", "adamw", "--shard", "zero2", *more,
    )  # fmt: skip
    assert (found["run"], found["memory"]) == (wanted["run"], wanted["memory"])
    assert "(another file, which is not opened): dist_config.config_file" in said


def test_other_files_are_not_opened(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that a file names is listed, with the way to give it."""
    (folder / "zero.json").write_text("not even JSON")
    (folder / "f.yml").write_text("base_model: llama2-7b\nsequence_len: 256\ndeepspeed: zero.json")
    _, said = predicted(capsys, "--config", "f.yml")
    assert "not used (another file, which is not opened: give it with --config as well): deepspeed" in said


def test_under_deepspeed_there_is_no_autocast(capsys: pytest.CaptureFixture[str]) -> None:
    """As accelerate has it: DeepSpeed takes the model to bf16 itself; and default clipping is not counted there."""
    Path("t.yml").write_text("per_device_train_batch_size: 4\nbf16: true\n")
    found, said = predicted(capsys, "--config", "t.yml", "--config", DEEPSPEED.name, *MORE, "--gpus", "2")
    assert {(p["run"]["amp"], p["run"]["dtype"], p["run"]["clip"]) for p in found} == {(False, "bf16", False)}
    assert "no autocast" in said


def test_oom_takes_files(capsys: pytest.CaptureFixture[str]) -> None:
    """The thresholds of the file's run, with what it says."""
    flags = AXOLOTL_QLORA.flags.split()
    answers = []
    for args in (["--config", AXOLOTL_QLORA.name], flags):
        assert main(["oom", *args, "--gpu", "rtx4090", "--no-advice", "--format", "json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["thresholds"][0])
    by_file, by_flags = answers
    assert by_file["max"] == by_flags["max"] > 0
    assert any("qlora.yml, axolotl" in line for line in by_file["assumptions"])


def test_the_simulation_takes_files(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """`--engine simulate` predicts the file's run as that of its flags, to the byte."""
    (folder / "config.json").write_text(json.dumps(tiny_configs()["llama"] | {"max_position_embeddings": 512}))
    (folder / "f.yml").write_text(TINY)
    args = ("--model", "config.json", "--engine", "simulate")
    (by_file,), said = predicted(capsys, "--config", "f.yml", *args)
    (by_flags,), _ = predicted(capsys, *TINY_FLAGS, *args)
    assert by_file["memory"] == by_flags["memory"]
    assert by_file["run"] == by_flags["run"]
    assert any("f.yml, TRL or transformers" in line for line in by_file["assumptions"])
    assert "not taken from the files" not in said


@pytest.mark.slow
def test_measure_takes_files(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Real steps of the file's run, whose peak the flags' run has as well."""
    (folder / "config.json").write_text(json.dumps(tiny_configs()["llama"] | {"max_position_embeddings": 512}))
    (folder / "f.yml").write_text(TINY)
    measured = []
    for args in (("--config", "f.yml"), TINY_FLAGS):
        command = [
            "measure",
            "--model",
            "config.json",
            "--device",
            "cpu",
            "--steps",
            "1",
            "--warmup",
            "1",
            "--no-trace",
        ]
        assert main([*command, *args, "--format", "json"]) == 0
        out, err = capsys.readouterr()
        measured.append(json.loads(out)["measurements"][0])
        assert "f.yml" in err or "--config" not in args
    by_file, by_flags = measured
    assert by_file["outcome"] == "ok"
    assert by_file["run"] == by_flags["run"]


def test_a_sweep_varies_what_a_file_fixes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An axis on the command line takes the place of the file's one value; all else is the file's."""
    assert main(["sweep", "--config", AXOLOTL_QLORA.name, "--bs", "1,2", "--no-amp", "-o", "s.csv"]) == 0
    with open("s.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["bs"] for row in rows] == ["1", "2"]
    assert {(row["method"], row["quant"], row["amp"], row["seq"]) for row in rows} == {
        ("qlora", "nf4-dq", "false", "2048")
    }
    assert all(row["error"] == "" for row in rows)
    assert "overridden" not in capsys.readouterr().out


def test_a_model_is_still_required(capsys: pytest.CaptureFixture[str]) -> None:
    """Without files and without --model, as ever."""
    assert "Missing option '--model'" in refused(capsys, "predict", "--bs", "2")


def test_a_mirror_of_a_model_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of a catalog's model by another owner is not taken for it in silence; its namesake is offered."""
    (folder / "f.yml").write_text("base_model: SomeMirror/Meta-Llama-3-8B\nsequence_len: 256")
    assert main(["predict", "--config", "f.yml"]) == 2
    assert "llama3-8b has a model of the same name (--model llama3-8b)" in capsys.readouterr().err


def test_full_fine_tuning_under_fsdp_is_in_fp32(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """accelerate casts what is trained to fp32 where it mixes precisions under FSDP, whatever it was loaded in."""
    (folder / "f.yml").write_text("base_model: llama2-7b\nsequence_len: 256\nmicro_batch_size: 1")
    (folder / "a.yml").write_text("distributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 8")
    (found,), said = predicted(
        capsys, "--config", "f.yml", "--config", "a.yml", "--optimizer", "adamw", "--accumulation", "1"
    )
    run = found["run"]
    assert (run["dtype"], run["amp"], run["shard"], run["gpus"]) == ("fp32", True, "fsdp", 8)
    assert "casts what is trained to fp32" in said


def test_fsdp_that_keeps_weights_gathered(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not resharding after the forward is a way of its own; that gathering ahead is not counted is said."""
    (folder / "f.yml").write_text("base_model: llama2-7b\nsequence_len: 256\nmicro_batch_size: 1")
    fsdp = "  fsdp_version: 2\n  fsdp_reshard_after_forward: false\n  fsdp_forward_prefetch: true"
    (folder / "a.yml").write_text(f"distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n{fsdp}")
    (found,), _ = predicted(
        capsys, "--config", "f.yml", "--config", "a.yml", "--optimizer", "adamw", "--accumulation", "1"
    )
    assert (found["run"]["shard"], found["run"]["gpus"]) == ("fsdp-grad-op", 8)
    assert any("fsdp_forward_prefetch" in line for line in found["unmodelled"])
