"""T5: an encoder and a decoder with relative position biases, RMSNorm without a mean, no biases, active dropout.

Module names, the order of operations and the lifetime of each variable follow transformers' modelling file. The
position bias is a small embedding in the first block of each stack; the table of tokens is shared by encoder, decoder
and (tied) the output head.
"""

from __future__ import annotations

import weakref
from typing import Protocol

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.attention import split_heads
from lorafa_prof.analytic.builder import Builder, Linear
from lorafa_prof.analytic.families.common import (
    BuiltLayer,
    activation,
    causal_mask,
    make_batch,
    not_modelled,
    require_input_grad,
    run_layers,
)
from lorafa_prof.analytic.families.t5_attention import Bias, Shapes, attend, lookup, no_bias
from lorafa_prof.analytic.tensors import Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import ITEMSIZE, RunSpec


def norm(x: Tensor, weight: Parameter) -> Tensor:
    """T5LayerNorm: x times the fp32 rsqrt(mean(x**2) + eps), back to a 16-bit weight's dtype, times the weight."""
    variance = ops.row_mean(ops.power(ops.cast(x, "fp32", "norm input")))
    inverse = ops.rsqrt(ops.shift(variance, "variance + eps"))
    normed = ops.mul(x, inverse, "normed")
    del inverse
    if weight.dtype != "fp32":
        normed = ops.cast(normed, weight.dtype, "normed")
    out = ops.mul(weight, normed, "norm output")
    del normed, variance
    return out


class Attention:
    """q, k, v and o, and in the first block of a stack the table of position biases."""

    def __init__(self, builder: Builder, name: str, *, biased: bool) -> None:
        spec = builder.spec
        self.name, self.shapes = name, shapes_of(builder.run)
        with builder.inside(name):
            self.q, self.k, self.v = (
                builder.linear(part, spec.hidden_size, spec.q_width, role=part) for part in ("q", "k", "v")
            )
            self.out = builder.linear("o", spec.q_width, spec.hidden_size)
            buckets = int(spec.config.get("relative_attention_num_buckets") or 32)
            self.table = builder.embedding("relative_attention_bias", buckets, spec.num_heads) if biased else None

    def __call__(self, x: Tensor, context: Tensor, biases: Biases) -> tuple[Tensor, Bias, Tensor | None]:
        """Return the output and what the block holds on to: the bias and the attention weights."""
        with x.tape.scope(self.name):
            q = self._heads(self.q, x)
            k, v = self._heads(self.k, context), self._heads(self.v, context)
            bias = biases.of_self(self, q) if context is x else biases.of_cross(self, q)
            out, weights = attend(q, k, v, bias, self.shapes)
            out = self.out(out)
            del q, k, v
            return out, bias, weights

    def _heads(self, layer: Linear, x: Tensor) -> Tensor:
        return split_heads(layer(x), self.shapes.heads, self.shapes.head_dim, copies_gradient=self.shapes.eager)


class FeedForward:
    """wo(act(wi(x))), or wo(act(wi_0(x)) * wi_1(x)) where it is gated."""

    def __init__(self, builder: Builder) -> None:
        spec = self.spec = builder.spec
        names = ("wi_0", "wi_1") if spec.gated_mlp else ("wi",)
        with builder.inside("DenseReluDense"):
            self.inputs = [builder.linear(name, spec.hidden_size, spec.intermediate_size) for name in names]
            # transformers lists it among the modules that it keeps in a wide dtype, and so does not quantise it
            self.out = builder.linear("wo", spec.intermediate_size, spec.hidden_size, quantised=False)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the MLP."""
        with x.tape.scope("DenseReluDense"):
            hidden = activation(self.inputs[0](x), self.spec.hidden_act)
            gate = up = None
            if len(self.inputs) == 2:
                gate, up = hidden, self.inputs[1](x)
                hidden = ops.mul(gate, up, "act(wi_0) * wi_1")
            hidden = ops.dropout(hidden, self.spec.hidden_dropout, "MLP dropout")
            hidden = ops.cast(hidden, self.out.weight.dtype, "wo input")
            out = self.out(hidden)
            del gate, up  # local variables of the real code until its end
            return out


class Block:
    """Self-attention, in the decoder cross-attention, and the MLP, each with its norm before it."""

    def __init__(self, builder: Builder, index: int, *, decoder: bool) -> None:
        self.index, self.dropout = index, builder.spec.hidden_dropout
        width = builder.spec.hidden_size
        with builder.inside("layer.0"):
            self.attention = Attention(builder, "SelfAttention", biased=index == 0)
            self.before_attention = builder.norm("layer_norm", width)
        self.cross: Attention | None = None
        if decoder:
            with builder.inside("layer.1"):
                self.cross = Attention(builder, "EncDecAttention", biased=False)
                self.before_cross = builder.norm("layer_norm", width)
        self.last = "layer.2" if decoder else "layer.1"
        with builder.inside(self.last):
            self.mlp = FeedForward(builder)
            self.before_mlp = builder.norm("layer_norm", width)

    def __call__(self, x: Tensor, encoded: Tensor | None, biases: Biases) -> Tensor:
        """Run the block over x; in the decoder `encoded` is what the encoder made."""
        with x.tape.scope("layer.0"):
            normed = self.before_attention(x, norm)
            out, bias, weights = self.attention(normed, normed, biases)
            x = self._joined(x, out)
            del out, normed
        cross_bias = None
        if self.cross is not None:
            assert encoded is not None
            with x.tape.scope("layer.1"):
                normed = self.before_cross(x, norm)
                out, cross_bias, cross_weights = self.cross(normed, encoded, biases)
                x = self._joined(x, out)
                weights = cross_weights  # the real code keeps the earlier ones until here
                del out, normed, cross_weights
        with x.tape.scope(self.last):
            normed = self.before_mlp(x, norm)
            out = self.mlp(normed)
            del normed
            x = self._joined(x, out)
        del weights, bias, cross_bias
        return x

    def _joined(self, x: Tensor, out: Tensor) -> Tensor:
        return ops.add(x, ops.dropout(out, self.dropout, "output dropout"), "residual sum")


class Biases(Protocol):
    """Where a block gets its position biases."""

    def of_self(self, attention: Attention, q: Tensor) -> Bias:
        """Return the learned bias of self-attention."""

    def of_cross(self, attention: Attention, q: Tensor) -> Bias:
        """Return the zeros of cross-attention."""


class KeptBiases:
    """The biases that the first block made, for the others: kept until the stack is done, or those are recomputed."""

    def __init__(self) -> None:
        self.self_bias: Bias | None = None
        self.cross_bias: Bias | None = None

    def of_self(self, attention: Attention, q: Tensor) -> Bias:
        """Return the learned bias of self-attention."""
        del attention, q
        assert self.self_bias is not None, "the first block has run"
        return self.self_bias

    def of_cross(self, attention: Attention, q: Tensor) -> Bias:
        """Return the zeros of cross-attention."""
        del attention, q
        assert self.cross_bias is not None, "the first block has run"
        return self.cross_bias


class MadeBiases:
    """The biases as the first block makes them: for all blocks, and once more for itself when it is recomputed."""

    def __init__(self, run: RunSpec, kept: KeptBiases, *, causal: bool, mask: Tensor | None) -> None:
        self.trained_zeros = run.checkpointing != "none"
        self.kept, self.causal, self.mask = weakref.ref(kept), causal, mask

    def of_self(self, attention: Attention, q: Tensor) -> Bias:
        """Look the learned bias up."""
        assert attention.table is not None, "the first block of a stack has the table"
        values = lookup(q.tape, attention.table, bidirectional=not self.causal)
        made = Bias(values, learned=True, causal=self.causal, mask=self.mask)
        kept = self.kept()
        if kept is not None and kept.self_bias is None:
            kept.self_bias = made
        return made

    def of_cross(self, attention: Attention, q: Tensor) -> Bias:
        """Make the zeros of cross-attention."""
        made = no_bias(q.tape, attention.shapes, q.dtype, trained=self.trained_zeros)
        kept = self.kept()
        if kept is not None and kept.cross_bias is None:
            kept.cross_bias = made
        return made


class Stack:
    """The encoder or the decoder."""

    def __init__(self, builder: Builder, name: str, number: int) -> None:
        self.builder, self.name, self.decoder = builder, name, name == "decoder"
        self.blocks: list[Block] = []
        with builder.inside(name):
            for index, count in builder.layers(number):
                with builder.inside(f"block.{index}", count):
                    self.blocks.append(Block(builder, index, decoder=self.decoder))
            self.norm = builder.norm("final_layer_norm", builder.spec.hidden_size)

    def __call__(self, ids: Tensor, table: Parameter, encoded: Tensor | None = None) -> Tensor:
        """Run the stack over token ids."""
        builder, tape, p = self.builder, ids.tape, self.builder.spec.hidden_dropout
        with tape.scope(self.name):
            with tape.scope("embed_tokens"):
                embedded = require_input_grad(builder, ops.embedding(ids, table))
            eager = builder.run.attn == "eager"
            mask = causal_mask(tape, builder.run, "eager") if eager and self.decoder else None
            kept = KeptBiases()
            layers = self._layers(encoded, kept, MadeBiases(builder.run, kept, causal=self.decoder, mask=mask))
            x = run_layers(builder, layers, ops.dropout(embedded, p, "embedding dropout"))
            x = ops.dropout(self.norm(x, norm), p, "output dropout")
            del embedded, mask, kept, layers
            return x

    def _layers(self, encoded: Tensor | None, kept: KeptBiases, made: MadeBiases) -> list[BuiltLayer]:
        def bound(block: Block) -> BuiltLayer:
            biases = kept if block.index else made
            return BuiltLayer(block.index, f"block.{block.index}", lambda x: block(x, encoded, biases))

        return [bound(block) for block in self.blocks]


class T5:
    """The whole model with its language-model head."""

    batch: tuple[Tensor, Tensor, Tensor]

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
        """Run the forward and return the loss."""
        refuse_what_is_not_modelled(self.builder.run)
        self.builder.assumptions.append("as many target tokens as source tokens")
        tape = self.builder.tape
        self.batch = ids, labels, _ = make_batch(tape, self.spec.task)
        encoded = self.encoder(ids, self.table)
        decoder_ids = tape.new("decoder input ids", ("b", "s"), "int64")
        decoded = x = self.decoder(decoder_ids, self.table, encoded)
        if self.spec.config.get("tie_word_embeddings") is not False:
            x = ops.scale(decoded, "scaled decoder output")
        logits = self.head(x)
        with tape.scope("loss"):
            tape.enter(tape.module, "loss")
            loss = ops.cross_entropy(ops.view(logits, "b", "s", self.spec.vocab_size), labels)
        del decoded, x  # they live as long as the loss is computed; so do the outputs, encoded and logits
        loss = self.builder.finished(loss)
        del encoded, logits
        return loss


def shapes_of(run: RunSpec) -> Shapes:
    """Return what the attention kernels need to know."""
    spec = run.spec
    return Shapes(spec.num_heads, spec.head_dim, spec.attention_dropout, single=run.bs == 1, eager=run.attn == "eager")


def refuse_what_is_not_modelled(run: RunSpec) -> None:
    """Raise where the step of T5 takes a way that is not written down here.

    Raises:
        UnsupportedError: flash attention, padded batches, fp16, or heads that no fused kernel takes.
    """
    spec = run.spec
    if run.attn == "flash":
        raise UnsupportedError(f"{spec.name} cannot use flash attention: its position bias is a mask; use --attn sdpa")
    if run.padded:
        raise not_modelled(spec, "with padded batches")
    if run.dtype == "fp16":
        raise not_modelled(spec, "in fp16, where each block looks for infinities and clamps")
    width = spec.head_dim * (2 if run.amp else ITEMSIZE[run.dtype])
    if run.attn != "eager" and (width % 16 or spec.num_heads == 1):
        raise not_modelled(spec, "with sdpa where heads are not a multiple of 16 bytes wide, or only one")
