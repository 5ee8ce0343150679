"""LLaMA-Factory's v1 YAML or JSON: a program of its own, with sections that name the parts it is put together from.

Names and defaults: `ModelArguments`, `TrainingArguments` and the parts' own of LLaMA-Factory's v1 as of August 2026. It
has neither the Trainer nor autocast: precision is that of the weights, or FSDP2's.
"""

from __future__ import annotations

from lorafa_prof.configs import shared
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.reading import Reading

TOOL = "LLaMA-Factory v1"
SIGNS = frozenset(
    {"model_class", "peft_config", "kernel_config", "dist_config", "quant_config", "init_config", "optim_config",
     "lr_scheduler_config", "batching_strategy", "train_dataset", "sample_backend", "custom_chat_template", "cp_mode"}
)  # fmt: skip
#: Keys that other formats are known by.
COVERS = frozenset({"micro_batch_size", "cutoff_len", "max_grad_norm", "num_train_epochs"})
_STRATEGIES = {
    "normal": "it pads to the longest of a batch",
    "padding_free": "it makes one row of a batch's tokens",
    "dynamic_batching": "it fills a batch with sequences up to as many tokens, padding counted",
    "dynamic_padding_free": "it fills one row with sequences up to as many tokens",
}
#: Options of a preference loss, which only the commands of other stages read.
_PREFERENCES = ("pref_loss", "pref_beta", "pref_ftx", "simpo_gamma", "dpo_label_smoothing", "ld_alpha")
_HARMLESS = (
    "custom_chat_template", "trust_remote_code", "train_dataset", "eval_dataset", "output_dir", "learning_rate",
    "num_train_epochs", "max_steps", "batching_workers", "dist_timeout", "lr_scheduler_config", "seed",
    "full_determinism", "resume_from_checkpoint", "save_steps", "save_epochs", "save_ckpt_as_hf", "save_total_limit",
    "logging_steps", "sample_backend", "max_new_tokens", "cp_mode",
)  # fmt: skip


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    _stage(draft)
    shared.model(draft, "model")
    shared.positive(draft, "bs", "micro_batch_size", 1)
    shared.positive(draft, "seq", "cutoff_len", 2048)
    _attention(draft)
    on = draft.switch("enable_activation_checkpointing")
    draft.set(
        "checkpointing", "none" if on is False else "full", "enable_activation_checkpointing", explicit=on is not None
    )
    _strategy(draft)
    quantised = _quantisation(draft)
    adapters = _method(draft, quantised=quantised)
    _optimizer(draft)
    _kernels(draft)
    _sharing(draft, _distribution(draft, adapters=adapters))
    init = draft.section("init_config")
    if init is not None:
        init.unused_if(("init_config.name",), "where weights are when they are loaded, which is no part of a step")
        draft.absorb(init)
    draft.uncounted(
        "loss",
        "v1 takes log-probabilities of logits in fp32 beside the model's own loss, which it does not use: up to 8 "
        "bytes a logit more than are counted",
    )
    draft.note("which stage it is for is said to llamafactory-cli, not here: taken as sft")
    draft.ignore(_HARMLESS)
    return draft.finish()


def _stage(draft: Draft) -> None:
    """Refuse what is no fine-tuning of a language model on one loss."""
    for key in _PREFERENCES:
        if draft.has(key):
            draft.give_up(key, "preferences have more than one pass, or another loss, in a step; sft is")
    kind = (draft.text("model_class") or "llm").lower()
    if kind != "llm":
        draft.give_up("model_class", f"{kind[:20]} scores tokens or has no head; llm, a language model, is")


def _attention(draft: Draft) -> None:
    name = draft.text("flash_attn")
    if name is None:
        draft.set("attn", "sdpa", "flash_attn", explicit=False)
    else:
        shared.mapped(draft, "attn", "flash_attn", name, shared.ATTENTION)


def _strategy(draft: Draft) -> None:
    name = (draft.text("batching_strategy") or "normal").lower()
    if name not in _STRATEGIES:
        draft.refuse_value("batching_strategy", f"one of {', '.join(_STRATEGIES)}")
    draft.note(f"batching_strategy {name}: sequences are taken as long as cutoff_len; {_STRATEGIES[name]}")


def _part(draft: Draft, key: str) -> tuple[Draft, str] | None:
    """Return a section that names a part, and the name; None where there is none.

    Raises:
        BadInputError: it is no mapping, or names nothing.
    """
    section = draft.section(key)
    if section is None:
        return None
    name = section.text(f"{key}.name")
    if name is None:
        section.refuse_value(f"{key}.name", "a name")
    return section, name.lower()


def _method(draft: Draft, *, quantised: str | None) -> bool:
    """Take what is trained; say whether that is adapters."""
    part = _part(draft, "peft_config")
    if part is None:
        draft.set("method", "full", "peft_config", explicit=False)
        return False
    section, name = part
    if name == "lora":
        _lora(section, quantised=quantised)
    else:
        reason = f"{name[:20]!r} is not modelled; say with --method what is to be taken in its place"
        section.refuse("method", "peft_config.name", reason)
        freezing = ("trainable_layers", "trainable_modules", "extra_modules")
        keys = [f"peft_config.freeze_{key}" for key in freezing]
        section.unused_if((*keys, "peft_config.cast_trainable_params_to_fp32"), "it goes with peft_config.name")
    draft.absorb(section)
    return True


def _lora(section: Draft, *, quantised: str | None) -> None:
    key = "peft_config"
    if section.has(f"{key}.export_dir"):
        section.give_up(f"{key}.export_dir", "it writes a merged model, and trains none")
    shared.positive(section, "rank", f"{key}.r", 8)
    shared.dropout(section, f"{key}.lora_dropout", 0.05)
    dora = bool(section.switch(f"{key}.use_dora"))
    method = "dora" if dora else "qlora" if (quantised or "").startswith("nf4") else "lora"
    section.set("method", method, f"{key}.use_dora" if dora else f"{key}.name")
    # v1 makes a list of a text, in which PEFT looks for no pattern.
    if not shared.targets(section, f"{key}.target_modules", everything=("all",), pattern=False):
        section.set("targets", "all-linear", f"{key}.target_modules", explicit=False)
    shared.saved_modules(section, f"{key}.modules_to_save")
    trained = f"{key}.adapter_name_or_path"
    if section.take(trained) not in (None, "", []):
        # v1 goes on training that adapter, and reads none of the settings beside its path.
        reason = "the adapter's own counts: give its adapter_config.json with --config as well, or say it with --{}"
        for option in ("rank", "targets", "dropout"):
            section.refuse(option, trained, reason.format(option))
    unread = ("export_size", "export_hub_model_id", "infer_dtype", "export_legacy_format", "lora_alpha", "use_rslora")
    section.ignore([f"{key}.{name}" for name in unread])


def _quantisation(draft: Draft) -> str | None:
    part = _part(draft, "quant_config")
    if part is None:
        return None
    section, name = part
    form = _quantised(section, name)
    draft.absorb(section)
    return form


def _quantised(section: Draft, name: str) -> str | None:
    key = "quant_config.quantization_bit"
    bits = section.integer(key)
    kind = (section.text("quant_config.quantization_type") or "nf4").lower()
    nested = section.switch("quant_config.double_quantization")
    compute = (section.text("quant_config.compute_dtype") or "float16").lower()
    if name == "auto" and bits is None:
        section.unused("quant_config.name", "auto without quantization_bit: nothing is quantised")
        return None
    bits = 4 if bits is None else bits
    if name not in ("auto", "bnb") or bits not in (4, 8) or (bits == 4 and kind != "nf4"):
        reason = f"{name[:20]} {kind[:20]} of {bits} bits is not modelled; see --quant"
        section.refuse("quant", key if section.has(key) else "quant_config.name", reason)
        return None
    form = "int8" if bits == 8 else "nf4" if nested is False else "nf4-dq"
    section.set("quant", form, key if section.has(key) else "quant_config.name")
    if form != "int8" and compute not in ("bfloat16", "bf16"):
        section.uncounted("quant_config.compute_dtype", f"products in {compute[:20]}: casts to it and back")
    return form


def _optimizer(draft: Draft) -> None:
    part = _part(draft, "optim_config")
    if part is None:
        draft.set("optimizer", "adamw", "optim_config", explicit=False)
        return
    section, name = part
    reason = f"{name[:40]!r} is not modelled; say with --optimizer what is to be taken in its place"
    section.refuse("optimizer", "optim_config.name", reason)
    settings = ("lr", "wd", "momentum", "nesterov", "ns_steps", "adamw_betas", "adamw_eps")
    section.ignore([f"optim_config.{key}" for key in settings])
    draft.absorb(section)


def _kernels(draft: Draft) -> None:
    part = _part(draft, "kernel_config")
    if part is None:
        return
    section, names = part
    others = [name.strip() for name in names.split(",") if name.strip() not in ("", "auto")]
    key = "kernel_config.name"
    if others:
        words = ", ".join(others)[:60]
        section.uncounted(key, f"{words}: fused kernels keep other tensors than transformers'; logits are made whole")
    else:
        section.unused(key, "auto: none on NVIDIA's cards")
    ours = ("include_kernels", "chunk_size", "require_logits")
    section.unused_if([f"kernel_config.{name}" for name in ours], "it goes with kernel_config.name")
    draft.absorb(section)


def _distribution(draft: Draft, *, adapters: bool) -> str:
    """Take how GPUs share a model, and the precision that comes of it; return the way's name, "" for none."""
    part = _part(draft, "dist_config")
    section, name = part if part is not None else (None, "")
    bf16 = draft.switch("bf16")
    if section is not None and name == "fsdp2":
        _fsdp2(section, adapters=adapters and "method" not in draft.refusals)
        draft.set("amp", bf16 is not False, "bf16", explicit=bf16 is not None)
        draft.note(
            "fsdp2 computes in bf16 and sums gradients in fp32, unless bf16 is off: taken as autocast; on one GPU v1 "
            "leaves it out, and computes in the weights' dtype (--no-amp)"
        )
        if bf16 is False and adapters:
            reason = "off: fsdp2 gathers weights in fp32 that it keeps as stored; --dtype fp32 keeps them in it as well"
            draft.refuse("dtype", "bf16", reason)
    elif section is not None and name == "fsdpturbo":
        if (section.integer("dist_config.ep_size") or 1) > 1:
            section.give_up("dist_config.ep_size", "experts are split over GPUs")
        section.refuse("shard", "dist_config.name", "'fsdpturbo' is not modelled; --shard fsdp is nearest")
        section.ignore([f"dist_config.{key}" for key in ("ep_dispatcher", "fsdp_implementation", "dcp_path")])
    elif section is not None and name == "deepspeed":
        reason = "it says how GPUs share the work, and is not opened: give it with --config as well, or say --shard"
        section.refuse("shard", "dist_config.config_file", reason)
        section.unused("dist_config.config_file", "another file, which is not opened")
        draft.set("amp", False, "dist_config.name", explicit=False)
        draft.note("under DeepSpeed weights are in bf16, unless its file turns it off (--dtype fp32)")
        draft.unused_if(("bf16",), "under DeepSpeed its own file says")
    elif section is not None:
        section.refuse("shard", "dist_config.name", f"{name[:30]!r} is not modelled; say it with --shard")
    else:
        draft.set("amp", False, "dist_config", explicit=False)
        draft.unused_if(("bf16",), "without dist_config nothing reads it: computed is in the weights' dtype")
    if section is not None:
        draft.absorb(section)
    _weights(draft, name, adapters=adapters)
    return name


def _fsdp2(section: Draft, *, adapters: bool) -> None:
    shared.no(section, ("dist_config.offload_params",), "parameters would be kept in the host's memory")
    kept = section.switch("dist_config.reshard_after_forward") is False
    section.set("shard", "fsdp-grad-op" if kept else "fsdp", "dist_config.name")
    if adapters:
        section.uncounted("dist_config.name", "each matrix of an adapter is gathered alone; here with its block")
    section.ignore(["dist_config.pin_memory", "dist_config.dcp_path"])


def _weights(draft: Draft, name: str, *, adapters: bool) -> None:
    """Set the weights' dtype: as the checkpoint is stored, or fp32 where all of them are trained."""
    if name == "deepspeed":
        draft.set("dtype", "bf16", "dist_config.name", explicit=False)
    elif not adapters:
        draft.set("dtype", "fp32", "peft_config", explicit=False)
        draft.note("v1 casts a model to fp32 that is trained whole")
    elif "dtype" not in draft.refusals:
        draft.note("weights beside the adapters are as the checkpoint is stored, which --dtype says")


def _sharing(draft: Draft, name: str) -> None:
    """Take how many GPUs there are, and what of a batch is each one's."""
    norm = draft.number("max_grad_norm")
    if name == "deepspeed":
        draft.unused_if(("max_grad_norm",), "under DeepSpeed its own file says (gradient_clipping)")
    else:
        draft.set("clip", True, "max_grad_norm", explicit=norm is not None)
    if draft.integer("cp_size") not in (None, 1):
        draft.give_up("cp_size", "it splits sequences over GPUs")
    if draft.integer("mp_replicate_size") not in (None, 1):
        draft.give_up("mp_replicate_size", "groups of GPUs, each with the whole of the weights")
    key = "dp_size" if draft.has("dp_size") else "mp_shard_size"
    gpus = draft.integer(key)
    if gpus is not None:
        shared.positive(draft, "gpus", key)
        other = draft.integer("mp_shard_size")
        if other not in (None, gpus):
            draft.refuse_value("mp_shard_size", f"dp_size, {gpus}")
        if not name and gpus > 1:
            draft.set("shard", "ddp", key)
    _accumulation(draft, gpus)


def _accumulation(draft: Draft, gpus: int | None) -> None:
    """Take the batch of all GPUs as micro-batches of one, which needs their number where it is larger than one's."""
    key, micro = "global_batch_size", draft.options.get("bs")
    total = draft.integer(key)
    if total is None:
        draft.set("accumulation", 1, key, explicit=False)
        return
    if total < 1:
        draft.refuse_value(key, "at least 1")
    bs = int(micro.value) if micro is not None else 1
    if gpus is None and total != bs:
        reason = "it is of all GPUs, and the file does not say how many; say with --accumulation how many micro-batches"
        draft.refuse("accumulation", key, f"{reason} of {bs} a step has")
    elif total % (bs * (gpus or 1)):
        draft.refuse_value(key, f"a multiple of micro_batch_size times the GPUs, {bs * (gpus or 1)}")
    else:
        draft.set("accumulation", total // (bs * (gpus or 1)), key)
