"""Every `model_type` that can be read, and the families with learned or relative positions.

As in `rotary_families`, what a configuration does not say was read from the modelling code of transformers
5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lorafa_prof.catalog import rotary_families as rotary
from lorafa_prof.catalog.config_reader import ConfigReader
from lorafa_prof.catalog.rotary_families import Fields, even_share
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.specs import LARGEST_SIZE, Task

_ALL_BIASED: Mapping[str, bool] = MappingProxyType(
    {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True, "gated_mlp": False}
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` is read."""

    read: Callable[[ConfigReader], Fields]
    tasks: tuple[Task, ...] = ("causal-lm", "seq-cls")
    """Tasks that transformers has a model class for; the first is the default."""


def gpt2(c: ConfigReader) -> Fields:
    """GPT-2: learned positions, fused q, k and v, biases everywhere, dropout that is active in training."""
    _refuse_cross_attention(c)
    hidden, heads = c.size("n_embd"), c.size("n_head")
    return {
        **_ALL_BIASED,
        "hidden_size": hidden,
        "num_layers": c.layers("n_layer"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": even_share(c, "n_embd", "n_head"),
        "intermediate_size": c.optional_size("n_inner") or 4 * hidden,
        "vocab_size": c.size("vocab_size"),
        "max_positions": c.size("n_positions", high=LARGEST_SIZE),
        "tie_word_embeddings": c.flag("tie_word_embeddings"),
        "hidden_act": c.activation("activation_function"),
        "attention_dropout": c.probability("attn_pdrop"),
        "hidden_dropout": c.probability("resid_pdrop"),
        "embedding_dropout": c.probability("embd_pdrop"),
    }


def gpt_bigcode(c: ConfigReader) -> Fields:
    """GPTBigCode (StarCoder): a GPT-2 whose heads share one key and value head."""
    fields = gpt2(c)
    return {**fields, "num_kv_heads": 1 if c.flag("multi_query") else fields["num_heads"]}


def bert(c: ConfigReader) -> Fields:
    """BERT: an encoder with learned positions, biases everywhere, and dropout that is active in training."""
    _refuse_cross_attention(c)
    heads, dropout = c.size("num_attention_heads"), c.probability("hidden_dropout_prob")
    return {
        **_ALL_BIASED,
        "hidden_size": c.size("hidden_size"),
        "num_layers": c.layers("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": even_share(c),
        "intermediate_size": c.size("intermediate_size"),
        "vocab_size": c.size("vocab_size"),
        "max_positions": c.size("max_position_embeddings", high=LARGEST_SIZE),
        "tie_word_embeddings": c.flag("tie_word_embeddings"),
        "hidden_act": c.activation("hidden_act"),
        "attention_dropout": c.probability("attention_probs_dropout_prob"),
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "type_vocab_size": c.size("type_vocab_size"),
    }


def roberta(c: ConfigReader) -> Fields:
    """RoBERTa: a BERT that counts positions from `pad_token_id` + 1 on.

    The first rows of its position embedding stand for no token: a table of 514 rows has room for 512 tokens.
    """
    fields = bert(c)
    rows, padding = fields["max_positions"], c.size("pad_token_id", low=0)
    if padding + 1 >= rows:
        raise BadInputError(f"{c.where}: pad_token_id {padding} leaves max_position_embeddings {rows} no room")
    return {**fields, "max_positions": rows - padding - 1}


def t5(c: ConfigReader) -> Fields:
    """T5: encoder and decoder, relative positions without a limit, no biases."""
    heads, dropout, layers = c.size("num_heads"), c.probability("dropout_rate"), c.layers("num_layers")
    decoder_layers = layers if c.get("num_decoder_layers") is None else c.layers("num_decoder_layers")
    return {
        **_t5_activation(c),
        "hidden_size": c.size("d_model"),
        "num_layers": layers,
        "num_decoder_layers": decoder_layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": c.size("d_kv"),
        "intermediate_size": c.size("d_ff"),
        "vocab_size": c.size("vocab_size"),
        "max_positions": None,
        "tie_word_embeddings": True,  # what the configuration says is overruled by transformers 5
        "attention_dropout": dropout,
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
    }


def _t5_activation(c: ConfigReader) -> Fields:
    """Return what `feed_forward_proj` says: "relu", or "gated-gelu" with the tanh form of GELU."""
    written = c.text("feed_forward_proj")
    gate, _, name = written.rpartition("-")
    if gate not in ("", "gated"):
        raise c.refuse("feed_forward_proj", "an activation function or gated-<activation function>")
    act = "gelu_new" if written == "gated-gelu" else c.known_activation("feed_forward_proj", name)
    return {"hidden_act": act, "gated_mlp": gate == "gated"}


def _refuse_cross_attention(c: ConfigReader) -> None:
    if c.flag("add_cross_attention"):
        raise UnsupportedError(f"{c.where}: add_cross_attention (half an encoder-decoder) is not modelled")


#: Every `model_type` that can be read.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bert": Family(read=bert, tasks=("seq-cls",)),
        "deepseek_v2": Family(read=rotary.deepseek_v2),
        "gemma": Family(read=rotary.gemma),
        "gemma2": Family(read=rotary.gemma2),
        "gemma3_text": Family(read=rotary.gemma3),
        "gpt2": Family(read=gpt2),
        "gpt_bigcode": Family(read=gpt_bigcode),
        "granite": Family(read=rotary.granite, tasks=("causal-lm",)),
        "llama": Family(read=rotary.llama),
        "mistral": Family(read=rotary.mistral),
        "mixtral": Family(read=rotary.mixtral),
        "phi3": Family(read=rotary.phi3),
        "qwen2": Family(read=rotary.qwen2),
        "qwen2_moe": Family(read=rotary.qwen2_moe),
        "qwen3": Family(read=rotary.qwen3),
        "qwen3_moe": Family(read=rotary.qwen3_moe),
        "roberta": Family(read=roberta, tasks=("seq-cls",)),
        "t5": Family(read=t5, tasks=("seq2seq-lm",)),
        "xlm-roberta": Family(read=roberta, tasks=("seq-cls",)),
    }
)
