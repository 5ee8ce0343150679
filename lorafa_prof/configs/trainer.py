"""TRL's and transformers' own arguments, as `TrlParser` and `HfArgumentParser` read them from YAML or JSON.

Names and defaults: transformers 5.23's `TrainingArguments`; TRL 1.10's `SFTConfig` and `ModelConfig`, where a key of
theirs says that they are meant.
"""

from __future__ import annotations

from lorafa_prof.configs import deepspeed, shared
from lorafa_prof.configs.draft import Draft, kind_or_text
from lorafa_prof.configs.reading import Reading

TOOL = "TRL or transformers"
#: Keys that no other tool's file has. Of TrainingArguments, LLaMA-Factory's files have some as well.
TRAINER_SIGNS = frozenset(
    {"per_device_train_batch_size", "num_train_epochs", "optim", "gradient_checkpointing_kwargs",
     "per_device_eval_batch_size", "max_grad_norm", "activation_checkpointing", "dataloader_num_workers"}
)  # fmt: skip
SIGNS = TRAINER_SIGNS | {"use_peft", "max_length", "max_seq_length", "dataset_name", "dataset_text_field"}
#: Keys of TRL's classes, beside which TRL's defaults count.
_TRL = (
    "use_peft", "max_length", "max_seq_length", "packing", "packing_strategy", "padding_free", "dataset_name",
    "dataset_text_field", "loss_type", "completion_only_loss", "assistant_only_loss", "model_name_or_path",
)  # fmt: skip
#: Keys of TRL's trainers that SFT's has not: of preferences, of rewards, of generation, of a teacher.
_OTHER_TRAINERS = (
    "beta", "max_prompt_length", "max_completion_length", "ref_model_init_kwargs", "precompute_ref_log_probs",
    "reference_free", "sync_ref_model", "rpo_alpha", "desirable_weight", "undesirable_weight", "simpo_gamma",
    "cpo_alpha", "num_generations", "reward_weights", "reward_funcs", "reward_model_path", "use_vllm",
    "center_rewards_coefficient", "teacher_model_name_or_path", "num_ppo_epochs", "response_length",
)  # fmt: skip
_SFT_LOSSES = ("nll", "chunked_nll", "dft")
_TRL_HARMLESS = (
    "dataset_mixture", "dataset_mixer", "dataset_splits", "chat_template", "hub_model_revision",
    "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming", "datasets",
    "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "eos_token", "pad_token", "chat_template_path",
    "truncation_mode", "shuffle_dataset", "eval_packing", "completion_only_loss", "assistant_only_loss",
    "model_revision", "trust_remote_code", "lora_alpha", "use_rslora", "lora_task_type", "pad_to_multiple_of",
)  # fmt: skip


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    _stage(draft)
    trl = any(draft.has(key) for key in _TRL)
    training_arguments(draft, trl=trl)
    if trl:
        _sft(draft)
    draft.ignore(_TRL_HARMLESS)
    return draft.finish()


def _stage(draft: Draft) -> None:
    """Refuse the arguments of TRL's other trainers, which a file does not name.

    Raises:
        UnsupportedError: preferences, rewards or a teacher.
    """
    for key in _OTHER_TRAINERS:
        if draft.has(key):
            draft.give_up(key, "preferences, rewards or a teacher: another loss than SFT's, or more than one model")
    losses = draft.take("loss_type")
    named = losses if isinstance(losses, list) else [losses]
    other = next((name for name in named if name is not None and name not in _SFT_LOSSES), None)
    if other is not None:
        draft.give_up("loss_type", f"{kind_or_text(other)} is no loss of SFT, which has {', '.join(_SFT_LOSSES)}")


def training_arguments(draft: Draft, *, trl: bool) -> None:
    """Take the keys of `TrainingArguments`; with TRL's defaults where they are meant.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    shared.positive(draft, "bs", "per_device_train_batch_size", 8)
    shared.positive(draft, "accumulation", "gradient_accumulation_steps", 1)
    clipping(draft)
    if draft.has("optim"):
        shared.mapped(draft, "optimizer", "optim", draft.text("optim") or "", shared.OPTIMIZERS)
    else:
        draft.set("optimizer", "adamw-fused", "optim", explicit=False)
    _precision(draft, trl=trl)
    _checkpointing(draft, default=trl)
    _loss(draft)
    _several_gpus(draft)
    _uncounted(draft)
    draft.ignore(shared.TRAINER_HARMLESS)


def clipping(draft: Draft, key: str = "max_grad_norm") -> None:
    """Take the norm that gradients are clipped to; the Trainer's default is 1, and 0 is none."""
    norm = draft.number(key)
    draft.set("clip", norm is None or norm > 0, key, explicit=norm is not None)


def _precision(draft: Draft, *, trl: bool) -> None:
    bf16, fp16 = draft.switch("bf16"), draft.switch("fp16")
    if fp16:
        draft.refuse("amp", "fp16", "autocast to fp16 with scaled gradients is not modelled; take --amp, which is bf16")
        return
    default = trl and not fp16
    draft.set("amp", default if bf16 is None else bf16, "bf16", explicit=bf16 is not None)


def _checkpointing(draft: Draft, *, default: bool) -> None:
    key = "activation_checkpointing" if draft.has("activation_checkpointing") else "gradient_checkpointing"
    on = draft.switch(key)
    if key == "activation_checkpointing":
        draft.unused_if(("gradient_checkpointing",), f"{key}, its newer name, is there as well")
    checkpointing = default if on is None else on
    draft.set("checkpointing", "full" if checkpointing else "none", key, explicit=on is not None)
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        section = draft.section(name)
        if section is not None:
            checkpointing_arguments(section, name, on=checkpointing)
            draft.absorb(section)


def checkpointing_arguments(section: Draft, name: str, *, on: bool) -> None:
    """Take the arguments of checkpointing, which matter where it is on.

    Raises:
        UnsupportedError: activations would be moved to the host.
    """
    if on:
        shared.no(section, (f"{name}.offload",), "checkpoints would be kept in the host's memory")
    every = section.integer(f"{name}.every_n_layers")
    if on and every not in (None, 1):
        section.refuse("checkpointing", f"{name}.every_n_layers", "every layer is checkpointed here, or none")
    if section.switch(f"{name}.use_reentrant"):
        section.note("reentrant checkpointing is taken as the non-reentrant kind, which keeps the same checkpoints")
    section.ignore([f"{name}.preserve_rng_state", f"{name}.determinism_check"])


def _loss(draft: Draft) -> None:
    if liger(draft, "use_liger_kernel"):
        section = draft.section("liger_kernel_config")
        if section is not None:
            if section.switch("liger_kernel_config.fused_linear_cross_entropy") is False:
                section.set("loss", "hf", "liger_kernel_config.fused_linear_cross_entropy")
            section.ignore([f"liger_kernel_config.{name}" for name in ("rope", "swiglu", "rms_norm", "cross_entropy")])
            draft.absorb(section)
    else:
        draft.unused_if(("liger_kernel_config",), "Liger's kernels are off")


def liger(draft: Draft, key: str) -> bool:
    """Take the switch of Liger's kernels, of which the fused loss is modelled; return whether it is on."""
    on = bool(draft.switch(key))
    if on:
        draft.set("loss", "fused", key)
        draft.uncounted(key, "Liger's norms, activations and rotary embedding keep other tensors than transformers'")
    return on


def _several_gpus(draft: Draft) -> None:
    deepspeed.within(draft)
    fsdp(draft)
    shared.no(draft, ("parallelism_config",), "a mesh of several kinds of parallelism")
    draft.unused_if(("accelerator_config", "use_cpu", "no_cuda"), "where it runs is asked for with --gpu or --device")
    draft.ignore(
        [
            "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph", "fsdp_min_num_params",
            "fsdp_transformer_layer_cls_to_wrap",
        ]
    )  # fmt: skip
    draft.unused_if(("ddp_bucket_cap_mb",), "buckets have torch's default size here")


def fsdp(draft: Draft) -> None:
    """Take `fsdp`, as the Trainer has it: words, or a list of them, or a switch.

    Raises:
        UnsupportedError: parameters would be moved to the host.
    """
    value = draft.take("fsdp")
    words = value if isinstance(value, list) else str(value or "").lower().replace(",", " ").split()
    config = draft.section("fsdp_config")
    names = {str(word) for word in words} - {"false", "[]"}
    if names & {"offload"}:
        draft.give_up("fsdp", "parameters would be kept in the host's memory")
    if names & {"full_shard", "true"}:
        draft.set("shard", "fsdp", "fsdp")
    elif "shard_grad_op" in names:
        draft.set("shard", "fsdp-grad-op", "fsdp")
    elif names - {"auto_wrap"}:
        draft.refuse("shard", "fsdp", f"{', '.join(sorted(names))[:60]} is not modelled; full_shard is (--shard fsdp)")
    if config is not None:
        if names:
            fsdp_arguments(config, "fsdp_config.")
            draft.absorb(config)
        else:
            draft.unused("fsdp_config", "FSDP is off")


def fsdp_arguments(section: Draft, prefix: str) -> None:
    """Take the arguments of FSDP, whose names may begin with fsdp_ as accelerate's do.

    Raises:
        UnsupportedError: parameters would be moved to the host.
    """
    shared.no(
        section, _either(prefix, "offload_params", "cpu_offload"), "parameters would be kept in the host's memory"
    )
    for key in _either(prefix, "activation_checkpointing"):
        if section.switch(key):
            section.set("checkpointing", "full", key)
    for key in _either(prefix, "version"):
        if section.integer(key) == 1:
            section.note(f"{key} 1 is taken as FSDP2, whose shards are as large")
    _fsdp_sharding(section, prefix)
    _fsdp_prefetches(section, prefix)
    section.ignore(
        _either(
            prefix, "auto_wrap_policy", "transformer_layer_cls_to_wrap",
            "state_dict_type", "cpu_ram_efficient_loading", "sync_module_states", "use_orig_params", "min_num_params",
            "limit_all_gathers", "final_state_dict_type", "xla", "xla_fsdp_v2",
        )
    )  # fmt: skip


def _fsdp_sharding(section: Draft, prefix: str) -> None:
    """Take whether weights are sharded, and whether they go after their forward."""
    for key in _either(prefix, "sharding_strategy"):
        name = str(section.take(key) or "FULL_SHARD").upper()
        if name in ("SHARD_GRAD_OP", "2"):
            section.set("shard", "fsdp-grad-op", key)
        elif name not in ("FULL_SHARD", "1"):
            section.refuse("shard", key, f"{name[:30]} is not modelled; --shard fsdp is full")
    for key in _either(prefix, "reshard_after_forward"):
        value = str(section.take(key)).lower()  # a switch, or a word as FSDP1 has it
        if value in ("false", "shard_grad_op"):
            section.set("shard", "fsdp-grad-op", key)
        elif value in ("no_shard", "hybrid_shard"):
            section.refuse("shard", key, f"{value} is not modelled; full sharding is (--shard fsdp)")


def _fsdp_prefetches(section: Draft, prefix: str) -> None:
    """Take how far ahead weights are gathered: by default the next layer's in the backward, none in the forward."""
    for key in _either(prefix, "forward_prefetch"):
        if section.switch(key):
            section.uncounted(key, "the weights of another layer would be there ahead of it in the forward")
    for key in _either(prefix, "backward_prefetch"):
        value = str(section.take(key) or "backward_pre").lower()
        if value not in ("backward_pre", "1"):
            section.uncounted(key, "counted is BACKWARD_PRE, which gathers the next layer while one runs")


def _either(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{start}{name}" for name in names for start in ("", "fsdp_"))


def _uncounted(draft: Draft) -> None:
    shared.uncounted(
        draft, {"torch_compile": "compiled code keeps and makes other tensors",
                "neftune_noise_alpha": "noise is added to the embeddings",
                "label_smoothing_factor": "the loss has a term more"},
    )  # fmt: skip
    if draft.switch("auto_find_batch_size"):
        draft.unused("auto_find_batch_size", "the batch size is the one that is written; oom finds the largest")
    draft.unused_if(("torch_empty_cache_steps",), "it changes what the allocator keeps, not what is allocated")
    draft.unused_if(("optim_target_modules",), "it goes with optimizers that are not modelled")


def _sft(draft: Draft) -> None:
    """Take the keys of `SFTConfig` and `ModelConfig`."""
    shared.model(draft, "model_name_or_path")
    key = "max_length" if draft.has("max_length") or not draft.has("max_seq_length") else "max_seq_length"
    shared.positive(draft, "seq", key, 1024)
    draft.unused_if(("max_seq_length",) if key == "max_length" else (), "max_length, its newer name, is there as well")
    for name in ("packing", "padding_free"):
        if draft.switch(name):
            draft.note(f"{name}: rows are full, as every sequence is taken here; a batch becomes one row of its tokens")
    draft.ignore(["packing_strategy"])
    kind = (draft.text("loss_type") or "chunked_nll").lower()
    if kind == "chunked_nll" and "loss" not in draft.options:
        draft.uncounted(
            "loss_type", "TRL's chunked loss keeps the logits of a chunk at a time; here they are those of the whole "
            "batch, more than there will be (--loss fused is nearer)"
        )  # fmt: skip
    elif kind == "dft":
        draft.uncounted("loss_type", "dft's weights are not counted")
    shared.no(draft, ("activation_offloading",), "activations would be kept in the host's memory")
    init = draft.section("model_init_kwargs")
    if init is not None:
        _loading(init, "model_init_kwargs.", default=None)
        draft.absorb(init)
    _loading(draft, "", default="fp32" if init is None and draft.has("model_name_or_path") else None)
    _adapters(draft)


def _loading(draft: Draft, prefix: str, *, default: str | None) -> None:
    key = f"{prefix}torch_dtype" if draft.has(f"{prefix}torch_dtype") else f"{prefix}dtype"
    dtype = draft.text(key)
    if dtype is None and (draft.is_null(f"{prefix}torch_dtype") or draft.is_null(f"{prefix}dtype")):
        draft.note(f"{key} null: as the checkpoint is stored, which --dtype says")
    elif dtype == "auto":
        draft.unused(key, "auto: as the checkpoint is stored, which --dtype says")
    elif dtype is not None:
        shared.mapped(draft, "dtype", key, dtype, shared.DTYPES)
    elif default is not None:
        draft.set("dtype", default, key, explicit=False)
    key = f"{prefix}attn_implementation"
    attention = draft.text(key)
    if attention is not None:
        shared.mapped(draft, "attn", key, attention, shared.ATTENTION)
    draft.ignore([f"{prefix}{name}" for name in ("use_cache", "trust_remote_code", "revision", "low_cpu_mem_usage")])


def _adapters(draft: Draft) -> None:
    quant = _quantisation(draft)
    if not draft.switch("use_peft"):
        draft.set("method", "full", "use_peft", explicit=draft.has("use_peft"))
        draft.unused_if(
            ("lora_r", "lora_dropout", "lora_target_modules", "lora_modules_to_save", "use_dora"), "use_peft is off"
        )
        return
    method = "dora" if draft.switch("use_dora") else "lora"
    if quant is not None:
        method = "qlora" if method == "lora" and quant.startswith("nf4") else method
        draft.set("adapter_dtype", "bf16", "use_peft")
        draft.note("TRL casts the adapters of a quantised model to bf16, and leaves its norms and head as loaded")
    draft.set("method", method, "use_peft")
    shared.positive(draft, "rank", "lora_r", 16)
    shared.dropout(draft, "lora_dropout", 0.05)
    if not shared.targets(draft, "lora_target_modules", everything=("all-linear",), single=True):
        draft.set("targets", "qv", "lora_target_modules", explicit=False)
    shared.saved_modules(draft, "lora_modules_to_save")
    shared.no(draft, ("lora_target_parameters",), "adapters on parameters that are no layers' weights")


def _quantisation(draft: Draft) -> str | None:
    four, eight = draft.switch("load_in_4bit"), draft.switch("load_in_8bit")
    kind, nested = draft.text("bnb_4bit_quant_type") or "nf4", draft.switch("use_bnb_nested_quant")
    draft.ignore(["bnb_4bit_quant_storage"])
    if four and kind != "nf4":
        draft.refuse("quant", "bnb_4bit_quant_type", f"{kind[:20]!r} is not modelled; --quant nf4 is as large")
        return "nf4"
    if not (four or eight):
        return None
    form = ("nf4-dq" if nested else "nf4") if four else "int8"
    draft.set("quant", form, "load_in_4bit" if four else "load_in_8bit")
    return form
