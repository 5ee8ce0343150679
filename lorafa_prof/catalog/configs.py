"""A Hugging Face configuration becomes a `ModelSpec`, without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lorafa_prof.catalog.config_reader import ConfigReader
from lorafa_prof.catalog.defaults import ALIASES, DEFAULTS
from lorafa_prof.catalog.families import FAMILIES
from lorafa_prof.catalog.json_files import kind_of, one_line
from lorafa_prof.catalog.rotary_families import Fields
from lorafa_prof.errors import BadInputError, UnsupportedError, nearest_names
from lorafa_prof.specs import ModelSpec, Task, require_choice

#: Every `model_type` that can be read, for messages.
SUPPORTED = ", ".join(sorted([*FAMILIES, "gemma3"]))


def spec_from_config(name: str, config: Mapping[str, object], *, task: Task | None = None) -> ModelSpec:
    """Return the architecture that a Hugging Face configuration describes.

    Keys that are missing take the defaults of transformers' configuration class for that `model_type`, as
    they would in `from_pretrained`. Code that a configuration points to (`auto_map`) is never run.

    Args:
        name: what the user calls the model: names it in the spec and in messages.
        config: the parsed config.json.
        task: what the model is fine-tuned for; None for the family's own.

    Raises:
        BadInputError: a key is missing or has a value that no model can be built with.
        UnsupportedError: a `model_type`, task or feature that is not modelled.
    """
    where = one_line(name)
    model_type, published = _text_model(where, config)
    family = FAMILIES[model_type]
    if task is not None:
        require_choice("task", task, Task)
        if task not in family.tasks:
            able = " or ".join(family.tasks)
            raise UnsupportedError(f"{where}: a {model_type} model does {able}, not {task}")
    _require_shape(where, model_type, published)
    reader = ConfigReader(where, model_type, published)
    _refuse_what_is_not_modelled(reader)
    fields = {**family.read(reader), "num_labels": _num_labels(reader)}
    return ModelSpec(
        name=one_line(name, limit=len(name)),
        architecture=model_type,
        task=task or family.tasks[0],
        config=_merged(model_type, published, fields),
        **fields,
    )


#: Width and depth by the names that families have for them. Some published files leave out other keys whose value is
#: the class's default (Gemma 3 its heads and vocabulary), but these two are always there: else a file is broken.
_SHAPE_KEYS = (("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "num_layers"))


def _require_shape(where: str, model_type: str, published: Mapping[str, object]) -> None:
    for names in _SHAPE_KEYS:
        if not any(name in published for name in names):
            native = next((name for name in names if name in DEFAULTS[model_type]), names[0])
            raise BadInputError(f"{where}: no {native}; is this file complete?")


def _text_model(where: str, config: object) -> tuple[str, Mapping[str, object]]:
    """Return the `model_type` and the keys of the language model inside `config`."""
    if not isinstance(config, Mapping):
        raise BadInputError(f"{where}: a configuration must be an object, not {kind_of(config)}")
    model_type = config.get("model_type")
    if model_type is None:
        raise BadInputError(f"{where}: no model_type; is this the config.json of a Hugging Face model?")
    if not isinstance(model_type, str):
        raise BadInputError(f"{where}: model_type must be a string, not {kind_of(model_type)}")
    if model_type == "gemma3":  # images and text; what is fine-tuned here is the language model
        text = config.get("text_config")
        if text is not None and not isinstance(text, Mapping):
            raise BadInputError(f"{where}: text_config must be an object, not {kind_of(text)}")
        outer = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config}
        return "gemma3_text", {**outer, **(text or {})}
    if model_type not in FAMILIES:
        near = nearest_names(model_type, [*FAMILIES, "gemma3"])
        offer = f" (did you mean {', '.join(near)}?)" if near else ""
        raise UnsupportedError(
            f"{where}: model_type {one_line(model_type, 60)!r} is not modelled; known: {SUPPORTED}{offer}; "
            "predict --engine simulate runs what the installed transformers can build"
        )
    return model_type, config


def _refuse_what_is_not_modelled(reader: ConfigReader) -> None:
    """Raise on keys that change every model alike, and on rotary settings that no model can be built with."""
    if reader.optional_object("per_layer_config"):
        raise UnsupportedError(f"{reader.where}: per_layer_config (layers that differ) is not modelled")
    if reader.optional_object("quantization_config"):
        raise UnsupportedError(
            f"{reader.where}: this checkpoint is quantised already (quantization_config); "
            "name the original model and choose the form with --quant"
        )
    for key in ("rope_scaling", "rope_parameters"):
        reader.optional_object(key)


def _num_labels(reader: ConfigReader) -> int:
    labels = reader.optional_object("id2label")
    if not all(isinstance(key, int) or (isinstance(key, str) and key.isdecimal()) for key in labels or ()):
        raise BadInputError(f"{reader.where}: id2label must map class numbers to names")
    if reader.get("num_labels") is not None:
        return reader.size("num_labels")
    if labels is None:
        return 2  # transformers' own default
    if not labels:
        raise BadInputError(f"{reader.where}: id2label names no class")
    return len(labels)


def _merged(model_type: str, published: Mapping[str, object], fields: Fields) -> dict[str, Any]:
    """Return the configuration as the engines that build the real model take it.

    What some release of transformers refuses is written as it was read, so that each of them builds the same
    model: a null that means "as many as there are heads", 30 where a class wants 30.0, a key under two names.
    """
    merged: dict[str, Any] = {**published, "model_type": model_type}
    for alias, key in ALIASES.get(model_type, {}).items():
        if alias in merged:
            merged[key] = merged.pop(alias)
    for key, field in _NULLABLE.items():
        if key in merged and merged[key] is None and not (key == "head_dim" and "mla" in fields):
            merged[key] = fields[field]
    for key in _REAL.intersection(merged, DEFAULTS[model_type]):
        if merged[key] is not None:
            merged[key] = float(merged[key])
    return merged


_NULLABLE: Mapping[str, str] = MappingProxyType(
    {"num_key_value_heads": "num_kv_heads", "head_dim": "head_dim", "num_labels": "num_labels"}
)
_REAL = frozenset({"attention_dropout", "attn_logit_softcapping", "final_logit_softcapping"})
