"""Tiny configurations of architectures that the catalog does not know, and runs of them."""

from __future__ import annotations

from typing import Any

from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.workload.architectures import runnable_model

_COMMON = {
    "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 112, "vocab_size": 250,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
_SEQ2SEQ = {
    "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 6, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 112, "decoder_ffn_dim": 176, "vocab_size": 250, "max_position_embeddings": 64, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip

_CONFIGS: dict[str, dict[str, Any]] = {
    "opt": {
        **_COMMON, "ffn_dim": 112, "word_embed_proj_dim": 48, "dropout": 0.0, "attention_dropout": 0.0,
    },
    "bloom": {
        "hidden_size": 48, "n_head": 6, "n_layer": 2, "vocab_size": 250, "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "gpt_neox": {**_COMMON, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "falcon": {**_COMMON, "num_attention_heads": 6, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "stablelm": {**_COMMON, "num_key_value_heads": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "phi": {**_COMMON, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0},
    "olmo": {**_COMMON, "num_key_value_heads": 2},
    "cohere": {**_COMMON, "num_key_value_heads": 2},
    "starcoder2": {**_COMMON, "num_key_value_heads": 2, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    "persimmon": {**_COMMON, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "mpt": {"d_model": 48, "n_heads": 6, "n_layers": 2, "expansion_ratio": 3, "max_seq_len": 64, "vocab_size": 250},
    "gpt_neo": {
        "hidden_size": 48, "num_heads": 6, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
        "intermediate_size": 112, "vocab_size": 250, "max_position_embeddings": 64, "window_size": 9,
        "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0,
    },
    "mamba": {"hidden_size": 48, "state_size": 8, "num_hidden_layers": 2, "vocab_size": 250, "conv_kernel": 4},
    "albert": {**_COMMON, **_NO_DROPOUT, "embedding_size": 24, "classifier_dropout_prob": 0.0},
    "electra": {**_COMMON, **_NO_DROPOUT, "embedding_size": 24},
    "distilbert": {
        "dim": 48, "n_heads": 6, "n_layers": 2, "hidden_dim": 112, "vocab_size": 250, "max_position_embeddings": 64,
        "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
    },
    "deberta-v2": {**_COMMON, **_NO_DROPOUT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "camembert": {**_COMMON, **_NO_DROPOUT, "max_position_embeddings": 66, "pad_token_id": 1},
    "bart": {**_SEQ2SEQ},
    "mbart": {**_SEQ2SEQ},
    "pegasus": {**_SEQ2SEQ},
}  # fmt: skip


def tiny_architectures() -> dict[str, dict[str, Any]]:
    """`model_type` -> configuration, a fresh copy."""
    return {name: {"model_type": name, **config} for name, config in _CONFIGS.items()}


def tiny_run_of(architecture: str, method: str, *, changes: dict[str, Any] | None = None, **options: Any) -> RunSpec:
    """A run of a tiny model, three sequences of 22 tokens unless asked for otherwise.

    Args:
        architecture: one of `tiny_architectures`.
        method: as on the command line.
        changes: go into the configuration.
        options: of the run; rank, targets and dropout go to the method.
    """
    config = tiny_architectures()[architecture] | (changes or {})
    inner = {key: options.pop(key) for key in ("rank", "targets", "dropout") if key in options}
    return RunSpec(
        model=runnable_model(architecture, config, folder=None),
        method=MethodSpec(name=method, **{"rank": 4, **inner}),
        **{"bs": 3, "seq": 22, **options},
    )
