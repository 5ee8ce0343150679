"""What transformers' configuration classes assume where a published configuration says nothing.

A published config.json leaves out every key that equals the default of the class that wrote it, so it
cannot be read without these. They are the fields of transformers 5.23's classes that decide memory or
arithmetic; a test holds them against the installed transformers. Only data: transformers itself takes
seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: The release of transformers that the defaults were read from.
TRANSFORMERS = "5.23"

_DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu",
        "max_position_embeddings": 131072, "tie_word_embeddings": False, "attention_dropout": 0.0,
        "sliding_window": 4096,
    },
    "mixtral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu",
        "max_position_embeddings": 131072, "tie_word_embeddings": False, "attention_dropout": 0.0,
        "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "attention_dropout": 0.0,
        "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28, "layer_types": None,
    },
    "qwen3": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "attention_bias": False,
        "attention_dropout": 0.0, "sliding_window": 4096, "use_sliding_window": False,
        "max_window_layers": 28, "layer_types": None,
    },
    "qwen2_moe": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "silu",
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "attention_dropout": 0.0,
        "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28, "layer_types": None,
        "qkv_bias": True, "decoder_sparse_step": 1, "mlp_only_layers": None, "num_experts": 60,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_act": "silu",
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "attention_bias": False,
        "attention_dropout": 0.0, "sliding_window": 4096, "use_sliding_window": False,
        "decoder_sparse_step": 1, "mlp_only_layers": None, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "gemma": {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "attention_bias": False, "attention_dropout": 0.0,
    },
    "gemma2": {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "attention_bias": False, "attention_dropout": 0.0,
        "sliding_window": 4096, "layer_types": None, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "attention_bias": False, "attention_dropout": 0.0,
        "sliding_window": 4096, "layer_types": None, "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    "phi3": {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "silu",
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "attention_dropout": 0.0,
        "sliding_window": None, "resid_pdrop": 0.0,
    },
    "gpt2": {
        "vocab_size": 50257, "tie_word_embeddings": True, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
        "n_head": 12, "n_inner": None, "activation_function": "gelu_new", "resid_pdrop": 0.1,
        "embd_pdrop": 0.1, "attn_pdrop": 0.1, "add_cross_attention": False,
    },
    "gpt_bigcode": {
        "vocab_size": 50257, "tie_word_embeddings": True, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
        "n_head": 12, "n_inner": None, "activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.1,
        "embd_pdrop": 0.1, "attn_pdrop": 0.1, "multi_query": True, "add_cross_attention": False,
    },
    "granite": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "silu",
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0,
    },
    "roberta": {
        "vocab_size": 50265, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "hidden_act": "gelu", "max_position_embeddings": 512,
        "tie_word_embeddings": True, "add_cross_attention": False, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "type_vocab_size": 2, "pad_token_id": 1,
    },
    "xlm-roberta": {
        "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "hidden_act": "gelu", "max_position_embeddings": 512,
        "tie_word_embeddings": True, "add_cross_attention": False, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "type_vocab_size": 2, "pad_token_id": 1,
    },
    "bert": {
        "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "hidden_act": "gelu", "max_position_embeddings": 512,
        "tie_word_embeddings": True, "add_cross_attention": False, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "type_vocab_size": 2,
    },
    "t5": {
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6,
        "num_decoder_layers": None, "num_heads": 8, "dropout_rate": 0.1, "feed_forward_proj": "relu",
    },
    "deepseek_v2": {
        "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "silu",
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "num_experts_per_tok": None,
        "first_k_dense_replace": 0, "kv_lora_rank": 512, "q_lora_rank": 1536, "n_routed_experts": 64,
        "n_shared_experts": 2, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "moe_intermediate_size": 1407,
    },
}  # fmt: skip

_GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

#: Per `model_type` the value of every key that decides memory or arithmetic, where a configuration leaves
#: it out.
DEFAULTS: Mapping[str, Mapping[str, object]] = MappingProxyType(_DEFAULTS)

#: Per `model_type` the second names that transformers accepts (`attribute_map`); where both are there,
#: these win.
ALIASES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gpt2": _GPT2_ALIASES,
        "gpt_bigcode": _GPT2_ALIASES,
        "mixtral": {"num_experts": "num_local_experts"},
        "deepseek_v2": {"num_experts": "n_routed_experts"},
        "t5": {
            "hidden_size": "d_model",
            "num_attention_heads": "num_heads",
            "num_hidden_layers": "num_layers",
            "head_dim": "d_kv",
        },
    }
)

#: Activation functions that transformers knows by name (`ACT2FN`).
ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu",
    "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
)  # fmt: skip
