"""Tiny configurations of every family, as a config.json would hold them, and runs made of them.

Within a family every width differs from every other (hidden, query, key/value, inner, vocabulary, tokens, rank), so
that no formula is right by coincidence.
"""

from __future__ import annotations

from typing import Any

import transformers

from lorafa_prof.specs import MethodSpec, ModelSpec, RunSpec, Task

_GQA = {
    "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 112,
    "num_hidden_layers": 2, "vocab_size": 250, "max_position_embeddings": 64,
}  # fmt: skip
_GEMMA = _GQA | {"pad_token_id": 0, "query_pre_attn_scalar": 16, "num_hidden_layers": 3}

_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_GQA},
    "llama-bias": {
        "model_type": "llama", **_GQA, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
    },
    "mistral": {"model_type": "mistral", **_GQA, "sliding_window": None},
    "mistral-window": {"model_type": "mistral", **_GQA, "sliding_window": 9},
    "qwen2": {"model_type": "qwen2", **_GQA},
    "qwen3": {"model_type": "qwen3", **_GQA},
    "gemma2": {"model_type": "gemma2", **_GEMMA, "sliding_window": 4096},
    "gemma3_text": {
        "model_type": "gemma3_text", **_GEMMA, "sliding_window": 4096,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "gemma3_text-window": {
        "model_type": "gemma3_text", **_GEMMA, "sliding_window": 9,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "phi3": {"model_type": "phi3", **_GQA, "pad_token_id": 0, "original_max_position_embeddings": 64},
    "granite": {
        "model_type": "granite", **_GQA, "attention_multiplier": 0.25, "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22, "logits_scaling": 8.0,
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 48, "n_head": 6, "n_layer": 2, "n_inner": 176, "vocab_size": 250,
        "n_positions": 64,
    },
    "gpt_bigcode": {
        "model_type": "gpt_bigcode", "n_embd": 48, "n_head": 6, "n_layer": 2, "n_inner": 176, "vocab_size": 250,
        "n_positions": 64, "multi_query": True,
    },
    "roberta": {
        "model_type": "roberta", "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2,
        "intermediate_size": 176, "vocab_size": 250, "max_position_embeddings": 66, "type_vocab_size": 1,
        "num_labels": 3,
    },
    "bert": {
        "model_type": "bert", "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2,
        "intermediate_size": 176, "vocab_size": 250, "max_position_embeddings": 64, "type_vocab_size": 2,
        "num_labels": 3,
    },
    "t5": {
        "model_type": "t5", "d_model": 48, "d_kv": 16, "num_heads": 6, "d_ff": 112, "num_layers": 2,
        "num_decoder_layers": 3, "vocab_size": 250, "decoder_start_token_id": 0,
    },
    "mixtral": {"model_type": "mixtral", **_GQA, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "model_type": "qwen2_moe", **_GQA, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40, "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", **_GQA, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2", "hidden_size": 48, "intermediate_size": 112, "moe_intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 6,
        "n_shared_experts": 2, "num_experts_per_tok": 3, "kv_lora_rank": 20, "q_lora_rank": None,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 14, "head_dim": 8, "vocab_size": 250,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
        "max_position_embeddings": 64,
    },
}  # fmt: skip
#: Widths that fused kernels take, queries through a latent too, and a router that chooses groups of experts first.
_CONFIGS["deepseek_v2-groups"] = _CONFIGS["deepseek_v2"] | {
    "v_head_dim": 16, "q_lora_rank": 12, "n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 2.5, "attention_bias": True,
}  # fmt: skip
#: Heads whose keys are as wide as their values: flash attention takes them.
_CONFIGS["deepseek_v2-flash"] = _CONFIGS["deepseek_v2"] | {"v_head_dim": 24, "first_k_dense_replace": 0}

#: Families whose experts are fused parameters, which our LoRA-FA does not adapt; of Qwen 2's, PEFT adapts none either.
FUSED_EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v2-groups", "deepseek_v2-flash")

_TASKS: dict[str, Task] = {"bert": "seq-cls", "roberta": "seq-cls", "t5": "seq2seq-lm"}


def tiny_configs() -> dict[str, dict[str, Any]]:
    """Family (or family-variant) -> configuration dict, a fresh copy."""
    return {name: dict(config) for name, config in _CONFIGS.items()}


def method_for(family: str, method: str) -> str:
    """The method that a family is run with: PEFT's LoRA-FA in place of ours where experts are fused."""
    return "lora-fa-peft" if method == "lora-fa" and family in FUSED_EXPERTS else method


def model_spec(name: str, config: dict[str, Any], task: Task | None = None) -> ModelSpec:
    """A `ModelSpec` with what the harness needs of it, read from transformers' own view of the configuration."""
    hf = transformers.AutoConfig.for_model(
        config["model_type"], **{k: v for k, v in config.items() if k != "model_type"}
    )
    heads = hf.num_attention_heads
    return ModelSpec(
        name=name, architecture=hf.model_type, task=task or _TASKS.get(hf.model_type, "causal-lm"),
        hidden_size=hf.hidden_size, num_layers=hf.num_hidden_layers, num_heads=heads,
        num_kv_heads=getattr(hf, "num_key_value_heads", None) or heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // heads,
        intermediate_size=getattr(hf, "intermediate_size", None) or getattr(hf, "n_inner", None) or hf.d_ff,
        vocab_size=hf.vocab_size, max_positions=None, tie_word_embeddings=bool(hf.tie_word_embeddings),
        hidden_act="unused", config=config,
    )  # fmt: skip


def tiny_run(family: str, method: str = "lora", *, changes: dict[str, Any] | None = None, **options: Any) -> RunSpec:
    """A run of a tiny model: `changes` go to its configuration, `rank`, `targets` and `dropout` to the method."""
    config = tiny_configs()[family] | (changes or {})
    inner = {key: options.pop(key) for key in ("rank", "targets", "dropout") if key in options}
    spec = MethodSpec(name=method, **{"rank": 4, **inner})
    return RunSpec(model=model_spec(family, config), method=spec, **{"bs": 3, "seq": 22, **options})
