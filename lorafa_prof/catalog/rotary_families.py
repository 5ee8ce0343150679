"""Decoders with rotary positions: one function per family, from configuration keys to fields of `ModelSpec`.

What a configuration does not say (which projections carry a bias, what is normalised, where dropout acts)
was read from the modelling code of transformers 5.23, and tests hold it against models built there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorafa_prof.catalog.config_reader import FULL, SLIDING, ConfigReader
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.specs import LARGEST_SIZE, MlaSpec, MoeSpec, require_number

Fields = dict[str, Any]

#: Gemma 3 without `layer_types`: every sixth layer attends to everything.
_GEMMA3_PATTERN = 6


def granite(c: ConfigReader) -> Fields:
    """Granite: a Llama whose head width may be given freely."""
    return {**_decoder(c), **_attention_bias(c), "mlp_bias": c.flag("mlp_bias")}


def llama(c: ConfigReader) -> Fields:
    """Llama; one key puts a bias on q, k, v and the output projection alike."""
    even_share(c)  # transformers insists even where head_dim is given
    return granite(c)


def mistral(c: ConfigReader) -> Fields:
    """Mistral: never a bias; a sliding window in every layer or in none."""
    return {**_decoder(c), **_window_everywhere(c)}


def mixtral(c: ConfigReader) -> Fields:
    """Mixtral: a Mistral with experts in every layer."""
    experts = c.size("num_local_experts")
    moe = MoeSpec(
        experts=experts,
        experts_per_token=c.size("num_experts_per_tok", high=experts),
        intermediate_size=c.size("intermediate_size"),
    )
    return {**mistral(c), "moe": moe}


def qwen2(c: ConfigReader) -> Fields:
    """Qwen 2 and 2.5: always a bias on q, k and v, never on the output projection."""
    return {**_decoder(c), **_late_windows(c), "attention_bias": True}


def qwen3(c: ConfigReader) -> Fields:
    """Qwen 3: q and k normalised per head, and a head width of its own."""
    decoder = _decoder(c, head_dim=c.size("head_dim"))
    return {**decoder, **_late_windows(c), **_attention_bias(c), "qk_norm": True}


def qwen2_moe(c: ConfigReader) -> Fields:
    """Qwen 1.5 and 2 with experts: a bias on q, k and v as a rule, and one expert beside that every token passes."""
    moe = _experts_everywhere(c, shared=c.size("shared_expert_intermediate_size"))
    return {**_decoder(c), **_early_windows(c), "attention_bias": c.flag("qkv_bias"), "moe": moe}


def qwen3_moe(c: ConfigReader) -> Fields:
    """Qwen 3 with experts: a sliding window in every layer or in none."""
    window = _switched_window(c)
    windows = _windows(c, window, (SLIDING,) * c.layers("num_hidden_layers") if window else ())
    return {**_decoder(c), **windows, **_attention_bias(c), "qk_norm": True, "moe": _experts_everywhere(c)}


def gemma(c: ConfigReader) -> Fields:
    """Gemma: a head width of its own, embeddings tied by default."""
    fields = {**_decoder(c, head_dim=c.size("head_dim")), **_attention_bias(c)}
    if fields["hidden_act"] == "gelu":  # the first releases wrote this and meant the tanh form, as transformers knows
        fields["hidden_act"] = "gelu_pytorch_tanh"
    return fields


def gemma2(c: ConfigReader) -> Fields:
    """Gemma 2: every second layer slides; attention scores and logits are softcapped."""
    return {
        **_later_gemma(c),
        **_alternating_windows(c, c.optional_size("sliding_window"), full_every=2),
        "attention_softcap": c.softcap("attn_logit_softcapping"),
    }


def gemma3(c: ConfigReader) -> Fields:
    """Gemma 3's language model: five layers of six slide; q and k normalised per head.

    `attn_logit_softcapping` is not read: the configuration class has the key, but the attention never
    applies it.
    """
    window = c.optional_size("sliding_window")
    both_ways = c.get("use_bidirectional_attention") is not None and c.flag("use_bidirectional_attention")
    if window and both_ways:
        window = window // 2 + 1  # half to either side
    every = c.optional_size("sliding_window_pattern") or _GEMMA3_PATTERN
    return {**_later_gemma(c), **_alternating_windows(c, window, full_every=every), "qk_norm": True}


def phi3(c: ConfigReader) -> Fields:
    """Phi-3 and Phi-4: fused projections without bias.

    `embd_pdrop` is not read: the configuration class has the key, but the model never applies it.
    """
    return {
        **_decoder(c),
        **_window_everywhere(c),
        "hidden_dropout": c.probability("resid_pdrop"),
        "partial_rotary_factor": _partial_rotary_factor(c),
    }


def _partial_rotary_factor(c: ConfigReader) -> float:
    """Return the share of a head that is turned: a key of its own before transformers 5, else a rotary parameter."""
    rotary = c.optional_object("rope_parameters") or {}
    value = rotary.get("partial_rotary_factor", c.get("partial_rotary_factor"))
    return 1.0 if value is None else require_number(f"{c.where}: partial_rotary_factor", value, 0.0, 1.0)


def deepseek_v2(c: ConfigReader) -> Fields:
    """DeepSeek-V2: latent attention and shared experts.

    Its `attention_bias` is on the projections into the latents and on the output projection. `head_dim`
    becomes the width of one query head, so that `ModelSpec.q_width` holds; the configuration's own key is
    ignored there.
    """
    mla = MlaSpec(
        kv_lora_rank=c.size("kv_lora_rank"),
        q_lora_rank=c.optional_size("q_lora_rank"),
        qk_nope_head_dim=c.size("qk_nope_head_dim"),
        qk_rope_head_dim=c.size("qk_rope_head_dim"),
        v_head_dim=c.size("v_head_dim"),
    )
    even_share(c)  # transformers insists although no width follows from it
    c.optional_size("head_dim")  # the same
    fields = _decoder(c, head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.qk_rope_head_dim % 2:
        raise BadInputError(f"{c.where}: qk_rope_head_dim must be even, not {mla.qk_rope_head_dim}")
    if fields["num_kv_heads"] != fields["num_heads"]:
        raise BadInputError(f"{c.where}: num_key_value_heads must equal num_attention_heads in latent attention")
    return {**fields, **_attention_bias(c), "mlp_bias": c.flag("mlp_bias"), "mla": mla, "moe": _shared_moe(c)}


def even_share(c: ConfigReader, hidden_key: str = "hidden_size", heads_key: str = "num_attention_heads") -> int:
    """Return the width of one head where the heads share the hidden size.

    Raises:
        BadInputError: they do not divide it.
    """
    hidden, heads = c.size(hidden_key), c.size(heads_key)
    if hidden % heads:
        raise BadInputError(f"{c.where}: {heads_key} {heads} does not divide {hidden_key} {hidden}")
    return hidden // heads


def _decoder(c: ConfigReader, *, head_dim: int | None = None, act_key: str = "hidden_act") -> Fields:
    """Return what every family here has: RMSNorm, gated MLP, rotary positions, no bias of its own."""
    heads = c.size("num_attention_heads")
    # Classes without a field `head_dim` (Qwen 2, Granite, Phi-3) honour the key all the same when it is
    # there.
    width = head_dim or c.optional_size("head_dim") or even_share(c)
    if width % 2:
        raise BadInputError(f"{c.where}: rotary positions need an even head_dim, not {width}")
    return {
        "hidden_size": c.size("hidden_size"),
        "num_layers": c.layers("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": c.optional_size("num_key_value_heads") or heads,
        "head_dim": width,
        "intermediate_size": c.size("intermediate_size"),
        "vocab_size": c.size("vocab_size"),
        "max_positions": c.size("max_position_embeddings", high=LARGEST_SIZE),
        "tie_word_embeddings": c.flag("tie_word_embeddings"),
        "hidden_act": c.activation(act_key),
        "attention_dropout": c.probability("attention_dropout"),
    }


def _later_gemma(c: ConfigReader) -> Fields:
    even_share(c)  # transformers insists even though head_dim is given
    return {
        **_decoder(c, head_dim=c.size("head_dim"), act_key="hidden_activation"),
        **_attention_bias(c),
        "logit_softcap": c.softcap("final_logit_softcapping"),
    }


def _shared_moe(c: ConfigReader) -> MoeSpec:
    experts = c.size("n_routed_experts")
    return MoeSpec(
        experts=experts,
        experts_per_token=c.size("num_experts_per_tok", high=experts),
        intermediate_size=c.size("moe_intermediate_size"),
        shared_experts=c.size("n_shared_experts", low=0),
        first_dense_layers=c.size("first_k_dense_replace", low=0),
    )


def _experts_everywhere(c: ConfigReader, *, shared: int | None = None) -> MoeSpec:
    """Return Qwen's experts, the inner width of a shared one beside them.

    Raises:
        UnsupportedError: layers without experts between others.
    """
    without = [] if c.get("mlp_only_layers") is None else c.get("mlp_only_layers")
    if not isinstance(without, (list, tuple)):
        raise c.refuse("mlp_only_layers", "a list of numbers of layers")
    if c.size("decoder_sparse_step") != 1 or without:
        raise UnsupportedError(
            f"{c.where}: layers without experts between others (decoder_sparse_step, mlp_only_layers) are not modelled"
        )
    experts = c.size("num_experts")
    return MoeSpec(
        experts=experts,
        experts_per_token=c.size("num_experts_per_tok", high=experts),
        intermediate_size=c.size("moe_intermediate_size"),
        shared_experts=int(shared is not None),
        shared_intermediate_size=shared,
    )


def _attention_bias(c: ConfigReader) -> Fields:
    bias = c.flag("attention_bias")
    return {"attention_bias": bias, "attention_out_bias": bias}


def _window_everywhere(c: ConfigReader) -> Fields:
    window = c.optional_size("sliding_window")
    return _windows(c, window, (SLIDING,) * c.layers("num_hidden_layers") if window else ())


def _late_windows(c: ConfigReader) -> Fields:
    """Return Qwen's windows: only if switched on, and then from layer `max_window_layers` on."""
    return _switched_windows(c, lambda layer, most: layer >= most)


def _early_windows(c: ConfigReader) -> Fields:
    """Return the windows of Qwen 2 with experts: every second layer before `max_window_layers`, if switched on."""
    return _switched_windows(c, lambda layer, most: layer < most and layer % 2 == 0)


def _switched_windows(c: ConfigReader, slides: Callable[[int, int], bool]) -> Fields:
    layers, most = c.layers("num_hidden_layers"), c.size("max_window_layers", low=0)
    window, types = _switched_window(c), c.layer_types(layers)
    if types is None:
        types = tuple(SLIDING if window and slides(layer, most) else FULL for layer in range(layers))
    return _windows(c, window, types)


def _switched_window(c: ConfigReader) -> int | None:
    window = c.optional_size("sliding_window")
    return window if c.flag("use_sliding_window") else None


def _alternating_windows(c: ConfigReader, window: int | None, full_every: int) -> Fields:
    """Return Gemma's windows: every `full_every`-th layer attends to everything, the others slide."""
    layers = c.layers("num_hidden_layers")
    types = c.layer_types(layers)
    if types is None:
        types = tuple(SLIDING if (layer + 1) % full_every else FULL for layer in range(layers))
    return _windows(c, window, types)


def _windows(c: ConfigReader, window: int | None, types: tuple[str, ...]) -> Fields:
    if SLIDING not in types:
        return {}
    if window is None:
        raise BadInputError(f"{c.where}: layers of type {SLIDING} need a sliding_window")
    return {"sliding_window": window, "layer_types": types}
