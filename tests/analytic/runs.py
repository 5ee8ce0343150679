"""Runs of tiny models, their specs read from configurations by the catalog's own reader."""

from __future__ import annotations

from typing import Any

from lorafa_prof.catalog import spec_from_config
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.support.configs import tiny_configs

#: Dropout has another kernel on CUDA than on the CPU; where it is not what a test is about, it is off.
NO_DROPOUT: dict[str, dict[str, float]] = {
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt_bigcode": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "roberta": {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
    "t5": {"dropout_rate": 0.0},
}
#: Families that transformers runs with eager attention alone: their scores are capped.
EAGER_ONLY = ("gemma2",)


def run_of(
    family: str,
    method: str,
    *,
    changes: dict[str, Any] | None = None,
    layers: int | None = None,
    config_dropout: bool = False,
    **options: Any,
) -> RunSpec:
    """A run of a tiny model.

    Args:
        family: one of `tests.support.configs.tiny_configs`.
        method: as on the command line.
        changes: go into the configuration.
        layers: number of layers, where it matters.
        config_dropout: leave the family's own dropout on.
        options: of the run; rank, targets and dropout go to the method.
    """
    config = tiny_configs()[family]
    if not config_dropout:
        config |= NO_DROPOUT.get(family, {})
    if layers is not None:
        config |= deeper(config, layers)
    inner = {key: options.pop(key) for key in ("rank", "targets", "dropout") if key in options}
    if family in EAGER_ONLY:
        options.setdefault("attn", "eager")
    return RunSpec(
        model=spec_from_config(family, config | (changes or {})),
        method=MethodSpec(name=method, **{"rank": 4, **inner}),
        **{"bs": 3, "seq": 22, **options},
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


def is_run(family: str, attn: str) -> bool:
    """Whether transformers runs the family with this attention."""
    return attn == "eager" or family not in EAGER_ONLY
