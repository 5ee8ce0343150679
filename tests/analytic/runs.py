"""Runs of tiny models, their specs read from configurations by the catalog's own reader."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lorafa_prof.catalog import spec_from_config
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.support.configs import method_for, tiny_configs

#: PEFT has its LoRA-FA optimizer since release 0.16.
HAS_LORAFA = importlib.util.find_spec("peft.optimizers.lorafa") is not None

#: Every family, with a configuration that has no sliding window at work.
FAMILIES = (
    "llama", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "granite", "gpt2",
    "gpt_bigcode", "bert", "roberta", "t5", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v2-groups",
    "deepseek_v2-flash",
)  # fmt: skip
#: With one: the windowed layers have a mask.
WINDOWED = ("mistral-window", "gemma3_text-window")
#: transformers runs Gemma 2 with eager attention alone, since its scores are capped. The first DeepSeek-V2 here
#: has value heads that no fused kernel takes.
EAGER_ONLY = ("gemma2", "deepseek_v2")
#: Experts are one tensor; PEFT adapts it without dropout.
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v2-groups", "deepseek_v2-flash")
METHODS = ("full", "lora", "lora-fa", "lora-fb", "lora-qv", "vera")


def methods_of(family: str) -> tuple[str, ...]:
    """The methods that a family is run with: PEFT's LoRA-FA for fused experts, which ours does not adapt."""
    return tuple(method_for(family, method) for method in METHODS)


#: Dropout has another kernel on CUDA than on the CPU; where it is not what a test is about, it is off.
NO_DROPOUT: dict[str, dict[str, float]] = {
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt_bigcode": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "bert": {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
    "roberta": {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
    "t5": {"dropout_rate": 0.0},
}


def run_of(
    family: str,
    method: str,
    *,
    changes: dict[str, Any] | None = None,
    layers: int | None = None,
    config_dropout: bool = False,
    adapted: tuple[int, ...] | None = None,
    **options: Any,
) -> RunSpec:
    """A run of a tiny model, three sequences of 22 tokens unless asked for otherwise.

    Args:
        family: one of `tests.support.configs.tiny_configs`.
        method: as on the command line.
        changes: go into the configuration.
        layers: number of layers, where it matters.
        adapted: numbers of the layers that have adapters; None: all.
        config_dropout: leave the family's own dropout on.
        options: of the run; rank, targets and dropout go to the method.
    """
    config = tiny_configs()[family]
    if not config_dropout:
        config |= NO_DROPOUT.get(family, {})
    if layers is not None:
        config |= deeper(config, layers)
    if config["model_type"] not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {config['model_type']}")
    if method == "lora-fa-peft" and not HAS_LORAFA:
        options = {"optimizer": "adamw", **options}
    inner = {key: options.pop(key) for key in ("rank", "targets", "dropout") if key in options}
    inner["layers"] = adapted
    return RunSpec(
        model=spec_from_config(family, config | (changes or {})),
        method=MethodSpec(name=method, **{"rank": 4, **inner}),
        **{"bs": 3, "seq": 22, "attn": default_attention(family), **options},
    )


def deeper(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The keys that give a configuration another number of layers."""
    if config["model_type"] == "t5":
        return {"num_layers": layers, "num_decoder_layers": layers}
    if config["model_type"] in ("gpt2", "gpt_bigcode"):
        return {"n_layer": layers}
    changed: dict[str, Any] = {"num_hidden_layers": layers}
    if "layer_types" in config:
        kinds = config["layer_types"]
        changed["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    return changed


def default_attention(family: str) -> str:
    """sdpa where transformers has it for the family."""
    return "eager" if family in EAGER_ONLY else "sdpa"


def attentions(family: str) -> tuple[str, ...]:
    """The kinds of attention that the family is run with."""
    return ("eager",) if family in EAGER_ONLY else ("sdpa", "eager")


def label(run: RunSpec) -> str:
    """A short name of a run, for lists of tests."""
    options = [run.method.name, run.attn, run.dtype]
    options += [f"{run.adapter_dtype}-adapters"] * (run.adapter_dtype != "auto")
    options += ["amp"] * run.amp + ["checkpointing"] * (run.checkpointing == "full")
    options += [f"dropout-{run.method.dropout}"] * (run.method.dropout > 0)
    options += [run.optimizer] * (run.optimizer != "auto") + [f"bs{run.bs}"] * (run.bs != 3)
    return f"{run.model.name}: {' '.join(options)}"
