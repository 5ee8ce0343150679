"""LLaMA-Factory's YAML or JSON.

Names and defaults: LLaMA-Factory 0.9.6's `ModelArguments`, `DataArguments` and `FinetuningArguments`; what is about
training itself is transformers' `TrainingArguments`.
"""

from __future__ import annotations

from lorafa_prof.configs import shared, trainer
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.reading import Reading

TOOL = "LLaMA-Factory"
SIGNS = frozenset(
    {"finetuning_type", "stage", "cutoff_len", "lora_target", "lora_rank", "template", "quantization_bit"}
)
#: Keys of other formats: the Trainer's, and one of Megatron-Bridge that accelerate has too.
COVERS = trainer.TRAINER_SIGNS | {"mixed_precision"}
_ATTENTION = {"sdpa": "sdpa", "fa2": "flash", "disabled": "eager"}
_UNCOUNTED = {
    "upcast_layernorm": "norms are cast to fp32",
    "upcast_lmhead_output": "logits are cast to fp32",
    "shift_attn": "attention in shifted groups",
    "resize_vocab": "more rows of embeddings",
    "use_dft_loss": "another loss",
    "use_eaft_loss": "another loss",
    "use_v1_kernels": "fused kernels keep other tensors than transformers'",
    "image_max_pixels": "images: here a sequence is text",
    "video_max_pixels": "videos: here a sequence is text",
    "rope_scaling": "longer tables of positions",
}
_MEGATRON = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size", "sequence_parallel",
    "context_parallel_size", "recompute_granularity", "use_distributed_optimizer",
)  # fmt: skip
_HARMLESS = (
    "template", "dataset", "eval_dataset", "dataset_dir", "media_dir", "max_samples", "overwrite_cache", "val_size",
    "preprocessing_num_workers", "preprocessing_batch_size", "streaming", "buffer_size", "mix_strategy",
    "interleave_probs", "train_on_prompt", "mask_history", "tokenized_path", "tool_format", "default_system",
    "enable_thinking", "ignore_pad_token_for_loss", "eval_num_beams", "eval_on_each_dataset", "plot_loss", "cache_dir",
    "use_fast_tokenizer", "split_special_tokens", "model_revision", "low_cpu_mem_usage", "hf_hub_token", "ms_hub_token",
    "om_hub_token", "print_param_status", "trust_remote_code", "lora_alpha", "use_rslora", "loraplus_lr_embedding",
    "pissa_iter", "pissa_convert", "create_new_adapter", "adapter_name_or_path", "train_from_scratch",
    "compute_accuracy", "disable_shuffling",
    "predict_with_generate",
    "early_stopping_steps", "include_effective_tokens_per_second", "infer_backend", "infer_dtype", "use_swanlab",
    "swanlab_project", "swanlab_run_name", "swanlab_mode", "ray_num_workers", "flash_attn", "offload_folder",
    "use_kv_cache", "video_fps", "video_maxlen", "image_min_pixels", "video_min_pixels",
    "freeze_vision_tower", "freeze_multi_modal_projector",
)  # fmt: skip


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    _stage(draft)
    shared.model(draft, "model_name_or_path")
    shared.positive(draft, "seq", "cutoff_len", 2048)
    trainer.training_arguments(draft, trl=False)
    pure = bool(draft.switch("pure_bf16"))
    _method(draft)
    _dtypes(draft, pure=pure)
    attention = (draft.text("flash_attn") or "auto").lower()
    if attention != "auto":
        shared.mapped(draft, "attn", "flash_attn", attention, _ATTENTION)
    _checkpointing(draft)
    if trainer.liger(draft, "enable_liger_kernel"):
        draft.note("enable_liger_kernel: with the fused loss, which LLaMA-Factory takes for the stages pt and sft")
    for key in ("packing", "neat_packing"):
        if draft.switch(key):
            draft.note(f"{key}: rows are full, as every sequence is taken here")
    if not draft.has("packing"):
        draft.note("sequences are taken as long as cutoff_len; LLaMA-Factory pads to the longest of a batch")
    shared.uncounted(draft, _UNCOUNTED)
    draft.ignore(_HARMLESS)
    return draft.finish()


def _stage(draft: Draft) -> None:
    stage = (draft.text("stage") or "sft").lower()
    if stage not in ("sft", "pt"):
        draft.give_up("stage", f"{stage[:20]} has more than one model, or another loss, in a step; sft and pt are")
    shared.no(
        draft, ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_llama_pro", "use_mca",
                "use_megatron_bridge", "use_hyper_parallel", "use_kt", "mixture_of_depths", "fp8"),
        "another optimizer, another kind of weights or another program than the Trainer's",
    )  # fmt: skip
    shared.no(draft, ("use_asft_loss",), "the logits of a second model in the loss")
    shared.no(draft, ("freeze_language_model",), "only parts of a model of several modalities are trained")
    if draft.has("export_dir"):
        draft.give_up("export_dir", "it writes a merged model, and trains none")
    for key in _MEGATRON:
        if draft.take(key) not in (None, False, 1):
            draft.give_up(key, "it splits layers, sequences or experts over GPUs, as Megatron does")
    for key in ("mixed_precision", "overlap_grad_reduce", "overlap_param_gather", "use_packed_sequences"):
        if draft.has(key):
            draft.give_up(key, "a recipe of Megatron-Bridge, whose trainer is another")
    shared.no(draft, ("use_unsloth", "use_unsloth_gc"), "Unsloth's kernels, and checkpoints in the host's memory")


def _method(draft: Draft) -> None:
    kind = (draft.text("finetuning_type") or "lora").lower()
    explicit = draft.has("finetuning_type")
    if kind == "full":
        draft.set("method", "full", "finetuning_type")
        draft.unused_if(("lora_rank", "lora_target", "lora_dropout"), "finetuning_type is full")
        return
    if kind != "lora":
        _quantisation(draft)
        draft.unused_if(("oft_block_size", "oft_target", "oft_rank"), f"finetuning_type is {kind[:20]}")
        draft.refuse(
            "method", "finetuning_type", f"{kind[:20]!r} is not modelled; say with --method what is to be taken"
        )
        return
    quant = _quantisation(draft)
    method, key = "lora" if quant is None or quant == "int8" else "qlora", "finetuning_type"
    dora, pissa = draft.switch("use_dora"), draft.switch("pissa_init")
    plus = draft.number("loraplus_lr_ratio") is not None
    if dora:
        method, key = "dora", "use_dora"
    elif pissa:
        method, key = "pissa", "pissa_init"
    elif plus:
        method, key = "lora-plus", "loraplus_lr_ratio"
    if dora and pissa:
        draft.unused("pissa_init", "first values of adapters: a step has the same tensors as DoRA's")
    if plus and method != "lora-plus":
        draft.unused("loraplus_lr_ratio", "groups of learning rates are modelled of LoRA itself")
    draft.set("method", method, key, explicit=explicit or key != "finetuning_type")
    shared.positive(draft, "rank", "lora_rank", 8)
    shared.dropout(draft, "lora_dropout")
    if not shared.targets(draft, "lora_target", everything=("all",), pattern=False):
        draft.set("targets", "all-linear", "lora_target", explicit=False)
    if draft.has("additional_target") or not draft.switch("resize_vocab"):
        shared.saved_modules(draft, "additional_target")
    else:
        draft.give_up("resize_vocab", "embeddings and head would be copied and trained whole beside the adapters")
    _goes_on(draft)


def _goes_on(draft: Draft) -> None:
    """Say of an adapter that is trained further that its own settings count."""
    key = "adapter_name_or_path"
    if draft.switch("create_new_adapter"):
        draft.unused_if((key,), "it is merged into the weights, and a new one trained")
    else:
        draft.unused_if((key,), shared.GOES_ON)


def _quantisation(draft: Draft) -> str | None:
    bits, kind = draft.integer("quantization_bit"), (draft.text("quantization_type") or "nf4").lower()
    how = (draft.text("quantization_method") or "bnb").lower()
    nested = draft.switch("double_quantization")
    if bits is None:
        return None
    if how not in ("bnb", "bitsandbytes") or bits not in (4, 8) or (bits == 4 and kind != "nf4"):
        draft.refuse("quant", "quantization_bit", f"{how[:20]} {kind[:20]} of {bits} bits is not modelled; see --quant")
        return "nf4"
    form = "int8" if bits == 8 else "nf4" if nested is False else "nf4-dq"
    draft.set("quant", form, "quantization_bit")
    return form


def _dtypes(draft: Draft, *, pure: bool) -> None:
    """Set the weights' dtype: that of the computation for what is frozen, fp32 for what is trained."""
    amp, method = draft.options.get("amp"), draft.options.get("method")
    if pure:
        draft.set("dtype", "bf16", "pure_bf16")
    elif method is not None and method.value == "full":
        draft.set("dtype", "fp32", "bf16")
        draft.note("LLaMA-Factory casts what is trained to fp32, unless pure_bf16")
    elif amp is not None and not amp.value:
        draft.unused("bf16", "off: as the checkpoint is stored, which --dtype says")
    elif amp is not None:
        draft.set("dtype", "bf16", "bf16")


def _checkpointing(draft: Draft) -> None:
    """Set checkpointing, which LLaMA-Factory turns on by itself, whatever gradient_checkpointing says."""
    off = draft.switch("disable_gradient_checkpointing")
    draft.set(
        "checkpointing", "none" if off else "full", "disable_gradient_checkpointing", explicit=off is not None
    )  # fmt: skip
    if draft.switch("use_reentrant_gc") is not False and not off:
        draft.note("reentrant checkpointing is taken as the non-reentrant kind, which keeps the same checkpoints")
