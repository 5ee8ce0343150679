"""What single keys mean to the tool that reads them, where it could be understood otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafa_prof.configs import Reading, read_configs
from lorafa_prof.configs.draft import NOT_KNOWN
from lorafa_prof.configs.shared import GOES_ON
from lorafa_prof.errors import LorafaProfError


def read(tmp_path: Path, text: str) -> Reading:
    path = tmp_path / "f.yml"
    path.write_text(text)
    return read_configs([str(path)])


AXOLOTL = "base_model: a/b\nmicro_batch_size: 1\n"
LORA = f"{AXOLOTL}adapter: lora\nlora_r: 8\nlora_target_linear: true\n"
LLAMA_FACTORY = "cutoff_len: 64\nfinetuning_type: lora\n"
TRL = "use_peft: true\nmodel_name_or_path: a/b\n"
TORCHTUNE = "model: {_component_: torchtune.models.llama2.lora_llama2_7b, lora_attn_modules: [q_proj], %s}\n"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        # bf16 counts before fp16, but where it is left to the card
        (AXOLOTL + "bf16: true\nfp16: true", {"amp": True, "dtype": "bf16"}),
        (AXOLOTL + "bf16: auto\nfp16: false", {"amp": True, "dtype": "bf16"}),
        (AXOLOTL + "bf16: auto\nfp16: auto", {"amp": True, "dtype": "bf16"}),
        (AXOLOTL + "bf16: auto\nfp16:", {"amp": True, "dtype": "bf16"}),
        (AXOLOTL + "float16: true", {"amp": True, "dtype": "bf16"}),
        # float16 is of weights, and no autocast; so is what 8-bit layers are loaded beside
        (AXOLOTL + "bf16: false\nfp16: false\nfloat16: true", {"amp": False, "dtype": "fp16"}),
        (LORA + "bf16: false\nload_in_8bit: true", {"amp": False, "dtype": "fp16", "quant": "int8"}),
        (AXOLOTL + "bf16: false", {"amp": False, "dtype": "fp32"}),
        (AXOLOTL + "bf16: false\nbfloat16: true", {"amp": True, "dtype": "bf16"}),
        # a list of which all is commented out
        (LORA + "lora_modules_to_save:\n#  - embed_tokens\nbf16: true", {"method": "lora"}),
        (LORA + "peft_use_dora: true", {"method": "dora"}),
        (LORA + "loraplus_lr_ratio: 16\nloraplus_lr_embedding: 1e-6", {"method": "lora-plus"}),
        (LORA + "loraplus_lr_ratio:\npeft_use_dora: false", {"method": "lora"}),
        (LORA + "loraplus_lr_ratio: 16\npeft_use_dora: true", {"method": "dora"}),
        (LLAMA_FACTORY + "loraplus_lr_ratio: 16\nuse_dora: true\npissa_init: true", {"method": "dora"}),
        # axolotl's default of one micro-batch counts before batch_size, and null does not
        (AXOLOTL + "batch_size: 4", {"accumulation": 1}),
        (AXOLOTL + "batch_size: 4\ngradient_accumulation_steps:", {"accumulation": 4}),
        # what is trained whole is in fp32, also where nothing is said of precision
        ("cutoff_len: 64\nfinetuning_type: full", {"amp": False, "dtype": "fp32"}),
        ("cutoff_len: 64\nfinetuning_type: full\npure_bf16: true", {"amp": False, "dtype": "bf16"}),
        (LLAMA_FACTORY + "bf16: true\nresize_vocab: false", {"amp": True, "dtype": "bf16"}),
        (AXOLOTL + "quantization: {weight_dtype: int4}", {"method": "full", "dtype": "bf16"}),
        # a dtype that is denied is the checkpoint's, and one that is not there is the tool's default
        (TRL + "dtype: null", {"dtype": None}),
        (TRL + "torch_dtype:", {"dtype": None}),
        (TRL, {"dtype": "fp32"}),
        (TRL + "loss_type: nll\ndataset_mixture: {datasets: []}\nchat_template: x", {"method": "lora"}),
        (TORCHTUNE % "apply_lora_to_output: true", {"targets": "q_proj,lm_head"}),
        (TORCHTUNE % "apply_lora_to_output: false" + "clip_grad_norm: inf", {"targets": "q_proj", "clip": True}),
        (TORCHTUNE % "lora_rank: 4" + "clip_grad_norm: null", {"clip": False}),
        (TORCHTUNE % "lora_rank: 4" + "data_parallel_shard_dim: 4", {"gpus": 4, "shard": "fsdp"}),
        (TORCHTUNE % "lora_rank: 4" + "data_parallel_shard_dim: -1", {"gpus": None, "shard": None}),
        (TORCHTUNE % "lora_rank: 4" + "fsdp_reshard_after_forward: false", {"shard": "fsdp-grad-op"}),
        (TORCHTUNE % "lora_rank: 4" + "fsdp: {cpu_offload: false}", {"shard": None, "rank": 4}),
    ],
)
def test_a_key_means_what_its_tool_makes_of_it(text: str, options: dict[str, object], tmp_path: Path) -> None:
    """The options that are set, or None for one that is not; and no key is unknown."""
    reading = read(tmp_path, text)
    assert {name: reading.options.get(name) for name in options} == options
    assert not set(options) & set(reading.refused)
    assert [unused.key for unused in reading.unused if unused.reason == NOT_KNOWN] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TRL + "beta: 0.01\nmax_length: 64", "beta is not modelled: preferences, rewards or a teacher"),
        (TRL + "max_prompt_length: 512", "max_prompt_length is not modelled"),
        (TRL + "loss_type: apo_zero", "'apo_zero' is no loss of SFT, which has nll, chunked_nll, dft"),
        (TRL + "loss_type: [sigmoid, nll]", "'sigmoid' is no loss of SFT"),
        (TRL + "num_generations: 8", "num_generations is not modelled"),
        (AXOLOTL + "batch_size: 0\ngradient_accumulation_steps:", "batch_size must be micro_batch_size, 1, or more"),
        (AXOLOTL + "plugins: [axolotl.integrations.kd.KDPlugin]", "kd: the loss has a teacher's logits"),
        (AXOLOTL + "plugins: [axolotl.integrations.hatchery.HatcheryPlugin]", "hatchery: it is trained by a service"),
        (AXOLOTL + "hatchery: {backend: tinker}", "hatchery is not modelled"),
        (AXOLOTL + "plugins: [axolotl.integrations.spectrum.SpectrumPlugin]", "a part of the weights is trained"),
        (LLAMA_FACTORY + "resize_vocab: true", "embeddings and head would be copied and trained whole"),
        (
            LLAMA_FACTORY + "mixed_precision: bf16_mixed\nuse_megatron_bridge: true",
            "use_megatron_bridge is not modelled",
        ),
        (LLAMA_FACTORY + "stage: sft\nmixed_precision: bf16_mixed", "a recipe of Megatron-Bridge"),
        (LORA + "lora_exclude_modules: [q_proj]", "lora_exclude_modules is not modelled"),
        (AXOLOTL + "unfrozen_parameters: [lm_head]", "a part of the weights is trained"),
        (TORCHTUNE % "lora_rank: 4" + "quantizer: {groupsize: 32}", "rounded in every forward"),
        (TORCHTUNE % "lora_rank: 4" + "early_exit_loss: {scale: 1.0}", "losses of several layers"),
        (TORCHTUNE % "lora_rank: 4" + "fsdp: {cpu_offload: true}", "fsdp.cpu_offload is not modelled"),
        (TORCHTUNE % "lora_rank: 4" + "data_parallel_replicate_dim: 2", "copies of shards"),
        (TORCHTUNE % "lora_rank: 4" + "clip_grad_norm: much", "clip_grad_norm must be a number, not 'much'"),
    ],
)
def test_another_step_is_refused(text: str, words: str, tmp_path: Path) -> None:
    """Files that would have been taken for supervised fine-tuning on one loss."""
    with pytest.raises(LorafaProfError) as error:
        read(tmp_path, text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "option", "words"),
    [
        (AXOLOTL + "bf16: auto\nfp16: true", "amp", "fp16 with scaled gradients"),
        (AXOLOTL + "bf16: false\nfp16: true\nfloat16: true", "amp", "fp16 with scaled gradients"),
    ],
)
def test_an_option_is_left_to_the_command_line(text: str, option: str, words: str, tmp_path: Path) -> None:
    """What no engine models, with the reason."""
    assert words in read(tmp_path, text).refused[option]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AXOLOTL + "plugins: [some.thing.Plugin]", "some.thing.Plugin is not known here"),
        (TORCHTUNE % "lora_rank: 4" + "layer_dropout: {prob: 0.2}", "samples that leave out a layer"),
        (TORCHTUNE % "lora_rank: 4" + "compile: {model: true, loss: false}", "compiled code"),
        (TORCHTUNE % "lora_rank: 4" + "compile: true", "compiled code"),
        ('{"zero_optimization": {"stage": 1}, "compile": {"disable": false}}', "compiled code"),
    ],
)
def test_what_is_not_counted_is_said(text: str, words: str, tmp_path: Path) -> None:
    """Among what is not modelled."""
    assert any(words in line for line in read(tmp_path, text).unmodelled)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (LORA + "lora_model_dir: saved", "lora_model_dir"),
        (LLAMA_FACTORY + "adapter_name_or_path: saved", "adapter_name_or_path"),
    ],
)
def test_an_adapter_that_is_trained_further_has_settings_of_its_own(text: str, key: str, tmp_path: Path) -> None:
    """They are in another file, which is not opened."""
    reading = read(tmp_path, text)
    assert [unused.reason for unused in reading.unused if unused.key == key] == [GOES_ON]


@pytest.mark.parametrize(
    "text",
    [
        "finetuning_type: full\ncutoff_len: 64\nbf16: true",
        "model_name_or_path: a/b\nmax_length: 64\nbf16: true\ndtype: float32",
        "model_name_or_path: a/b\nmax_length: 64\nbf16: true",
        AXOLOTL + "bf16: true",
        "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_processes: 2",
    ],
)
@pytest.mark.parametrize(
    "zero",
    [
        '{"zero_optimization": {"stage": 2}}',
        '{"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}',
        '{"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}}',
    ],
)
def test_deepspeed_casts_all_to_bf16(text: str, zero: str, tmp_path: Path) -> None:
    """Whatever weights are loaded in: accelerate hands it the Trainer's bf16, where its own file says nothing."""
    files = []
    for name, content in (("a.yml", text), ("z.json", zero)):
        (tmp_path / name).write_text(content)
        files.append(str(tmp_path / name))
    if "DEEPSPEED" in text:
        files = files[:1]
    for order in (files, files[::-1]):
        reading = read_configs(order)
        assert (reading.options["dtype"], reading.options["amp"]) == ("bf16", False)
        assert any("no autocast" in note for note in reading.notes)


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP"])
def test_full_fine_tuning_under_fsdp_is_in_fp32(strategy: str, tmp_path: Path) -> None:
    """accelerate casts what is trained, whichever of the two it is."""
    fsdp = f"fsdp_config: {{fsdp_sharding_strategy: {strategy}}}"
    reading = read(tmp_path, AXOLOTL + f"bf16: true\nfsdp: [full_shard]\n{fsdp}")
    assert (reading.options["dtype"], reading.options["amp"]) == ("fp32", True)


def test_known_plugins_are_taken_in_silence(tmp_path: Path) -> None:
    """Those that report, and those of which other keys say all."""
    reading = read(tmp_path, AXOLOTL + "plugins: [axolotl.integrations.swanlab.SwanLabPlugin]")
    assert reading.unmodelled == ()


def test_a_recipe_of_several_gpus_is_said_to_be_one(tmp_path: Path) -> None:
    """torchtune's files do not say how many there are."""
    reading = read(tmp_path, TORCHTUNE % "lora_rank: 4" + "custom_sharded_layers: [output]")
    assert any("--gpus N --shard fsdp" in note for note in reading.notes)
    quiet = read(tmp_path, TORCHTUNE % "lora_rank: 4" + "compile: {model: false}")
    assert quiet.unmodelled == ()
    assert not any("--gpus N" in note for note in quiet.notes)
