"""What several tools have in common, since all of them drive transformers, PEFT and bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping

from lorafa_prof.catalog.model_catalog import hub_ids
from lorafa_prof.configs.draft import Draft
from lorafa_prof.patterns import is_pattern

#: `TrainingArguments(optim=...)` as the run option has it.
OPTIMIZERS = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw-fused", "adamw_bnb_8bit": "adamw-8bit",
    "adamw_8bit": "adamw-8bit", "paged_adamw_8bit": "paged-adamw-8bit", "paged_adamw_32bit": "paged-adamw",
    "sgd": "sgd", "adafactor": "adafactor",
}  # fmt: skip
#: transformers' attention code as the run option has it.
ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flash_attention_2": "flash"}
#: Why the path of an adapter that is trained further is not used.
GOES_ON = "training goes on with that adapter, whose own rank and modules count: its adapter_config.json has them"
DTYPES = {
    "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "float32": "fp32", "fp32": "fp32",
    "torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32",
}  # fmt: skip
#: What reports, saves, schedules or loads data, and leaves a step's tensors as they are; of transformers' Trainer.
TRAINER_HARMLESS = frozenset(
    {
        "output_dir", "overwrite_output_dir", "do_train", "do_eval", "do_predict", "eval_strategy",
        "evaluation_strategy", "prediction_loss_only", "per_device_eval_batch_size", "eval_accumulation_steps",
        "eval_delay", "eval_on_start", "eval_steps", "eval_do_concat_batches", "eval_use_gather_object",
        "include_for_metrics", "batch_eval_metrics", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
        "adam_epsilon", "num_train_epochs", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio",
        "warmup_steps", "log_level", "log_level_replica", "log_on_each_node", "logging_dir", "logging_strategy",
        "logging_first_step", "logging_steps", "logging_nan_inf_filter", "save_strategy", "save_steps",
        "save_total_limit", "save_safetensors", "save_only_model", "save_on_each_node", "enable_jit_checkpoint",
        "restore_callback_states_from_checkpoint", "seed", "data_seed", "full_determinism", "dataloader_drop_last",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order", "past_index",
        "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "disable_tqdm",
        "remove_unused_columns", "label_names", "load_best_model_at_end", "metric_for_best_model",
        "greater_is_better", "ignore_data_skip", "report_to", "resume_from_checkpoint", "push_to_hub",
        "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision", "debug",
        "skip_memory_metrics", "ddp_timeout", "ddp_backend", "local_rank", "include_num_input_tokens_seen",
        "include_tokens_per_second", "average_tokens_across_devices", "group_by_length", "length_column_name",
        "train_sampling_strategy", "bf16_full_eval", "fp16_full_eval", "tf32", "use_cache", "optim_args",
        "torch_compile_backend", "torch_compile_mode",
    }
)  # fmt: skip


def mapped(draft: Draft, option: str, key: str, value: str, table: Mapping[str, str]) -> None:
    """Set an option by a table of a tool's names; a name that no engine models is left to the command line."""
    known = table.get(value.lower())
    if known is None:
        flag = option.replace("_", "-")
        draft.refuse(option, key, f"{value[:40]!r} is not modelled; say with --{flag} what is to be taken in its place")
    else:
        draft.set(option, known, key)


def model(draft: Draft, key: str) -> None:
    """Set the model by its hub id; a path is not followed."""
    name = draft.text(key)
    if name is None:
        return
    if name.startswith(("/", "~", ".", "\\")) or "\\" in name or name.count("/") > 1 or ":" in name:
        draft.refuse("model", key, "paths in a file are not followed; name the model with --model")
        return
    draft.set("model", name, key)
    alias = _namesake(name)
    if alias is not None:
        draft.note(f"{key}: {name} is not in the catalog; {alias} has a model of the same name (--model {alias})")


def _namesake(name: str) -> str | None:
    """Return the catalog's model that another owner's is called like, as mirrors are; None where there is none."""
    if "/" not in name:
        return None
    of_name = hub_ids()
    if name.casefold() in of_name:
        return None
    ending = f"/{name.rpartition('/')[2].casefold()}"
    return next((alias for hub_id, alias in of_name.items() if hub_id.endswith(ending)), None)


def positive(draft: Draft, option: str, key: str, default: int | None = None) -> None:
    """Set an option that is a number of things; "auto" leaves it to who fills it in."""
    if draft.has(key) and draft.take(key) == "auto":
        draft.unused(key, "auto: filled in by the Trainer")
        return
    value = draft.integer(key)
    if value is None and default is None:
        return
    if value is not None and value < 1:
        draft.refuse_value(key, "at least 1")
    assert value is not None or default is not None
    draft.set(option, value if value is not None else default or 1, key, explicit=value is not None)


def dropout(draft: Draft, key: str, default: float = 0.0) -> None:
    """Set the dropout on the adapters' input."""
    value = draft.number(key)
    draft.set("dropout", float(default if value is None else value), key, explicit=value is not None)


def targets(draft: Draft, key: str, *, everything: tuple[str, ...], pattern: bool = True, single: bool = False) -> bool:
    """Set the adapted modules; say whether the file names any.

    Args:
        draft: the file.
        key: where it names them.
        everything: words by which it names all linear layers.
        pattern: whether a text is a pattern to the tool, as it is to PEFT, and no list of names.
        single: whether the only name of a list is taken for a text.
    """
    value = draft.take(key)
    if isinstance(value, list) and len(value) == 1 and single:
        value = value[0]
    if isinstance(value, str) and is_pattern(value):
        if not pattern:
            draft.refuse("targets", key, "a pattern is nothing to this tool; name suffixes of modules with --targets")
        else:
            draft.set("targets", value.strip(), key)
        return True
    names = draft.words(key)
    if names is None:
        return False
    if any(is_pattern(name) for name in names):
        draft.refuse("targets", key, "a pattern in a list is nothing to PEFT; name suffixes of modules with --targets")
        return True
    draft.set("targets", "all-linear" if set(names) & set(everything) else ",".join(names), key)
    return True


def layers(draft: Draft, key: str) -> None:
    """Set the adapted layers, by number."""
    value = draft.take(key)
    if value is None or value == []:
        return
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**20 for n in numbers):
        draft.refuse_value(key, "a list of layers' numbers")
    text = ",".join(str(n) for n in sorted(set(numbers)))
    # One number alone would be that many of the last layers.
    draft.set("layers", text if len(set(numbers)) > 1 else f"{text}-{text}", key)


def saved_modules(draft: Draft, key: str) -> None:
    """Refuse modules that are trained whole beside the adapters, which no engine models.

    Raises:
        UnsupportedError: there are some, other than the head of a classifier.
    """
    names = draft.words(key)
    if names and set(names) <= {"score", "classifier"}:
        draft.note(f"{key}: the classifier's head, which is trained wherever there is one")
    elif names:
        draft.give_up(key, f"{', '.join(names)[:60]} would be copied and trained whole beside the adapters")


def uncounted(draft: Draft, reasons: Mapping[str, str]) -> None:
    """Say of keys that are there and not off that what they change is not counted, and why."""
    for key, reason in reasons.items():
        if draft.take(key) not in (None, False, 0, "auto"):
            draft.uncounted(key, reason)


def no(draft: Draft, keys: tuple[str, ...], reason: str) -> None:
    """Refuse switches that are on and change what a step is.

    Raises:
        UnsupportedError: one of them is on.
    """
    for key in keys:
        value = draft.take(key)
        if value in (None, False, 0, "", [], {}) or str(value).lower() in ("false", "none", "no"):
            continue
        draft.give_up(key, reason)


def initialisation(draft: Draft, key: str) -> str | None:
    """Return the method that an `init_lora_weights` makes of LoRA; None where it stays LoRA.

    Raises:
        BadInputError: no name and no yes or no.
    """
    value = draft.take(key)
    if value is None or isinstance(value, bool):
        return None
    if not isinstance(value, str):
        draft.refuse_value(key, "a name, true or false")
    name = value.lower()
    if name.startswith("pissa"):
        return "pissa"
    if name in ("lora_ga", "lora-ga"):
        return "lora-ga"
    if name in ("gaussian", "orthogonal", "eva", "olora", "loftq", "true", "false"):
        draft.note(f"{key} {name}: the adapters' first values, taken as LoRA's: a step has the same tensors")
        return None
    draft.refuse("method", key, f"{value[:40]!r} is not modelled; say with --method what is to be taken in its place")
    return None
