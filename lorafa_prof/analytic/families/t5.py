"""T5: an encoder and a decoder with relative position biases, RMSNorm without a mean, no biases, active dropout.

Module names and the order of operations follow transformers' modelling file. The position bias is a small embedding
in the first block of each stack; the table of tokens is shared by encoder, decoder and (tied) the output head.
"""

from __future__ import annotations

from lorafa_prof.analytic.builder import Builder
from lorafa_prof.analytic.families.common import not_modelled
from lorafa_prof.analytic.tape import Tensor


class Attention:
    """q, k, v and o, and in the first block of a stack the table of position biases."""

    def __init__(self, builder: Builder, name: str, *, biased: bool) -> None:
        spec = builder.spec
        with builder.inside(name):
            self.q, self.k, self.v = (
                builder.linear(part, spec.hidden_size, spec.q_width, role=part) for part in ("q", "k", "v")
            )
            self.out = builder.linear("o", spec.q_width, spec.hidden_size)
            buckets = int(spec.config.get("relative_attention_num_buckets") or 32)
            self.bias = builder.embedding("relative_attention_bias", buckets, spec.num_heads) if biased else None


class FeedForward:
    """wo(act(wi(x))), or wo(act(wi_0(x)) * wi_1(x)) where it is gated."""

    def __init__(self, builder: Builder) -> None:
        spec = builder.spec
        names = ("wi_0", "wi_1") if spec.gated_mlp else ("wi",)
        with builder.inside("DenseReluDense"):
            self.inputs = [builder.linear(name, spec.hidden_size, spec.intermediate_size) for name in names]
            self.out = builder.linear("wo", spec.intermediate_size, spec.hidden_size)


class Block:
    """Self-attention, in the decoder cross-attention, and the MLP, each with its norm before it."""

    def __init__(self, builder: Builder, index: int, *, decoder: bool) -> None:
        self.index = index
        width = builder.spec.hidden_size
        with builder.inside("layer.0"):
            self.attention = Attention(builder, "SelfAttention", biased=index == 0)
            self.before_attention = builder.norm("layer_norm", width)
        self.cross: Attention | None = None
        if decoder:
            with builder.inside("layer.1"):
                self.cross = Attention(builder, "EncDecAttention", biased=False)
                self.before_cross = builder.norm("layer_norm", width)
        with builder.inside("layer.2" if decoder else "layer.1"):
            self.mlp = FeedForward(builder)
            self.before_mlp = builder.norm("layer_norm", width)


class Stack:
    """The encoder or the decoder."""

    def __init__(self, builder: Builder, name: str, number: int) -> None:
        self.name, self.blocks = name, []
        with builder.inside(name):
            for index, count in builder.layers(number):
                with builder.inside(f"block.{index}", count):
                    self.blocks.append(Block(builder, index, decoder=name == "decoder"))
            self.norm = builder.norm("final_layer_norm", builder.spec.hidden_size)


class T5:
    """The whole model with its language-model head."""

    batch: tuple[Tensor, Tensor]

    def __init__(self, builder: Builder) -> None:
        self.builder, self.spec = builder, builder.spec
        spec = self.spec
        self.table = builder.embedding("shared", spec.vocab_size, spec.hidden_size)
        self.encoder = Stack(builder, "encoder", spec.num_layers)
        self.decoder = Stack(builder, "decoder", spec.num_decoder_layers)
        tied = self.table if spec.tie_word_embeddings else None
        self.head = builder.linear("lm_head", spec.hidden_size, spec.vocab_size, head=True, tied_to=tied)
        builder.attach_adapters()

    def loss(self) -> Tensor:
        """Refuse: the step of this architecture is not modelled."""
        raise not_modelled(self.spec)
