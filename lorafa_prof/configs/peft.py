"""PEFT's adapter_config.json.

Names and defaults: PEFT 0.21's `LoraConfig`, `AdaLoraConfig` and `VeraConfig`.
"""

from __future__ import annotations

from lorafa_prof.configs import shared
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.reading import Reading

TOOL = "PEFT"
SIGNS = frozenset({"peft_type", "layers_to_transform", "base_model_name_or_path", "init_lora_weights"})
_HARMLESS = (
    "auto_mapping", "inference_mode", "revision", "peft_version", "task_type", "lora_alpha", "use_rslora",
    "alpha_pattern", "fan_in_fan_out", "megatron_core", "megatron_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "runtime_config", "qalora_group_size", "layers_pattern", "d_initial", "projection_prng_key",
    "save_projection", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "target_r",
    "ensure_weight_tying",
)  # fmt: skip
#: What changes what an adapter is, where it is set.
_OTHERS = (
    "rank_pattern", "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora", "use_bdlora",
    "arrow_config", "kasa_config", "velora_config", "monteclora_config", "alora_invocation_tokens", "exclude_modules",
)  # fmt: skip


def read(draft: Draft) -> Reading:
    """Read a file of this format.

    Raises:
        BadInputError: a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends.
    """
    kind = (draft.text("peft_type") or "LORA").upper()
    shared.model(draft, "base_model_name_or_path")
    if kind == "LORA":
        method = shared.initialisation(draft, "init_lora_weights")
        if "method" not in draft.refusals:
            draft.set("method", "dora" if draft.switch("use_dora") else method or "lora", "peft_type")
        shared.positive(draft, "rank", "r", 8)
        shared.dropout(draft, "lora_dropout")
    elif kind == "ADALORA":
        draft.set("method", "adalora", "peft_type")
        shared.positive(draft, "rank", "init_r", 12)
        shared.dropout(draft, "lora_dropout")
        draft.ignore(["r", "init_lora_weights", "use_dora"])
    elif kind == "VERA":
        draft.set("method", "vera", "peft_type")
        shared.positive(draft, "rank", "r", 256)
        shared.dropout(draft, "vera_dropout")
        draft.ignore(["init_weights"])
    else:
        draft.refuse("method", "peft_type", f"{kind[:30]!r} is not modelled; say with --method what is to be taken")
    if not shared.targets(draft, "target_modules", everything=("all-linear",)):
        draft.set("targets", "qv", "target_modules", explicit=False)
    shared.layers(draft, "layers_to_transform")
    shared.saved_modules(draft, "modules_to_save")
    shared.no(draft, _OTHERS, "no engine knows of it")
    for key in ("bias", "lora_bias"):
        if draft.take(key) not in (None, False, "none"):
            draft.uncounted(key, "biases that are trained")
    draft.ignore(_HARMLESS)
    return draft.finish()
