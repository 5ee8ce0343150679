"""Mixture-of-experts decoders: Mixtral, Qwen 2 and 3, and DeepSeek-V2 with its latent attention and shared experts.

Module names, the order of operations and the lifetime of each variable follow transformers' modelling files.
"""

from __future__ import annotations

from functools import partial

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.attention import rotary_tables
from lorafa_prof.analytic.builder import BUFFERS, Builder
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
    window_binds,
)
from lorafa_prof.analytic.families.experts import RoutedExperts, attach_adapters
from lorafa_prof.analytic.families.latent import LatentAttention, LatentShared, latent_options, rotary_table
from lorafa_prof.analytic.families.llama import Attention, Shared, traits_of
from lorafa_prof.analytic.ops_norm import rms_norm
from lorafa_prof.analytic.tensors import Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import ITEMSIZE, MoeSpec, RunSpec


class GatedMlp:
    """down(act(gate(x)) * up(x)), of a width of its own."""

    def __init__(self, builder: Builder, name: str, width: int) -> None:
        spec = builder.spec
        d, bias = spec.hidden_size, spec.mlp_bias
        self.name, self.act = name, spec.hidden_act
        with builder.inside(name):
            self.gate, self.up = (builder.linear(f"{part}_proj", d, width, bias) for part in ("gate", "up"))
            self.down = builder.linear("down_proj", width, d, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the MLP."""
        with x.tape.scope(self.name):
            return self.down(ops.mul(activation(self.gate(x), self.act), self.up(x), "act(gate) * up"))


class Experts:
    """Routed experts, and beside them the experts that every token passes through."""

    def __init__(self, builder: Builder, moe: MoeSpec) -> None:
        self.shared: GatedMlp | None = None
        with builder.inside("mlp"):
            self.routed = RoutedExperts(builder, moe)
            if moe.shared_experts:
                self.shared = GatedMlp(builder, "shared_experts", moe.shared_width)

    def __call__(self, x: Tensor) -> Tensor:
        """Send each token to its experts."""
        with x.tape.scope("mlp"):
            logits, weights, indices = self.routed.route(x)
            out = self.routed(x, weights, indices)
            if self.shared is not None:
                out = ops.add(out, self.shared(x), "routed and shared experts")
            del logits, weights, indices
            return out


class ExpertsBesideAGatedOne:
    """Qwen 2's: a shared expert, whose output is weighed token by token, and routed ones. All take rows of tokens."""

    def __init__(self, builder: Builder, moe: MoeSpec) -> None:
        self.width = builder.spec.hidden_size
        with builder.inside("mlp"):
            self.routed = RoutedExperts(builder, moe)
            self.shared = GatedMlp(builder, "shared_expert", moe.shared_width)
            self.gate = builder.linear("shared_expert_gate", self.width, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Send each token to its experts."""
        with x.tape.scope("mlp"):
            rows = ops.view(x, "bs", self.width)
            shared = self.shared(rows)
            logits, weights, indices = self.routed.route(rows)
            out = self.routed(rows, weights, indices)
            shared = ops.mul(ops.unary(self.gate(rows), "sigmoid", saves="output"), shared, "weighed shared expert")
            out = ops.add(out, shared, "routed and shared experts")
            del logits, weights, indices
            return ops.view(out, "b", "s", self.width)


class DecoderLayer:
    """Attention, then an MLP or experts, each with its norm before it."""

    def __init__(self, builder: Builder, index: int, moe: MoeSpec) -> None:
        spec = builder.spec
        self.index = index
        self.attention = Attention(builder, traits_of(spec)) if spec.mla is None else LatentAttention(builder, spec.mla)
        self.mlp: GatedMlp | Experts | ExpertsBesideAGatedOne
        if index < moe.first_dense_layers:
            self.mlp = GatedMlp(builder, "mlp", spec.intermediate_size)
        elif spec.architecture == "qwen2_moe":
            self.mlp = ExpertsBesideAGatedOne(builder, moe)
        else:
            self.mlp = Experts(builder, moe)
        self.before_attention = builder.norm("input_layernorm", spec.hidden_size)
        self.before_mlp = builder.norm("post_attention_layernorm", spec.hidden_size)

    def __call__(self, x: Tensor, shared: Shared | LatentShared) -> Tensor:
        """Run the block: (b, s, d) to (b, s, d)."""
        residual = x
        x = self.before_attention(x, rms_norm)
        x, weights = self.attention(x, shared)  # type: ignore[arg-type]
        x = ops.add(residual, x, "residual sum")
        residual = x
        x = self.before_mlp(x, rms_norm)
        x = self.mlp(x)
        x = ops.add(residual, x, "residual sum")
        del weights  # eager attention's, which the layer holds to its end
        return x


class MixtureOfExperts:
    """The whole language model."""

    batch: tuple[Tensor, Tensor, Tensor]

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
            self.rotary_width = spec.head_dim if spec.mla is None else spec.mla.qk_rope_head_dim
            for name in ("inv_freq", "original_inv_freq"):
                builder.parameter(f"rotary_emb.{name}", (self.rotary_width // 2,), kind=BUFFERS, dtype="fp32")
        tied: Parameter | None = self.table if spec.tie_word_embeddings else None
        self.head = builder.linear("lm_head", spec.hidden_size, spec.vocab_size, head=True, tied_to=tied)
        routed = [layer.mlp.routed for layer in self._layers() if not isinstance(layer.mlp, GatedMlp)]
        attach_adapters(builder, routed)

    def _stack(self, number: int, first: int, moe: MoeSpec) -> list[DecoderLayer]:
        """Build a run of layers that are alike: those with a plain MLP come first, those with experts after them."""
        layers = []
        for index, count in self.builder.layers(number, first=first):
            with self.builder.inside(f"layers.{index}", count):
                layers.append(DecoderLayer(self.builder, index, moe))
        return layers

    def _layers(self) -> list[DecoderLayer]:
        return [layer for stack in self.stacks for layer in stack]

    def loss(self) -> Tensor:
        """Run the forward and return the loss."""
        refuse_what_is_not_modelled(self.builder.run)
        tape, run = self.builder.tape, self.builder.run
        self.builder.assumptions.append("experts run as grouped matrix products (transformers' default), one GPU")
        self.batch = ids, labels, _ = make_batch(tape, self.spec.task)
        with tape.scope("model"):
            hidden = self._hidden(ids)
        logits = self.head(hidden)
        loss = language_model_loss(logits, self.head, labels, run)
        del hidden
        return self.builder.finished(loss)

    def _hidden(self, ids: Tensor) -> Tensor:
        tape = ids.tape
        with tape.scope("embed_tokens"):
            x = require_input_grad(self.builder, ops.embedding(ids, self.table))
        positions, unused = position_ids(tape), self._unused_mask()
        shared = self._shared(x, positions)
        embedded = x
        x = run_layers(self.builder, [self._bound(layer, shared) for layer in self._layers()], x)
        x = self.norm(x, rms_norm)
        del shared, embedded, unused  # which live as long as the model's forward
        return x

    def _unused_mask(self) -> Tensor | None:
        """Return the mask that Qwen 2 makes for sliding layers although it has none: of a window of 0, which binds."""
        run = self.builder.run
        if self.spec.architecture != "qwen2_moe" or run.attn == "flash":
            return None
        return causal_mask(self.builder.tape, run, "eager" if run.attn == "eager" else "efficient")

    def _bound(self, layer: DecoderLayer, shared: Shared | LatentShared) -> BuiltLayer:
        kind = type(layer.mlp).__name__
        return BuiltLayer(layer.index, f"layers.{layer.index}", partial(layer, shared=shared), kind)

    def _shared(self, x: Tensor, positions: Tensor) -> Shared | LatentShared:
        """What every layer gets: positions, their rotary tables, and how to attend."""
        tape, run, mla = x.tape, self.builder.run, self.spec.mla
        binds = run.padded or (mla is None and window_binds(run))
        options = attention_options(run, mask=binds) if mla is None else latent_options(run, mla)
        masked = binds or options.kernel == "eager"
        mask = causal_mask(tape, run, options.kernel) if masked else None
        with tape.scope("rotary_emb"):
            if mla is not None:
                return LatentShared(rotary_table(tape, self.rotary_width), options, mask, positions)
            return Shared(rotary_tables(tape, self.rotary_width, x.dtype), options, mask, positions)


def refuse_what_is_not_modelled(run: RunSpec) -> None:
    """Raise where the step takes a way that is not written down here.

    Raises:
        UnsupportedError: an auxiliary loss of the router, noise on its input, widths that CUDA refuses.
    """
    spec = run.spec
    assert spec.moe is not None
    if any(width * ITEMSIZE[run.dtype] % 16 for width in (spec.hidden_size, spec.moe.intermediate_size)):
        raise not_modelled(spec, "where rows of its experts are not a multiple of 16 bytes (nor does CUDA run that)")
    if len(set(spec.layer_types)) > 1:
        raise not_modelled(spec, "with sliding windows in some of its layers")
    if spec.config.get("output_router_logits"):
        raise not_modelled(spec, "with its router's auxiliary loss")
    if spec.config.get("router_jitter_noise"):
        raise not_modelled(spec, "with noise on its router's input")
    if run.prepare_kbit != "none":
        raise not_modelled(spec, "after the k-bit preparation")
