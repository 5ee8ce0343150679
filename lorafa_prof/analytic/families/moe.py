"""Mixture-of-experts decoders: Mixtral, and DeepSeek-V2 with its latent attention and shared experts.

Module names and the order of operations follow transformers' modelling files.
"""

from __future__ import annotations

from lorafa_prof.analytic.builder import BUFFERS, Builder, Linear, Norm
from lorafa_prof.analytic.families.common import not_modelled
from lorafa_prof.analytic.families.experts import DOWN, GATE_UP, ROUTER, FusedParameter, attach_adapters
from lorafa_prof.analytic.families.llama import Attention, traits_of
from lorafa_prof.analytic.tape import Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import MlaSpec, MoeSpec


class LatentAttention:
    """Keys and values pass through a narrow latent; a part of each head carries the rotary positions."""

    def __init__(self, builder: Builder, mla: MlaSpec) -> None:
        spec = builder.spec
        d, heads, bias = spec.hidden_size, spec.num_heads, spec.attention_bias
        head = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        latent = mla.kv_lora_rank
        self.queries: list[Linear | Norm] = []
        with builder.inside("self_attn"):
            if mla.q_lora_rank is None:
                self.queries = [builder.linear("q_proj", d, heads * head, role="q")]
            else:
                rank = mla.q_lora_rank
                self.queries = [
                    builder.linear("q_a_proj", d, rank, bias),
                    builder.norm("q_a_layernorm", rank),
                    builder.linear("q_b_proj", rank, heads * head, role="q"),
                ]
            self.compress = builder.linear("kv_a_proj_with_mqa", d, latent + mla.qk_rope_head_dim, bias)
            self.norm = builder.norm("kv_a_layernorm", latent)
            self.expand = builder.linear("kv_b_proj", latent, heads * (mla.qk_nope_head_dim + mla.v_head_dim), role="v")
            self.out = builder.linear("o_proj", heads * mla.v_head_dim, d, spec.attention_out_bias)


class GatedMlp:
    """down(act(gate(x)) * up(x)), of a width of its own."""

    def __init__(self, builder: Builder, name: str, width: int) -> None:
        spec = builder.spec
        d, bias = spec.hidden_size, spec.mlp_bias
        with builder.inside(name):
            self.gate, self.up = (builder.linear(f"{part}_proj", d, width, bias) for part in ("gate", "up"))
            self.down = builder.linear("down_proj", width, d, bias)


class Experts:
    """Router, routed experts as two fused parameters, and the experts that every token passes through."""

    def __init__(self, builder: Builder, moe: MoeSpec) -> None:
        d, number, width = builder.spec.hidden_size, moe.experts, moe.intermediate_size
        with builder.inside("mlp"):
            with builder.inside("gate"):
                self.router = FusedParameter(builder, ROUTER, (number, d))
            with builder.inside("experts"):
                self.gate_up = FusedParameter(builder, GATE_UP, (number, 2 * width, d))
                self.down = FusedParameter(builder, DOWN, (number, d, width))
            self.shared = None
            if moe.shared_experts:
                self.shared = GatedMlp(builder, "shared_experts", width * moe.shared_experts)
        self.fused = [self.router, self.gate_up, self.down]


class DecoderLayer:
    """Attention, then an MLP or experts, each with its norm before it."""

    def __init__(self, builder: Builder, index: int, moe: MoeSpec) -> None:
        spec = builder.spec
        self.index = index
        self.attention = Attention(builder, traits_of(spec)) if spec.mla is None else LatentAttention(builder, spec.mla)
        self.mlp: GatedMlp | Experts
        if index < moe.first_dense_layers:
            self.mlp = GatedMlp(builder, "mlp", spec.intermediate_size)
        else:
            self.mlp = Experts(builder, moe)
        self.before_attention = builder.norm("input_layernorm", spec.hidden_size)
        self.before_mlp = builder.norm("post_attention_layernorm", spec.hidden_size)


class MixtureOfExperts:
    """The whole language model."""

    batch: tuple[Tensor, Tensor]

    def __init__(self, builder: Builder) -> None:
        self.builder, self.spec = builder, builder.spec
        spec = self.spec
        if spec.moe is None or spec.task != "causal-lm":
            raise UnsupportedError(
                f"the analytic engine models {spec.architecture} as a causal language model with experts only"
            )
        with builder.inside("model"):
            self.table = builder.embedding("embed_tokens", spec.vocab_size, spec.hidden_size)
            dense = min(spec.moe.first_dense_layers, spec.num_layers)
            self.stacks = [
                self._stack(number, first, spec.moe)
                for first, number in ((0, dense), (dense, spec.num_layers - dense))
                if number
            ]
            self.norm = builder.norm("norm", spec.hidden_size)
            width = (spec.head_dim if spec.mla is None else spec.mla.qk_rope_head_dim) // 2
            for name in ("inv_freq", "original_inv_freq"):
                builder.parameter(f"rotary_emb.{name}", (width,), kind=BUFFERS, dtype="fp32")
        tied: Parameter | None = self.table if spec.tie_word_embeddings else None
        self.head = builder.linear("lm_head", spec.hidden_size, spec.vocab_size, head=True, tied_to=tied)
        experts = [layer.mlp for stack in self.stacks for layer in stack if isinstance(layer.mlp, Experts)]
        attach_adapters(builder, [parameter for layer in experts for parameter in layer.fused])

    def _stack(self, number: int, first: int, moe: MoeSpec) -> list[DecoderLayer]:
        """Build a run of layers that are alike: those with a plain MLP come first, those with experts after them."""
        layers = []
        for index, count in self.builder.layers(number, first=first):
            with self.builder.inside(f"layers.{index}", count):
                layers.append(DecoderLayer(self.builder, index, moe))
        return layers

    def loss(self) -> Tensor:
        """Refuse: the step of this architecture is not modelled."""
        raise not_modelled(self.spec)
