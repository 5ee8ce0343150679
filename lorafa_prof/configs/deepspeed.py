"""DeepSpeed's configuration: ZeRO's stage, batch, precision, clipping.

Names and defaults: DeepSpeed 0.19. "auto", which the Trainer fills in, says nothing.
"""

from __future__ import annotations

from lorafa_prof.configs import shared
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.reading import Reading

TOOL = "DeepSpeed"
SIGNS = frozenset(
    {"zero_optimization", "train_micro_batch_size_per_gpu", "zero_allow_untested_optimizer", "train_batch_size",
     "steps_per_print", "wall_clock_breakdown"}
)  # fmt: skip
#: A key of `TrainingArguments` that is a section here.
COVERS = frozenset({"activation_checkpointing"})
_SHARDS = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
_OPTIMIZERS = {"adam": "adamw", "adamw": "adamw", "torch_adam": "adamw"}
_HARMLESS = (
    "steps_per_print", "wall_clock_breakdown", "scheduler", "zero_allow_untested_optimizer", "tensorboard", "wandb",
    "csv_monitor", "comms_logger", "dump_state", "memory_breakdown", "flops_profiler", "prescale_gradients",
    "gradient_predivide_factor", "zero_force_ds_cpu_optimizer", "checkpoint", "elasticity", "seed", "_comment",
)  # fmt: skip
_BUCKETS = (
    "overlap_comm", "contiguous_gradients", "sub_group_size", "reduce_bucket_size", "allgather_bucket_size",
    "allgather_partitions", "reduce_scatter", "round_robin_gradients", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_max_live_parameters", "max_live_parameters", "max_reuse_distance",
     "stage3_max_reuse_distance",
    "ignore_unused_parameters", "gather_16bit_weights_on_model_save",
    "stage3_gather_16bit_weights_on_model_save", "load_from_fp32_weights",
)  # fmt: skip


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    take(draft, "")
    return draft.finish()


def within(draft: Draft) -> None:
    """Take `deepspeed` of another tool's file: a configuration, or the path of one, which is not opened.

    Raises:
        as `read`.
    """
    value = draft.take("deepspeed")
    if isinstance(value, dict):
        section = draft.section("deepspeed")
        assert section is not None
        take(section, "deepspeed.")
        draft.absorb(section)
    elif value not in (None, False, ""):
        draft.unused("deepspeed", "another file, which is not opened: give it with --config as well")


def take(draft: Draft, prefix: str) -> None:
    """Take the keys of a configuration, which may be a section of another tool's.

    Raises:
        as `read`.
    """
    shared.positive(draft, "bs", f"{prefix}train_micro_batch_size_per_gpu")
    shared.positive(draft, "accumulation", f"{prefix}gradient_accumulation_steps")
    draft.unused_if((f"{prefix}train_batch_size",), "over all GPUs and micro-batches; the micro-batch is --bs")
    if not _automatic(draft, f"{prefix}gradient_clipping"):
        norm = draft.number(f"{prefix}gradient_clipping")
        if norm is not None:
            draft.set("clip", norm > 0, f"{prefix}gradient_clipping")
    _precision(draft, prefix)
    _optimizer(draft, prefix)
    _zero(draft, f"{prefix}zero_optimization")
    checkpointing = draft.section(f"{prefix}activation_checkpointing")
    if checkpointing is not None:
        name = f"{prefix}activation_checkpointing"
        shared.no(checkpointing, (f"{name}.cpu_checkpointing",), "checkpoints would be kept in the host's memory")
        draft.unused(name, "it sets up DeepSpeed's own checkpointing, which a model must call; --checkpointing says")
    compiled = draft.take(f"{prefix}compile")
    if isinstance(compiled, dict) and not compiled.get("disable", False):
        draft.uncounted(f"{prefix}compile", "compiled code keeps and makes other tensors")
    for key in ("compression_training", "data_efficiency", "curriculum_learning", "tensor_parallel", "amp"):
        value = draft.take(f"{prefix}{key}")
        if isinstance(value, dict) and value.get("enabled", True):
            draft.uncounted(f"{prefix}{key}", "not counted")
    draft.ignore([f"{prefix}{key}" for key in _HARMLESS])


def _automatic(draft: Draft, key: str) -> bool:
    """Say whether a key is left to the Trainer, and list it if so."""
    if draft.has(key) and draft.take(key) == "auto":
        draft.unused(key, "auto: filled in by the Trainer")
        return True
    return False


def _precision(draft: Draft, prefix: str) -> None:
    for name, dtype in (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16")):
        section = draft.section(f"{prefix}{name}")
        if section is None:
            continue
        key = f"{prefix}{name}.enabled"
        if not _automatic(section, key) and section.switch(key):
            section.set("dtype", dtype, key)
            section.set("amp", False, key)
        section.ignore(
            [f"{prefix}{name}.{k}" for k in ("loss_scale", "loss_scale_window", "initial_scale_power", "hysteresis",
                                             "min_loss_scale", "auto_cast", "consecutive_hysteresis")]
        )  # fmt: skip
        draft.absorb(section)


def _optimizer(draft: Draft, prefix: str) -> None:
    section = draft.section(f"{prefix}optimizer")
    if section is None:
        return
    key = f"{prefix}optimizer.type"
    kind = section.text(key)
    if kind is not None:
        shared.mapped(section, "optimizer", key, kind, _OPTIMIZERS)
    section.ignore([f"{prefix}optimizer.params"])
    draft.absorb(section)


def _zero(draft: Draft, key: str) -> None:
    section = draft.section(key)
    if section is None:
        return
    for name in ("offload_optimizer", "offload_param"):
        where = section.take(f"{key}.{name}")
        device = where.get("device", "cpu") if isinstance(where, dict) else where
        if device not in (None, False, "none"):
            draft.give_up(f"{key}.{name}", f"it would be kept on {str(device)[:20]}; every engine keeps all on the GPU")
    shared.no(section, (f"{key}.cpu_offload", f"{key}.cpu_offload_params"), "it would be kept in the host's memory")
    for name in ("zero_quantized_weights", "zero_quantized_gradients", "zero_hpz_partition_size", "mics_shard_size"):
        value = section.take(f"{key}.{name}")
        if value not in (None, False, 1, -1):
            section.uncounted(f"{key}.{name}", "ZeRO++'s and MiCS's ways to send and share are not counted")
    stage = section.integer(f"{key}.stage")
    stage = 0 if stage is None else stage
    if stage not in _SHARDS:
        section.refuse_value(f"{key}.stage", "0, 1, 2 or 3")
    section.set("shard", _SHARDS[stage], f"{key}.stage")
    for name in _BUCKETS:
        if section.has(f"{key}.{name}"):
            section.unused(f"{key}.{name}", "how DeepSpeed groups what it sends is not modelled")
    draft.absorb(section)
