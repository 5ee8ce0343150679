"""accelerate's configuration, as `accelerate config` writes it: GPUs, sharding, precision.

Names: accelerate 1.15's `ClusterConfig`.
"""

from __future__ import annotations

from lorafa_prof.configs import shared, trainer
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.reading import Reading

TOOL = "accelerate"
SIGNS = frozenset({"distributed_type", "compute_environment", "mixed_precision", "num_processes"})
_HARMLESS = (
    "compute_environment", "debug", "machine_rank", "num_machines", "gpu_ids", "main_process_ip", "main_process_port",
    "rdzv_backend", "same_network", "main_training_function", "enable_cpu_affinity", "use_cpu", "downcast_bf16",
    "tpu_env", "tpu_name", "tpu_use_cluster", "tpu_use_sudo", "tpu_zone", "command_file", "commands", "mpirun_config",
)  # fmt: skip


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    _precision(draft)
    kind = (draft.text("distributed_type") or "NO").upper()
    if kind not in _KINDS:
        draft.give_up("distributed_type", f"{kind[:30]}; modelled are {', '.join(_KINDS)}")
    if kind == "NO":
        draft.set("gpus", 1, "distributed_type")
        draft.set("shard", "none", "distributed_type")
        draft.unused_if(("num_processes",), "distributed_type is NO")
    else:
        shared.positive(draft, "gpus", "num_processes")
        # Of DeepSpeed, stage 2 is accelerate's own choice; the sections below say more.
        draft.set("shard", _KINDS[kind], "distributed_type", explicit=kind != "DEEPSPEED")
    _section(draft, "fsdp_config", kind == "FSDP")
    _section(draft, "deepspeed_config", kind == "DEEPSPEED")
    shared.no(draft, ("parallelism_config", "megatron_lm_config"), "splits of a sequence or a layer over GPUs")
    dynamo = draft.section("dynamo_config")
    if dynamo is not None:
        if (dynamo.text("dynamo_config.dynamo_backend") or "no").lower() != "no":
            dynamo.uncounted("dynamo_config.dynamo_backend", "compiled code keeps and makes other tensors")
        dynamo.ignore([f"dynamo_config.dynamo_{name}" for name in ("mode", "use_dynamic", "use_fullgraph")])
        draft.absorb(dynamo)
    draft.ignore(_HARMLESS)
    return draft.finish()


_KINDS = {"NO": "none", "MULTI_GPU": "ddp", "FSDP": "fsdp", "DEEPSPEED": "zero2"}


def _precision(draft: Draft) -> None:
    precision = draft.take("mixed_precision")
    name = "no" if precision in (False, None) else str(precision).lower()  # YAML reads a bare no as false
    if name in ("no", "bf16"):
        if precision is not None:
            draft.set("amp", name == "bf16", "mixed_precision")
    else:
        draft.refuse("amp", "mixed_precision", f"{name[:20]} is not modelled; take --amp, which is bf16, or --no-amp")


def _section(draft: Draft, key: str, wanted: bool) -> None:
    if not draft.has(key) or draft.take(key) == {}:
        return
    if not wanted:
        draft.unused(key, "distributed_type is another")
        return
    section = draft.section(key)
    assert section is not None
    if key == "fsdp_config":
        _fsdp(section, f"{key}.")
    else:
        _deepspeed(section, f"{key}.")
    draft.absorb(section)


def _fsdp(section: Draft, prefix: str) -> None:
    section.set("shard", "fsdp", f"{prefix}fsdp_sharding_strategy")
    trainer.fsdp_arguments(section, prefix)


def _deepspeed(section: Draft, prefix: str) -> None:
    section.unused_if((f"{prefix}deepspeed_config_file",), "another file, which is not opened: give it with --config")
    for name in ("offload_optimizer_device", "offload_param_device"):
        device = section.take(f"{prefix}{name}")
        if str(device or "none").lower() != "none":
            section.give_up(f"{prefix}{name}", "it would be kept off the GPU; every engine keeps all there")
    if not section.has(f"{prefix}deepspeed_config_file"):
        stage = section.integer(f"{prefix}zero_stage")
        stage = 2 if stage is None else stage
        if stage not in (0, 1, 2, 3):
            section.refuse_value(f"{prefix}zero_stage", "0, 1, 2 or 3")
        section.set("shard", f"zero{stage}" if stage else "ddp", f"{prefix}zero_stage")
    shared.positive(section, "accumulation", f"{prefix}gradient_accumulation_steps")
    norm = section.take(f"{prefix}gradient_clipping")
    if norm not in (None, "auto"):
        section.set("clip", bool((section.number(f"{prefix}gradient_clipping") or 0) > 0), f"{prefix}gradient_clipping")
    section.ignore(
        [f"{prefix}{name}" for name in ("zero3_init_flag", "zero3_save_16bit_model", "deepspeed_multinode_launcher",
                                        "deepspeed_hostfile", "deepspeed_exclusion_filter",
                                        "deepspeed_inclusion_filter",
                                        "offload_optimizer_nvme_path", "offload_param_nvme_path",
                                        "deepspeed_moe_layer_cls_names")]
    )  # fmt: skip
