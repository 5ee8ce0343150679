"""torchtune's YAML: components by their Python names, each with its arguments.

Names and defaults: torchtune 0.7's recipes and builders. Its models are its own code; here the step is transformers'
and PEFT's of the same architecture, which a note says.
"""

from __future__ import annotations

import re
from typing import Any

from lorafa_prof.configs import shared
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.reading import Reading

TOOL = "torchtune"
COMPONENT = "_component_"
_FAMILIES = {
    "llama2": "llama2", "llama3": "llama3", "llama3_1": "llama3.1", "llama3_2": "llama3.2", "qwen2_5": "qwen2.5",
    "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2", "mistral": "mistral", "phi4": "phi-4",
}  # fmt: skip
_BUILDER = re.compile(r"torchtune\.models\.(\w+)\.(qlora_|lora_)?(\w+?)(?:_(?:base|instruct))?")
_OPTIMIZERS = {
    "bitsandbytes.optim.PagedAdamW": "paged-adamw", "bitsandbytes.optim.PagedAdamW8bit": "paged-adamw-8bit",
    "bitsandbytes.optim.AdamW8bit": "adamw-8bit",
    "torch.optim.SGD": "sgd",
}  # fmt: skip
#: torchtune's names of a block's projections, as transformers has them.
_PROJECTIONS = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_MLP = ("gate_proj", "up_proj", "down_proj")
#: Parts of the names of losses of other recipes.
_OTHER_LOSSES = ("DPO", "RSO", "SimPO", "PPO", "GRPO", "KLWith", "ForwardKL", "ReverseKL")
_HARMLESS = (
    "output_dir", "checkpointer", "dataset", "dataset_val", "seed", "shuffle", "epochs", "max_steps_per_epoch",
    "lr_scheduler", "metric_logger", "log_every_n_steps", "log_peak_memory_stats", "log_level", "device", "profiler",
    "resume_from_checkpoint", "save_adapter_weights_only", "low_cpu_ram", "batch_size_val", "run_val_every_n_steps",
    "enable_async_checkpointing", "custom_sharded_layers", "cudnn_deterministic_mode", "collate_fn", "model_type",
    "epochs_to_save", "save_every_n_epochs", "dataloader", "save_every_n_steps", "resize_token_embeddings", "name",
    "data_parallel_shard_dim", "context_parallel_rotate_method",
)  # fmt: skip
_TOKENIZER = (
    COMPONENT, "path", "merges_file", "merges_path", "vocab_path", "prompt_template", "special_tokens_path",
    "truncation_type",
)  # fmt: skip


def is_one(data: dict[str, Any]) -> bool:
    """Return whether a file is of this format: one of its values is a component."""
    return any(isinstance(value, dict) and COMPONENT in value for value in data.values())


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    _recipe(draft)
    shared.positive(draft, "bs", "batch_size", 1)
    shared.positive(draft, "accumulation", "gradient_accumulation_steps", 1)
    clip = draft.has("clip_grad_norm")
    if str(draft.take("clip_grad_norm")) != "inf":  # which takes the norm to show it, and multiplies all the same
        draft.number("clip_grad_norm")
    draft.set("clip", clip, "clip_grad_norm", explicit=clip)
    dtype = draft.text("dtype")
    if dtype is not None:
        shared.mapped(draft, "dtype", "dtype", dtype, shared.DTYPES)
    draft.set("amp", False, "dtype", explicit=False)
    _memory(draft)
    _several_gpus(draft)
    _model(draft)
    _optimizer(draft)
    _sequence(draft)
    loss = draft.section("loss")
    if loss is not None:
        name = loss.text(f"loss.{COMPONENT}") or ""
        if any(part in name for part in _OTHER_LOSSES):
            draft.give_up(f"loss.{COMPONENT}", f"{name.rpartition('.')[2][:40]} takes more than one pass or model")
        if "Linear" in name or "Chunked" in name:
            loss.uncounted("loss", "torchtune's loss takes logits in chunks; here they are those of the whole batch")
        loss.ignore(["loss.num_output_chunks"])
        draft.absorb(loss)
    draft.note("the step is that of transformers and PEFT, of the same architecture: torchtune's own code keeps others")
    draft.ignore(_HARMLESS)
    return draft.finish()


def _recipe(draft: Draft) -> None:
    """Refuse recipes that are no supervised fine-tuning.

    Raises:
        UnsupportedError: a second model, reinforcement learning, generation or evaluation.
    """
    for keys, what in (
        (("datasets",), "several data sets, of several modalities"),
        (("teacher_model", "kd_loss"), "a second model, whose logits are distilled"),
        (("ref_checkpointer", "reward_functions", "grpo_samples", "ppo_epochs", "forward_batch_size", "orchestration"),
         "more than one model, or generation, in a step"),
        (("tasks", "max_new_tokens", "prompt"), "it evaluates or generates, and trains nothing"),
        (("early_exit_loss",), "losses of several layers, each with its logits"),
    ):  # fmt: skip
        for key in keys:
            if draft.has(key):
                draft.give_up(key, what)


def _memory(draft: Draft) -> None:
    on = draft.switch("enable_activation_checkpointing")
    draft.set("checkpointing", "full" if on else "none", "enable_activation_checkpointing", explicit=on is not None)
    if draft.text("ac_mode") not in (None, "full"):
        draft.refuse("checkpointing", "ac_mode", "which layers are checkpointed is not modelled; see --checkpointing")
    draft.unused_if(("ac_option",), "it goes with ac_mode")
    shared.no(draft, ("enable_activation_offloading",), "activations would be kept in the host's memory")
    shared.no(draft, ("fsdp_cpu_offload",), "parameters would be kept in the host's memory")
    shared.no(draft, ("optimizer_in_bwd",), "the optimizer would step within the backward")
    shared.no(draft, ("quantizer",), "weights are rounded in every forward, to train for a narrower form (QAT)")
    shared.no(draft, ("tensor_parallel_plan",), "layers are split over GPUs")
    shared.no(draft, ("fp8", "enable_fp8_training"), "no engine knows of it")
    compiled = draft.take("compile")  # a switch, or one for each part
    parts = compiled.values() if isinstance(compiled, dict) else [draft.switch("compile")]
    if any(part not in (None, False) for part in parts):
        draft.uncounted("compile", "compiled code keeps and makes other tensors")
    if draft.take("layer_dropout") is not None:
        draft.uncounted("layer_dropout", "samples that leave out a layer keep nothing there; here none does")


def _several_gpus(draft: Draft) -> None:
    """Take what only the recipes of several GPUs have, which shard everything; that one is meant a file does not say.

    Raises:
        UnsupportedError: splits of anything but the state.
    """
    for key in ("tensor_parallel_dim", "context_parallel_dim", "data_parallel_replicate_dim"):
        if draft.integer(key) not in (None, 1):
            draft.give_up(key, "splits of a sequence or a layer over GPUs, or copies of shards")
    kept = draft.switch("fsdp_reshard_after_forward") is False
    gpus = draft.integer("data_parallel_shard_dim")
    if gpus is not None and gpus > 1:
        draft.set("gpus", gpus, "data_parallel_shard_dim")
    if kept or (gpus is not None and gpus > 1):
        key = "fsdp_reshard_after_forward" if kept else "data_parallel_shard_dim"
        draft.set("shard", "fsdp-grad-op" if kept else "fsdp", key)
    section = draft.section("fsdp")
    if section is not None:
        shared.no(section, ("fsdp.cpu_offload",), "parameters would be kept in the host's memory")
        draft.absorb(section)
    draft.unused_if(("memory_efficient_fsdp_wrap",), "layers are gathered one by one here")
    signs = [key for key in ("custom_sharded_layers", "fsdp_cpu_offload", "fsdp") if draft.has(key)]
    if signs and "shard" not in draft.options:
        draft.note(f"{signs[0]}: a recipe of several GPUs, with FSDP2: --gpus N --shard fsdp; here one GPU is taken")


def _model(draft: Draft) -> None:
    section = draft.section("model")
    if section is None:
        return
    key = f"model.{COMPONENT}"
    name = section.text(key) or ""
    for part in ("decoder_trainable", "encoder_trainable", "fusion_trainable", "image_size"):
        if section.has(f"model.{part}"):
            section.give_up(f"model.{part}", "a model of text and images")
    built = _BUILDER.fullmatch(name)
    family = _FAMILIES.get(built[1]) if built else None
    if built is None or family is None:
        section.refuse("model", key, f"{name[:60]!r} is none that the catalog has; name the model with --model")
        prefix = name.rpartition(".")[2]
    else:
        prefix = built[2] or ""
        section.set("model", _alias(family, built[1], built[3]), key)
    _adapters(section, prefix)
    draft.absorb(section)


def _alias(family: str, module: str, builder: str) -> str:
    """`llama3_1`, `llama3_1_8b` -> "llama3.1-8b"; `qwen3_0_6b` -> "qwen3-0.6b"."""
    size = builder.removeprefix(module).strip("_").replace("_", ".")
    return family if family == "phi-4" else f"{family}-{size}"


def _adapters(section: Draft, prefix: str) -> None:
    if not prefix.startswith(("lora", "qlora")):
        section.set("method", "full", f"model.{COMPONENT}")
        return
    quantised = prefix.startswith("qlora") or bool(section.switch("model.quantize_base"))
    dora = bool(section.switch("model.use_dora"))
    section.set("method", "dora" if dora else "qlora" if quantised else "lora", f"model.{COMPONENT}")
    if quantised:
        section.set("quant", "nf4-dq", f"model.{COMPONENT}")
        section.note("torchao's NF4 is taken as bitsandbytes' with double quantisation, whose scales are as narrow")
    section.set("adapter_dtype", "bf16", "dtype", explicit=False)
    shared.positive(section, "rank", "model.lora_rank", 8)
    shared.dropout(section, "model.lora_dropout")
    names = section.words("model.lora_attn_modules") or []
    unknown = [name for name in names if name not in _PROJECTIONS]
    mlp, head = (bool(section.switch(f"model.apply_lora_to_{part}")) for part in ("mlp", "output"))
    if unknown:
        section.refuse("targets", "model.lora_attn_modules", f"{unknown[0][:40]!r} is not known; see --targets")
    elif names or mlp or head:
        wanted = [_PROJECTIONS[name] for name in names] + list(_MLP if mlp else ()) + (["lm_head"] if head else [])
        everything = mlp and set(names) == set(_PROJECTIONS) and not head
        section.set("targets", "all-linear" if everything else ",".join(wanted), "model.lora_attn_modules")
    section.ignore(["model.lora_alpha"])


def _optimizer(draft: Draft) -> None:
    section = draft.section("optimizer")
    if section is None:
        return
    key = f"optimizer.{COMPONENT}"
    name = section.text(key) or ""
    if name == "torch.optim.AdamW":
        section.set("optimizer", "adamw-fused" if section.switch("optimizer.fused") else "adamw", key)
    elif name in _OPTIMIZERS:
        section.set("optimizer", _OPTIMIZERS[name], key)
    else:
        section.refuse("optimizer", key, f"{name[:60]!r} is not modelled; say with --optimizer what is to be taken")
    section.ignore([f"optimizer.{name}" for name in ("lr", "weight_decay", "betas", "eps", "momentum", "fused")])
    draft.absorb(section)


def _sequence(draft: Draft) -> None:
    section = draft.section("tokenizer")
    if section is None:
        return
    length = section.integer("tokenizer.max_seq_len")
    if length is None:
        draft.note("tokenizer.max_seq_len is empty: sequences are as long as the data's; --seq says how long")
    else:
        shared.positive(section, "seq", "tokenizer.max_seq_len")
    section.ignore([f"tokenizer.{name}" for name in _TOKENIZER])
    draft.absorb(section)
