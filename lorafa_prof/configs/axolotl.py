"""axolotl's YAML.

Names and defaults: axolotl 0.18's `AxolotlInputConfig`, and what its loaders make of them.
"""

from __future__ import annotations

from lorafa_prof.configs import deepspeed, shared, trainer
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.reading import Reading

TOOL = "axolotl"
SIGNS = frozenset({"base_model", "micro_batch_size", "sequence_len", "sample_packing", "lora_target_linear", "adapter"})
#: Keys of `TrainingArguments` that axolotl has by the same name.
COVERS = frozenset({"max_grad_norm", "gradient_checkpointing_kwargs", "dataloader_num_workers"})
#: Switches of older files, the most special first, as the attention code they stand for.
_ATTENTION = {
    "xformers_attention": "xformers", "sage_attention": "sage", "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager",
}  # fmt: skip
_HARMLESS = (
    *shared.TRAINER_HARMLESS, "strict", "base_model_config", "model_type", "tokenizer_config", "tokenizer_type",
    "tokenizer_use_fast", "tokenizer_legacy", "tokenizer_use_mistral_common", "processor_type", "trust_remote_code",
    "auto_resume_from_checkpoints", "mean_resizing_embeddings", "datasets", "test_datasets", "dataset_prepared_path",
    "dataset_processes", "dataset_num_proc", "dataset_keep_in_memory", "dataset_exact_deduplication",
    "shuffle_merged_datasets", "skip_prepare_dataset", "pretraining_dataset", "streaming", "push_dataset_to_hub",
    "hf_use_auth_token", "val_set_size", "num_epochs", "lr_scheduler", "cosine_min_lr_ratio",
    "cosine_constant_lr_ratio", "adam_beta3", "adam_epsilon2", "evals_per_epoch", "saves_per_epoch", "save_first_step",
    "eval_sequence_len", "eval_sample_packing", "eval_batch_size", "eval_table_size", "eval_max_new_tokens",
    "wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_run_id", "wandb_log_model", "wandb_mode",
    "mlflow_experiment_name", "mlflow_tracking_uri", "use_tensorboard", "use_wandb", "use_mlflow", "use_comet",
    "train_on_inputs", "chat_template", "chat_template_jinja", "default_system_message", "special_tokens", "tokens",
    "eot_tokens", "loss_watchdog_threshold", "loss_watchdog_patience", "early_stopping_patience",
    "sample_packing_group_size", "sample_packing_bin_size", "sample_packing_sequentially", "min_sample_len",
    "excess_length_strategy", "lora_alpha", "lora_fan_in_fan_out", "lora_model_dir", "lora_on_cpu", "peft_use_rslora",
    "lora_alpha_pattern", "loraplus_lr_embedding", "low_cpu_mem_usage", "ddp", "ddp_find_unused_parameters",
    "ddp_broadcast_buffers", "save_safetensors", "profiler_steps", "include_tkps", "is_llama_derived_model",
    "is_mistral_derived_model", "is_qwen_derived_model", "is_falcon_derived_model", "gc_collect_steps", "hub_revision",
    "resize_token_embeddings_to_32x", "device_map", "max_memory", "peft_layers_pattern", "revision_of_model",
    "base_model_ignore_patterns", "adam_eps", "eta_min", "lr_quadratic_warmup", "reinit_weights", "use_ray",
    "ray_num_workers", "use_otel_metrics", "otel_metrics_host", "otel_metrics_port", "use_swanlab", "swanlab_project",
    "swanlab_experiment_name", "swanlab_description", "swanlab_mode", "swanlab_log_completions", "do_causal_lm_eval",
    "eval_causal_lm_metrics", "eval_table_max_new_tokens", "streaming_multipack_buffer_size", "accelerator_config",
    "flex_attn_compile_kwargs", "cls_model_config", "pretrain_multipack_attn", "peft_ensure_weight_tying",
)  # fmt: skip
#: How many GPUs a sequence, a layer or an expert is split over, and how many have copies of a shard.
_SPLITS = (
    "expert_parallel_size", "tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree",
    "dp_replicate_size",
)  # fmt: skip
_UNCOUNTED = {
    "torch_compile": "compiled code keeps other tensors",
    "tiled_mlp": "MLPs in tiles",
    "use_eaft": "another loss",
    "llmcompressor": "masks of weights",
    "model_config": "values in the place of those of the model's own configuration",
    "freeze_mm_modules": "parts of a model of several modalities that are not trained",
    "neftune_noise_alpha": "noise is added to the embeddings",
    "gemma4_hybrid_attn_impl": "another kernel of attention in some layers",
}
#: axolotl's own plugins that other keys say all about, or that only report.
_PLUGINS = frozenset(
    {"liger", "cut_cross_entropy", "kernels", "expert_parallel", "llm_compressor", "swanlab", "lm_eval"}
)
_OTHER_STEPS = {
    "kd": "the loss has a teacher's logits",
    "spectrum": "a part of the weights is trained, and no adapters",
    "grokfast": "averages of all gradients are kept beside them",
    "hatchery": "it is trained by a service, and not here",
    "diffusion": "a diffusion model's loss",
    "nemo_gym": "generation in a step",
}
_FUSED = ("flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_mlp", "flash_attn_fuse_qkv")
_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    _stage(draft)
    shared.model(draft, "base_model")
    shared.positive(draft, "bs", "micro_batch_size", 1)
    shared.positive(draft, "seq", "sequence_len", 512)
    _accumulation(draft)
    trainer.clipping(draft)
    optimizer = draft.text("optimizer")
    if optimizer is None:
        draft.set("optimizer", "adamw-fused", "optimizer", explicit=False)
    else:
        shared.mapped(draft, "optimizer", "optimizer", optimizer, shared.OPTIMIZERS)
    _precision(draft)
    _attention(draft)
    _checkpointing(draft)
    _adapters(draft)
    _loss(draft)
    _several_gpus(draft)
    if draft.switch("sample_packing"):
        draft.note("sample_packing: rows are full, as every sequence is taken here; a micro-batch becomes one row")
    if not draft.switch("pad_to_sequence_len") and not draft.has("sample_packing"):
        draft.note("sequences are taken as long as sequence_len; axolotl pads to the longest of a batch")
    draft.ignore(_HARMLESS)
    return draft.finish()


def _accumulation(draft: Draft) -> None:
    """Take the micro-batches of a step.

    batch_size, of all of them on one GPU, counts only where their number is null: left out, axolotl has it be 1.
    """
    key = "batch_size"
    together, each = draft.integer(key), draft.options["bs"].value
    if together is None or not draft.is_null("gradient_accumulation_steps"):
        shared.positive(draft, "accumulation", "gradient_accumulation_steps", 1)
        draft.unused_if((key,), "gradient_accumulation_steps, or its default of 1, counts before it")
    elif not isinstance(each, int) or together < each:
        draft.refuse_value(key, f"micro_batch_size, {each}, or more")
    else:
        draft.set("accumulation", together // each, key)


def _stage(draft: Draft) -> None:
    shared.no(draft, ("rl", "trl", "ebft"), "more than one model, or generation, in a step")
    shared.no(draft, ("reward_model", "process_reward_model"), "a reward model's loss")
    shared.no(
        draft, ("qat", "fp8", "gptq", "model_quantization_config", "quantize_moe_experts"),
        "a form of weights that no engine knows",
    )  # fmt: skip
    draft.unused_if(("quantization",), "weights are quantised after training, by a command of its own")
    shared.no(draft, ("relora", "lisa_n_layers"), "it trains parts of the model by turns")
    shared.no(draft, ("unfrozen_parameters",), "a part of the weights is trained, and no adapters")
    shared.no(draft, ("activation_offloading", "layer_offloading"), "it would be kept in the host's memory")
    shared.no(draft, ("diffusion",), "a diffusion model's loss")
    shared.no(draft, ("use_onebitllms", "llama4_linearized_experts"), "a form of weights that no engine knows")
    draft.unused_if(("relora_steps", "relora_warmup_steps", "relora_cpu_offload"), "relora is off")
    for key in _SPLITS:
        if draft.take(key) not in (None, 1):
            draft.give_up(key, "it splits sequences or layers over GPUs, or copies shards")


def _precision(draft: Draft) -> None:
    """Take the dtypes: bf16 and bfloat16 are autocast over weights in bf16, and float16 weights without autocast.

    bf16 counts before the others, but where it is "auto", as it is where the file says nothing, fp16 does.
    """
    value = draft.take("bf16")
    if value not in (None, True, False, "auto", "full"):
        draft.refuse_value("bf16", "true, false, auto or full")
    fp16 = draft.take("fp16") != "auto" and bool(draft.switch("fp16"))
    half, pure = bool(draft.switch("float16")), bool(draft.switch("bfloat16"))
    explicit = value is not None or half or pure
    narrow = pure or (not fp16 if value in (None, "auto") else bool(value))
    if fp16 and not narrow:
        draft.refuse("amp", "fp16", "fp16 with scaled gradients is not modelled; take --amp or --no-amp, in bf16")
        draft.ignore(["float32"])
        return
    if value == "auto":
        draft.note("bf16 auto: taken as on a card that has it")
    # "full" is bf16 evaluation, without autocast in training: TrainingArguments' bf16 is not set then.
    draft.set("amp", narrow and value != "full", "bf16", explicit=explicit)
    wide = "fp16" if half or draft.switch("load_in_8bit") else "fp32"
    draft.set("dtype", "bf16" if narrow else wide, "bf16", explicit=explicit)
    draft.ignore(["float32"])


def _attention(draft: Draft) -> None:
    name = draft.text("attn_implementation")
    for key, stands_for in _ATTENTION.items():
        if draft.switch(key) and name is None:
            name = stands_for
            shared.mapped(draft, "attn", key, name, shared.ATTENTION)
    if draft.has("attn_implementation"):
        shared.mapped(draft, "attn", "attn_implementation", name or "", shared.ATTENTION)


def _checkpointing(draft: Draft) -> None:
    value = draft.take("gradient_checkpointing")
    if isinstance(value, str) and value.lower() in ("offload", "offload_disk", "unsloth"):
        draft.give_up("gradient_checkpointing", "checkpoints would be kept in the host's memory")
    on = bool(draft.switch("gradient_checkpointing"))
    draft.set("checkpointing", "full" if on else "none", "gradient_checkpointing", explicit=value is not None)
    arguments = draft.section("gradient_checkpointing_kwargs")
    if arguments is not None:
        trainer.checkpointing_arguments(arguments, "gradient_checkpointing_kwargs", on=on)
        draft.absorb(arguments)
    if draft.take("selective_checkpointing") not in (None, False):
        draft.refuse(
            "checkpointing", "selective_checkpointing",
            "it keeps attention's results; --checkpointing selective keeps those of matrix products too",
        )  # fmt: skip


def _adapters(draft: Draft) -> None:
    adapter = (draft.text("adapter") or "").lower()
    four, eight = draft.switch("load_in_4bit"), draft.switch("load_in_8bit")
    if adapter in ("", "none"):
        draft.set("method", "full", "adapter", explicit=False)
        draft.unused_if(("lora_r", "lora_dropout", "lora_target_linear", "lora_target_modules"), "there is no adapter")
        return
    if adapter not in ("lora", "qlora"):
        draft.refuse("method", "adapter", f"{adapter[:30]!r} is not modelled; say with --method what is to be taken")
    else:
        _method(draft, adapter)
    if adapter == "qlora" or four:
        _four_bits(draft, "adapter" if adapter == "qlora" else "load_in_4bit")
    elif eight:
        draft.set("quant", "int8", "load_in_8bit")
    rank = draft.integer("lora_r")
    if rank is None:
        draft.refuse("rank", "lora_r", "the file has none; name it with --rank")
    else:
        shared.positive(draft, "rank", "lora_r")
    shared.dropout(draft, "lora_dropout")
    draft.unused_if(("lora_model_dir",), shared.GOES_ON)
    _targets(draft)
    shared.layers(draft, "peft_layers_to_transform")
    shared.saved_modules(draft, "lora_modules_to_save")
    shared.no(
        draft,
        ("lora_target_parameters", "lora_rank_pattern", "lora_exclude_modules", "peft_layer_replication",
         "peft_trainable_token_indices"),
        "no engine knows of it",
    )  # fmt: skip
    if draft.switch("peft_autocast_adapter_dtype") is False:
        draft.set("adapter_dtype", "bf16", "peft_autocast_adapter_dtype")
    kernels = [draft.switch(key) for key in _KERNELS]
    if any(kernels) or (None in kernels and "dropout" in draft.options and draft.options["dropout"].value == 0.0):
        draft.uncounted(
            _KERNELS[0], "axolotl's fused LoRA kernels, which it turns on by itself where it can, keep other tensors"
        )


def _method(draft: Draft, adapter: str) -> None:
    draft.take("peft")
    other = shared.initialisation(draft, "peft_init_lora_weights")
    key = "adapter" if other is None else "peft_init_lora_weights"
    plus = draft.number("loraplus_lr_ratio") is not None
    if draft.switch("peft_use_dora"):
        other, key = "dora", "peft_use_dora"
    elif other is None and plus:
        other, key = "lora-plus", "loraplus_lr_ratio"
    if plus and other != "lora-plus":
        draft.unused("loraplus_lr_ratio", "groups of learning rates are modelled of LoRA itself")
    if "method" not in draft.refusals:
        draft.set("method", other or adapter, key)


def _four_bits(draft: Draft, key: str) -> None:
    """Take axolotl's own quantisation, which is nested, with its norms and head cast back after PEFT's preparation."""
    arguments, form = draft.section("bnb_config_kwargs"), "nf4-dq"
    if arguments is not None:
        name = "bnb_config_kwargs.bnb_4bit_use_double_quant"
        if arguments.switch(name) is False:
            form = "nf4"
        kind = arguments.text("bnb_config_kwargs.bnb_4bit_quant_type")
        if kind not in (None, "nf4"):
            arguments.refuse("quant", "bnb_config_kwargs.bnb_4bit_quant_type", f"{kind[:20]!r} is not modelled")
        draft.absorb(arguments)
    draft.set("quant", form, key)


def _targets(draft: Draft) -> None:
    if draft.switch("lora_target_linear"):
        draft.set("targets", "all-linear", "lora_target_linear")
        draft.unused_if(("lora_target_modules",), "lora_target_linear adapts these as well")
    elif not shared.targets(draft, "lora_target_modules", everything=("all-linear",)):
        draft.refuse("targets", "lora_target_modules", "the file names none; name them with --targets")


def _plugins(draft: Draft) -> list[str]:
    """Take the plugins, of which some make another step than a fine-tuning's.

    Raises:
        UnsupportedError: such a one.
    """
    plugins = draft.words("plugins") or []
    for plugin in plugins:
        parts = set(plugin.lower().split("."))
        for name, reason in _OTHER_STEPS.items():
            if name in parts:
                draft.give_up("plugins", f"{name}: {reason}")
        if parts.isdisjoint(_PLUGINS):
            draft.uncounted("plugins", f"{plugin[:60]} is not known here, and may keep or make other tensors")
    shared.no(draft, ("kd_trainer", "spectrum_top_fraction", "hatchery"), "another step than a fine-tuning's")
    return plugins


def _loss(draft: Draft) -> None:
    plugins = _plugins(draft)
    if any("liger" in plugin.lower() for plugin in plugins):
        if draft.switch("liger_fused_linear_cross_entropy"):
            draft.set("loss", "fused", "liger_fused_linear_cross_entropy")
        for key in ("liger_rope", "liger_rms_norm", "liger_layer_norm", "liger_glu_activation", "liger_swiglu",
                    "liger_cross_entropy"):  # fmt: skip
            if draft.switch(key):
                draft.uncounted(key, "Liger's kernels keep other tensors than transformers'")
    draft.unused_if([p for p in ("liger_fused_linear_cross_entropy",) if not plugins], "without Liger's plugin")
    if draft.switch("cut_cross_entropy") or any("cut_cross_entropy" in plugin.lower() for plugin in plugins):
        draft.uncounted("cut_cross_entropy", "it makes no logits; here they are there (--loss fused is nearer)")
    if draft.switch("chunked_cross_entropy"):
        draft.uncounted("chunked_cross_entropy", "the loss is taken in chunks; here it is of the whole batch")
    draft.ignore(["chunked_cross_entropy_num_chunks", "eaft_alpha", "eaft_k"])
    _kernels(draft)
    shared.uncounted(draft, _UNCOUNTED)


def _kernels(draft: Draft) -> None:
    for key in (*_FUSED, "fused_attn_kernel", "use_kernels", "use_sonicmoe", "use_scattermoe"):
        if draft.switch(key):
            draft.uncounted(key, "fused kernels keep other tensors than transformers'")
    if draft.text("experts_implementation") not in (None, "grouped_mm", "batched_mm"):
        draft.uncounted("experts_implementation", "kernels of the experts that keep other tensors")


def _several_gpus(draft: Draft) -> None:
    deepspeed.within(draft)
    config = draft.section("fsdp_config")
    if draft.take("fsdp") in (None, [], "", False) and config is not None:  # FSDP2's configuration alone turns it on
        draft.set("shard", "fsdp", "fsdp_config")
        trainer.fsdp_arguments(config, "fsdp_config.")
        draft.absorb(config)
    else:
        trainer.fsdp(draft)
    draft.ignore(["fsdp_version", "dp_shard_size", "fsdp_final_state_dict_type"])
