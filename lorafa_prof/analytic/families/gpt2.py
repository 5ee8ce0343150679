"""GPT-2 and GPT-BigCode: learned positions, LayerNorm, one matrix for q, k and v, dropout that is active in training.

Module names, the order of operations and the lifetime of each variable follow transformers' modelling files. GPT-2's
Conv1D is `addmm` with the weight transposed: it allocates and saves what a biased linear layer does.
"""

from __future__ import annotations

from dataclasses import replace

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.attention import AttentionOptions, attend_with_weights, split_heads
from lorafa_prof.analytic.builder import BUFFERS, Builder
from lorafa_prof.analytic.families.common import (
    BuiltLayer,
    Layer,
    activation,
    attention_options,
    causal_mask,
    dropout,
    language_model_loss,
    make_batch,
    not_modelled,
    require_input_grad,
    run_layers,
)
from lorafa_prof.analytic.ops_norm import layer_norm
from lorafa_prof.analytic.sizes import Shape
from lorafa_prof.analytic.tensors import Tensor


class Attention:
    """c_attn makes q, k and v, c_proj the output; GPT-BigCode's heads share one key and value head (multi-query)."""

    def __init__(self, builder: Builder) -> None:
        spec = self.spec = builder.spec
        with builder.inside("attn"):
            self.c_attn = builder.linear("c_attn", spec.hidden_size, spec.q_width + 2 * spec.kv_width, True, role="qkv")
            self.c_proj = builder.linear("c_proj", spec.hidden_size, spec.hidden_size, True)

    def __call__(self, x: Tensor, options: AttentionOptions, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the output and, from eager attention, the weights."""
        with x.tape.scope("attn"):
            q, k, v = self._heads(x, options)
            out, weights = attend_with_weights(q, k, v, options, mask)
            out = self.c_proj(out)
            out = dropout(out, self.spec.hidden_dropout, "resid_dropout")
            return out, weights

    def _heads(self, x: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v as heads: views of what c_attn made. They are made in the order of the modelling file."""
        spec = self.spec
        heads, width, copies = spec.num_heads, spec.head_dim, options.kernel == "eager"
        fused = self.c_attn(x)
        if spec.architecture == "gpt_bigcode" and spec.num_kv_heads == heads:
            by_heads = split_heads(fused, heads, 3 * width, copies_gradient=True)
            q, k, v = ops.split(by_heads, [("b", heads, "s", width)] * 3)
            return q, k, v
        if spec.num_kv_heads != heads:
            one_head: Shape = ("b", 1, "s", width)
            q, k, v = ops.split(fused, [("b", "s", spec.q_width), one_head, one_head])
        else:
            q, k, v = ops.split(fused, [("b", "s", spec.q_width)] * 3)
            # the gradient of a transposed k is laid out so that its heads can be joined without a copy
            k, v = split_heads(k, heads, width), split_heads(v, heads, width, copies_gradient=copies)
        return split_heads(q, heads, width, copies_gradient=copies), k, v


class Mlp:
    """c_proj(act(c_fc(x))), then dropout."""

    def __init__(self, builder: Builder) -> None:
        spec = self.spec = builder.spec
        with builder.inside("mlp"):
            self.c_fc = builder.linear("c_fc", spec.hidden_size, spec.intermediate_size, True)
            self.c_proj = builder.linear("c_proj", spec.intermediate_size, spec.hidden_size, True)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the MLP."""
        with x.tape.scope("mlp"):
            hidden = self.c_fc(x)
            with x.tape.scope("act"):
                hidden = activation(hidden, self.spec.hidden_act)
            hidden = self.c_proj(hidden)
            return dropout(hidden, self.spec.hidden_dropout, "dropout")


class Block:
    """ln_1, attention, ln_2, MLP, each of the two with a residual sum."""

    def __init__(self, builder: Builder, index: int) -> None:
        self.index = index
        self.ln_1 = builder.norm("ln_1", builder.spec.hidden_size, bias=True)
        self.attn = Attention(builder)
        self.ln_2 = builder.norm("ln_2", builder.spec.hidden_size, bias=True)
        self.mlp = Mlp(builder)

    def __call__(
        self, x: Tensor, options: AttentionOptions, mask: Tensor | None, _position_ids: Tensor | None
    ) -> Tensor:
        """Run the block. GPT-2 hands the position ids down to attention, which holds them and has no use for them."""
        residual = x
        x = self.ln_1(x, layer_norm)
        attn_output, _ = self.attn(x, options, mask)  # both names last to the end, as in the modelling file
        x = ops.add(attn_output, residual, "residual sum")
        residual = x
        x = self.ln_2(x, layer_norm)
        return ops.add(residual, self.mlp(x), "residual sum")


class Gpt2:
    """The whole language model; the head is the table of tokens."""

    batch: tuple[Tensor, Tensor, Tensor]

    def __init__(self, builder: Builder) -> None:
        self.builder, self.spec = builder, builder.spec
        spec = self.spec
        if spec.task != "causal-lm":
            raise not_modelled(spec, f"for {spec.task}")
        assert spec.max_positions is not None, "learned positions are a table of so many rows"
        with builder.inside("transformer"):
            self.wte = builder.embedding("wte", spec.vocab_size, spec.hidden_size)
            self.wpe = builder.embedding("wpe", spec.max_positions, spec.hidden_size)
            self.blocks: list[Block] = []
            for index, count in builder.layers(spec.num_layers):
                with builder.inside(f"h.{index}", count):
                    self.blocks.append(Block(builder, index))
            self.ln_f = builder.norm("ln_f", spec.hidden_size, bias=True)
            if spec.architecture == "gpt_bigcode":
                builder.parameter("bias", (spec.max_positions, spec.max_positions), kind=BUFFERS, dtype="bool")
        tied = self.wte if spec.tie_word_embeddings else None
        self.head = builder.linear("lm_head", spec.hidden_size, spec.vocab_size, head=True, tied_to=tied)
        builder.attach_adapters()

    def loss(self) -> Tensor:
        """Run the forward and return the loss.

        Raises:
            UnsupportedError: attention scores upcast and scaled in another order (reorder_and_upcast_attn).
        """
        if self.spec.config.get("reorder_and_upcast_attn") and self.builder.run.attn == "eager":
            raise not_modelled(self.spec, "with reorder_and_upcast_attn")
        tape = self.builder.tape
        self.batch = ids, labels, _ = make_batch(tape, self.spec.task)
        with tape.scope("transformer"):
            hidden = self._hidden(ids)  # the model's output keeps it until the loss is there
        logits = self.head(hidden)
        loss = language_model_loss(logits, self.head, labels, self.builder.run)
        del hidden
        return self.builder.finished(loss)

    def _hidden(self, ids: Tensor) -> Tensor:
        builder, tape, run = self.builder, self.builder.tape, self.builder.run
        with tape.scope("wte"):
            inputs = require_input_grad(builder, ops.embedding(ids, self.wte))
        positions = tape.new("position ids", ("b" if run.bs == 1 else 1, "s"), "int64")  # one row, whatever the batch
        with tape.scope("wpe"):
            places = ops.embedding(positions, self.wpe, "position embedding")
        bigcode = self.spec.architecture == "gpt_bigcode"
        options = replace(attention_options(run, mask=run.padded), softmax_dtype="fp32" if bigcode else None)
        masked = run.padded or options.kernel == "eager"
        mask = causal_mask(tape, run, options.kernel) if masked else None
        shared = (options, mask, None if bigcode else positions)
        layers = [BuiltLayer(block.index, f"h.{block.index}", _bound(block, shared)) for block in self.blocks]
        p = self.spec.embedding_dropout
        # the blocks' first input is bound to no name here: it may go when the first block is done
        x = run_layers(builder, layers, dropout(ops.add(inputs, places, "embedding sum"), p, "drop"))
        x = self.ln_f(x, layer_norm)
        del inputs, places, positions
        return x


def _bound(block: Block, shared: tuple[AttentionOptions, Tensor | None, Tensor | None]) -> Layer:
    return lambda x: block(x, *shared)
