"""The sizes that the paper's formulas speak of, and how they are read off a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lorafa_prof.analytic.paper.formula import Formula
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import ModelSpec

#: What a linear layer reads: the attention's input, the attention's output, the MLP's input, the activation's output.
Source = Literal["attention", "context", "mlp", "product"]

#: Families whose parameters are exactly: embedding, head, per layer the linears, two norms and perhaps biases or
#: query and key norms, and a last norm.
_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "granite")
#: Families that compute query, key and value in one linear layer, or gate and up in one.
_FUSED_QKV = ("gpt2", "gpt_bigcode", "phi3")
_FUSED_GATE = ("phi3",)

#: What each symbol stands for.
LETTERS: Mapping[str, str] = {
    "b": "sequences", "s": "tokens of each", "d": "hidden size", "f": "MLP width", "a": "attention width",
    "h": "heads", "m": "inputs of a layer", "k": "outputs of a layer", "r": "rank", "L": "blocks",
    "l": "linear layers of a block", "v": "vocabulary", "M": "largest m", "K": "largest k",
    "Σm": "sum of m over a block", "Σk": "sum of k over a block", "Σmk": "sum of mk over a block",
    "P": "parameters of the model", "Q": "parameters in its blocks' linear layers", "U": "P - Q",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer of a block: m inputs, k outputs."""

    name: str
    m: int
    k: int
    source: Source


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The architecture in the letters of the paper's appendix C, with k for the output width and L for the layers."""

    name: str
    hidden: int
    """d"""
    ffn: int
    """f: the MLP's inner width."""
    layers: int
    """L"""
    vocab: int
    """v"""
    heads: int
    """h"""
    context: int
    """a: width of the attention's output, heads times head width; the same as d in most models."""
    linears: tuple[Linear, ...]
    """The linear layers of one block; their number is l."""
    parameters: Formula | None
    """P, all parameters of the model; None where neither a formula nor a published count is known."""

    def symbols(self, bs: int, seq: int, rank: int) -> Mapping[str, int]:
        """Return the number of every symbol that the tables use."""
        sums = {
            "Σm": sum(linear.m for linear in self.linears),
            "Σk": sum(linear.k for linear in self.linears),
            "Σmk": sum(linear.m * linear.k for linear in self.linears),
        }
        basic = {
            "b": bs, "s": seq, "r": rank, "d": self.hidden, "f": self.ffn, "a": self.context, "h": self.heads,
            "L": self.layers, "l": len(self.linears), "v": self.vocab,
            "M": max(linear.m for linear in self.linears), "K": max(linear.k for linear in self.linears), **sums,
        }  # fmt: skip
        quantised = self.layers * sums["Σmk"]
        if self.parameters is None:
            return {**basic, "Q": quantised}
        parameters = int(self.parameters.evaluate(basic))
        return {**basic, "P": parameters, "Q": quantised, "U": parameters - quantised}

    def input_symbol(self, source: Source) -> str:
        """Return the letter of the width that `source` has."""
        context = "d" if self.context == self.hidden else "a"
        return {"attention": "d", "context": context, "mlp": "d", "product": "f"}[source]


def llama_dims(
    name: str, *, hidden: int, ffn: int, layers: int, vocab: int, heads: int, kv_heads: int | None = None
) -> Dims:
    """Return the dims of a Llama model, whose head width is hidden / heads and whose head is not tied."""
    kv_width = hidden // heads * (heads if kv_heads is None else kv_heads)
    return Dims(
        name=name, hidden=hidden, ffn=ffn, layers=layers, vocab=vocab, heads=heads, context=hidden,
        linears=(*_attention(hidden, hidden, kv_width, fused=False), *_gated(hidden, ffn, fused=False)),
        parameters=Formula.parse("2vd+LΣmk+2Ld+d"),
    )  # fmt: skip


def dims_of(spec: ModelSpec) -> Dims:
    """Return the dims of a dense model.

    Raises:
        UnsupportedError: a mixture of experts, latent attention or an encoder-decoder: the paper's formulas speak of
            one stack of equal blocks.
    """
    for present, what in (
        (spec.moe, "a mixture of experts"),
        (spec.mla, "multi-head latent attention"),
        (spec.num_decoder_layers, "an encoder-decoder"),
    ):
        if present:
            raise UnsupportedError(
                f"the paper's tables describe one stack of equal dense blocks; {spec.name} is {what}: use predict"
            )
    hidden, ffn = spec.hidden_size, spec.intermediate_size
    mlp = _gated(hidden, ffn, fused=spec.architecture in _FUSED_GATE) if spec.gated_mlp else _plain(hidden, ffn)
    attention = _attention(hidden, spec.q_width, spec.kv_width, fused=spec.architecture in _FUSED_QKV)
    return Dims(
        name=spec.name, hidden=hidden, ffn=ffn, layers=spec.num_layers, vocab=spec.vocab_size, heads=spec.num_heads,
        context=spec.q_width, linears=(*attention, *mlp), parameters=_parameters(spec),
    )  # fmt: skip


def _attention(hidden: int, q_width: int, kv_width: int, *, fused: bool) -> tuple[Linear, ...]:
    out = Linear(name="o", m=q_width, k=hidden, source="context")
    if fused:
        return (Linear(name="qkv", m=hidden, k=q_width + 2 * kv_width, source="attention"), out)
    widths = (("q", q_width), ("k", kv_width), ("v", kv_width))
    return (*(Linear(name=name, m=hidden, k=width, source="attention") for name, width in widths), out)


def _gated(hidden: int, ffn: int, *, fused: bool) -> tuple[Linear, ...]:
    down = Linear(name="down", m=ffn, k=hidden, source="product")
    if fused:
        return (Linear(name="gate_up", m=hidden, k=2 * ffn, source="mlp"), down)
    return (*(Linear(name=name, m=hidden, k=ffn, source="mlp") for name in ("gate", "up")), down)


def _plain(hidden: int, ffn: int) -> tuple[Linear, ...]:
    up = Linear(name="up", m=hidden, k=ffn, source="mlp")
    return (up, Linear(name="down", m=ffn, k=hidden, source="product"))


def _parameters(spec: ModelSpec) -> Formula | None:
    """Return P as a formula where the family's is known, else the count that the catalog publishes."""
    if spec.architecture in _LLAMA_LIKE and spec.task == "causal-lm" and not spec.mlp_bias:
        biases = (spec.q_width + 2 * spec.kv_width) * spec.attention_bias + spec.hidden_size * spec.attention_out_bias
        small = biases + 2 * spec.head_dim * spec.qk_norm
        tables = "vd" if spec.tie_word_embeddings else "2vd"
        return Formula.parse(f"{tables}+LΣmk+2Ld+d" + (f"+{small}L" if small else ""))
    return None if spec.parameters is None else Formula.parse(str(spec.parameters))


#: Two models that the paper's text names; everything said about them is computed from these sizes.
LLAMA_65B = llama_dims("llama-65b", hidden=8192, ffn=22016, layers=80, vocab=32000, heads=64)
LLAMA3_70B = llama_dims("llama3-70b", hidden=8192, ffn=28672, layers=80, vocab=128256, heads=64, kv_heads=8)
