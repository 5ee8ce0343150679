"""Decoders of Llama's shape: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi-3/4, Granite.

Module names, the order of operations and the lifetime of each variable follow transformers' modelling files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.attention import AttentionOptions, attend_with_weights, rotary, rotary_tables, split_heads
from lorafa_prof.analytic.builder import BUFFERS, Builder, Linear, Norm
from lorafa_prof.analytic.families.common import (
    BuiltLayer,
    activation,
    attention_options,
    causal_mask,
    language_model_loss,
    make_batch,
    not_modelled,
    position_ids,
    require_input_grad,
    run_layers,
    takes_eager_instead,
    window_binds,
)
from lorafa_prof.analytic.ops_norm import gemma_rms_norm, rms_norm
from lorafa_prof.analytic.tensors import Parameter, Tensor
from lorafa_prof.specs import ModelSpec

GEMMAS = ("gemma", "gemma2", "gemma3_text")
SANDWICHED = ("gemma2", "gemma3_text")  # a norm after attention and MLP as well as before


@dataclass(frozen=True)
class Traits:
    """Where one architecture departs from Llama."""

    fused_projections: bool
    """One matrix for q, k and v and one for gate and up (Phi-3)."""
    gemma_norm: bool
    sandwiched: bool
    scaled_residual: bool
    """Outputs of attention and MLP are multiplied by a number before they are added (Granite)."""
    scaled_embedding: bool
    scaled_logits: bool
    rotated: int | None
    """Width of the head that the rotary embedding turns; None for all of it."""


def traits_of(spec: ModelSpec) -> Traits:
    """Return the traits of a Llama-like architecture."""
    rotated = int(spec.head_dim * spec.partial_rotary_factor)
    return Traits(
        fused_projections=spec.architecture == "phi3",
        gemma_norm=spec.architecture in GEMMAS,
        sandwiched=spec.architecture in SANDWICHED,
        scaled_residual=spec.architecture == "granite",
        scaled_embedding=spec.architecture in (*GEMMAS, "granite"),
        scaled_logits=spec.architecture == "granite",
        rotated=rotated if spec.architecture == "phi3" else None,
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """What a model's forward hands to every layer, and so holds to its end."""

    tables: tuple[Tensor, Tensor]
    options: AttentionOptions
    mask: Tensor | None
    positions: Tensor


class Attention:
    """Projections, rotary embedding, attention, output projection."""

    def __init__(self, builder: Builder, traits: Traits) -> None:
        spec = self.spec = builder.spec
        self.traits = traits
        d, q, kv, bias = spec.hidden_size, spec.q_width, spec.kv_width, spec.attention_bias
        with builder.inside("self_attn"):
            self.projections: list[Linear] = []
            if traits.fused_projections:
                self.out = builder.linear("o_proj", q, d, spec.attention_out_bias)
                self.projections = [builder.linear("qkv_proj", d, q + 2 * kv, bias, role="qkv")]
            else:
                for name, width in (("q", q), ("k", kv), ("v", kv)):
                    self.projections.append(builder.linear(f"{name}_proj", d, width, bias, role=name))
                self.out = builder.linear("o_proj", q, d, spec.attention_out_bias)
            self.norms = [builder.norm(f"{n}_norm", spec.head_dim) for n in "qk"] if spec.qk_norm else []

    def __call__(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor | None]:
        """Attend: (b, s, d) to (b, s, d), and the eager code's weights, which the layer holds to its end."""
        with x.tape.scope("self_attn"):
            q, k, v = self._heads(x)
            q, k = (rotary(part, *shared.tables, self.traits.rotated) for part in (q, k))
            out, weights = attend_with_weights(q, k, v, shared.options, shared.mask)
            del q, k, v
            return self.out(out), weights

    def _heads(self, x: Tensor) -> list[Tensor]:
        spec = self.spec
        widths = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        if self.traits.fused_projections:
            fused = self.projections[0](x)
            parts = [ops.narrow(fused, "b", "s", heads * spec.head_dim) for heads in widths]
            return [
                split_heads(part, heads, spec.head_dim, copies_gradient=i < 2)
                for i, (part, heads) in enumerate(zip(parts, widths, strict=True))
            ]
        return [self._project(i, x) for i in range(3)]

    def _project(self, i: int, x: Tensor) -> Tensor:
        spec, layer = self.spec, self.projections[i]
        heads = spec.num_heads if i == 0 else spec.num_kv_heads
        out = split_heads(layer(x), heads, spec.head_dim, copies_gradient=i < 2)
        if self.norms and i < 2:
            return self.norms[i](out, norm_function(self.traits))
        return out


class Mlp:
    """down(act(gate(x)) * up(x))."""

    def __init__(self, builder: Builder, traits: Traits) -> None:
        spec = self.spec = builder.spec
        d, f = spec.hidden_size, spec.intermediate_size
        with builder.inside("mlp"):
            if traits.fused_projections:
                self.inputs = [builder.linear("gate_up_proj", d, 2 * f)]
            else:
                self.inputs = [builder.linear(f"{name}_proj", d, f, spec.mlp_bias) for name in ("gate", "up")]
            self.down = builder.linear("down_proj", f, d, spec.mlp_bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the MLP: (b, s, d) to (b, s, d)."""
        with x.tape.scope("mlp"):
            return self.down(self._gated(x))

    def _gated(self, x: Tensor) -> Tensor:
        act, width = self.spec.hidden_act, self.spec.intermediate_size
        if len(self.inputs) == 2:
            return ops.mul(activation(self.inputs[0](x), act), self.inputs[1](x), "act(gate) * up")
        gate, up = ops.split(self.inputs[0](x), [("b", "s", width)] * 2)
        return ops.mul(up, activation(gate, act), "up * act(gate)")


def norm_function(traits: Traits) -> Callable[[Tensor, Parameter], Tensor]:
    """Return the norm's formula."""
    return gemma_rms_norm if traits.gemma_norm else rms_norm


class DecoderLayer:
    """One block; sandwiched architectures norm the outputs of attention and MLP too."""

    def __init__(self, builder: Builder, traits: Traits, index: int) -> None:
        d = builder.spec.hidden_size
        self.traits, self.index = traits, index
        self.residual_dropout = builder.spec.hidden_dropout
        self.attention = Attention(builder, traits)
        self.mlp = Mlp(builder, traits)
        self.before_attention = builder.norm("input_layernorm", d)
        self.after_attention = builder.norm("post_attention_layernorm", d)
        self.before_mlp = self.after_attention
        self.after_mlp: Norm | None = None
        if traits.sandwiched:
            self.before_mlp = builder.norm("pre_feedforward_layernorm", d)
            self.after_mlp = builder.norm("post_feedforward_layernorm", d)

    def __call__(self, x: Tensor, shared: Shared) -> Tensor:
        """Run the block: (b, s, d) to (b, s, d)."""
        function = norm_function(self.traits)
        residual = x
        x = self.before_attention(x, function)
        x, weights = self.attention(x, shared)
        x = self._joined(residual, x, self.after_attention if self.traits.sandwiched else None)
        residual = x
        x = self.before_mlp(x, function)
        x = self.mlp(x)
        x = self._joined(residual, x, self.after_mlp)
        del weights
        return x

    def _joined(self, residual: Tensor, x: Tensor, norm: Norm | None) -> Tensor:
        if norm is not None:
            x = norm(x, norm_function(self.traits))
        if self.traits.scaled_residual:
            x = ops.scale(x, "scaled output")
        x = ops.dropout(x, self.residual_dropout, "residual dropout")
        return ops.add(residual, x, "residual sum")


class LlamaLike:
    """The whole language model."""

    def __init__(self, builder: Builder) -> None:
        self.builder, self.spec = builder, builder.spec
        self.traits = traits_of(self.spec)
        if self.spec.task != "causal-lm":
            raise not_modelled(self.spec, "for sequence classification")
        if takes_eager_instead(builder.run):
            builder.assumptions.append("eager attention: transformers refuses sdpa for this model's capped scores")
        spec = self.spec
        with builder.inside("model"):
            self.table = builder.embedding("embed_tokens", spec.vocab_size, spec.hidden_size)
            if self.traits.gemma_norm:
                with builder.inside("embed_tokens"):
                    builder.parameter("embed_scale", (), kind=BUFFERS)
            # layers of both kinds differ by their mask where the window binds, and in Gemma 3 by their rotary tables
            mixed = len(set(spec.layer_types)) > 1
            alike = not mixed or not (window_binds(builder.run) or spec.architecture == "gemma3_text")
            self.layers: list[DecoderLayer] = []
            for index, count in builder.layers(spec.num_layers, alike):
                with builder.inside(f"layers.{index}", count):
                    self.layers.append(DecoderLayer(builder, self.traits, index))
            self.norm = builder.norm("norm", spec.hidden_size)
            self._hold_rotary_buffers()
        self.head = builder.linear("lm_head", spec.hidden_size, spec.vocab_size, head=True, tied_to=self._tied())
        builder.attach_adapters()

    def _tied(self) -> Parameter | None:
        return self.table if self.spec.tie_word_embeddings else None

    def _hold_rotary_buffers(self) -> None:
        width = (self.traits.rotated or self.spec.head_dim) // 2
        for kind in self._rotary_kinds():
            for name in ("inv_freq", "original_inv_freq"):
                prefix = f"{kind}_" if kind else ""
                self.builder.parameter(f"rotary_emb.{prefix}{name}", (width,), kind=BUFFERS, dtype="fp32")

    def loss(self) -> Tensor:
        """Run the forward and return the loss."""
        builder, tape = self.builder, self.builder.tape
        self.batch = ids, labels, _ = make_batch(tape, self.spec.task)
        with tape.scope("model"):
            hidden = self._hidden(ids)
        logits = self._logits(hidden)
        loss = language_model_loss(logits, self.head, labels, builder.run)
        del hidden  # transformers holds the last hidden state until its forward returns
        return builder.finished(loss)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden)
        if self.traits.scaled_logits:
            logits = ops.scale(logits, "scaled logits")
        if self.spec.logit_softcap is not None:
            logits = ops.scale(logits, "logits / softcap")
            logits = ops.unary(logits, "tanh", saves="output")
            logits = ops.scale(logits, "capped logits")
        return logits

    def _hidden(self, ids: Tensor) -> Tensor:
        x = self._embedded(ids)
        positions = position_ids(self.builder.tape)
        layers = self._bound_layers(x.dtype, positions)
        x = run_layers(self.builder, layers, x)
        x = self.norm(x, norm_function(self.traits))
        del positions, layers
        return x

    def _embedded(self, ids: Tensor) -> Tensor:
        with ids.tape.scope("embed_tokens"):
            x = ops.embedding(ids, self.table)
            if self.traits.gemma_norm:
                x = ops.scale(x, "scaled embedding")
            x = require_input_grad(self.builder, x)
        if self.traits.scaled_embedding and not self.traits.gemma_norm:
            x = ops.scale(x, "scaled embedding")
        return x

    def _bound_layers(self, dtype: str, positions: Tensor) -> list[BuiltLayer]:
        """Return the layers with what the forward hands to each, by its kind of attention."""
        spec = self.spec
        of_kind = {kind: self._masked(kind) for kind in self._attention_kinds()}
        tables = self._tables(dtype)
        only = next(iter(of_kind))
        layers = []
        for layer in self.layers:
            kind = spec.layer_types[layer.index] if spec.layer_types else only
            shared = Shared(tables.get(kind) or tables[""], *of_kind[kind], positions)
            name = f"layers.{layer.index}"
            layers.append(BuiltLayer(layer.index, name, partial(layer, shared=shared)))
        return layers

    def _attention_kinds(self) -> list[str]:
        """Return the kinds of attention that the forward makes a mask for, used or not."""
        spec = self.spec
        if spec.architecture in SANDWICHED:
            return ["full_attention", "sliding_attention"]
        if spec.layer_types:
            return sorted({"full_attention", *spec.layer_types})
        return ["full_attention" if spec.sliding_window is None else "sliding_attention"]

    def _masked(self, kind: str) -> tuple[AttentionOptions, Tensor | None]:
        """Return the kernel and the mask of one kind of attention.

        Eager always has a mask, a padded batch and a binding window have one too.
        """
        run = self.builder.run
        binds = run.padded or (kind == "sliding_attention" and window_binds(run))
        options = attention_options(run, mask=binds)
        masked = binds or options.kernel == "eager"
        return options, causal_mask(self.builder.tape, run, options.kernel) if masked else None

    def _tables(self, dtype: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return cos and sin, which Gemma 3 makes for each kind of attention apart."""
        tape = self.builder.tape
        with tape.scope("rotary_emb"):
            width = self.traits.rotated or self.spec.head_dim
            return {kind: rotary_tables(tape, width, dtype) for kind in self._rotary_kinds()}

    def _rotary_kinds(self) -> list[str]:
        return sorted(set(self.spec.layer_types)) if self.spec.architecture == "gemma3_text" else [""]
