"""BERT and RoBERTa (XLM-RoBERTa too) for sequence classification: an encoder with learned positions, active dropout.

Module names, the order of operations and the lifetime of each variable follow transformers' modelling files. The head
reads the first token; BERT's is one matrix, and the pooler before it a part of the model. With adapters PEFT trains a
copy of the head beside the frozen one (ModulesToSaveWrapper), and targets no layer inside it.
"""

from __future__ import annotations

from dataclasses import replace

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.attention import AttentionOptions, attend_with_weights, split_heads
from lorafa_prof.analytic.builder import ADAPTERS, BUFFERS, WEIGHTS, Builder
from lorafa_prof.analytic.families.common import (
    BuiltLayer,
    Layer,
    activation,
    attention_options,
    dropout,
    make_batch,
    not_modelled,
    require_input_grad,
    run_layers,
)
from lorafa_prof.analytic.ops_norm import layer_norm
from lorafa_prof.analytic.sizes import Shape
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Tensor


class Embeddings:
    """Words, token types (all 0) and positions, summed and normed."""

    def __init__(self, builder: Builder) -> None:
        self.builder, spec = builder, builder.spec
        width, rows = spec.hidden_size, position_rows(builder)
        with builder.inside("embeddings"):
            self.words = builder.embedding("word_embeddings", spec.vocab_size, width)
            self.types = builder.embedding("token_type_embeddings", spec.type_vocab_size, width)
            self.norm = builder.norm("LayerNorm", width, bias=True)
            self.positions = builder.embedding("position_embeddings", rows, width)
            for name in ("position_ids", "token_type_ids"):
                builder.parameter(name, (1, rows), kind=BUFFERS, dtype="int64")

    def __call__(self, ids: Tensor) -> Tensor:
        """Embed the batch."""
        tape = ids.tape
        with tape.scope("embeddings"):
            positions, types = self._positions_and_types(tape)
            with tape.scope("word_embeddings"):
                inputs = require_input_grad(self.builder, ops.embedding(ids, self.words))
            with tape.scope("token_type_embeddings"):
                of_types = ops.embedding(types, self.types, "token type embedding")
            x = ops.add(inputs, of_types, "embedding sum")
            with tape.scope("position_embeddings"):
                of_positions = ops.embedding(positions, self.positions, "position embedding")
            x = ops.add(x, of_positions, "embedding sum")
            x = self.norm(x, layer_norm)
            x = dropout(x, self.builder.spec.embedding_dropout, "dropout")
            del inputs, of_types, of_positions, positions, types  # all of them last as long as the function
            return x

    def _positions_and_types(self, tape: Tape) -> tuple[Tensor, Tensor]:
        """Return the positions, and the token types (all 0), which are gathered by them.

        RoBERTa counts positions from the ids, since padding has none. BERT's are the first rows of a buffer, the same
        for all sequences, and its types are repeated for each by a view.
        """
        whole: Shape = ("b", "s")
        if self.builder.spec.architecture != "bert":
            return tape.new("position ids", whole, "int64"), tape.new("token type ids", whole, "int64")
        one: Shape = whole if self.builder.run.bs == 1 else (1, "s")
        types = tape.new("token type ids", one, "int64")
        return Tensor(tape, None, one, "int64"), Tensor(tape, types.storage, whole, "int64")


def position_rows(builder: Builder) -> int:
    """Return the rows of the position table: RoBERTa's up to `pad_token_id` stand for no position."""
    spec = builder.spec
    assert spec.max_positions is not None, "learned positions are a table of so many rows"
    if spec.architecture == "bert":
        return spec.max_positions
    return spec.max_positions + int(spec.config.get("pad_token_id", 1)) + 1


class Output:
    """LayerNorm(dropout(dense(hidden)) + x): what closes attention and MLP."""

    def __init__(self, builder: Builder, in_features: int) -> None:
        width = builder.spec.hidden_size
        self.p = builder.spec.hidden_dropout
        with builder.inside("output"):
            self.dense = builder.linear("dense", in_features, width, True)
            self.norm = builder.norm("LayerNorm", width, bias=True)

    def __call__(self, hidden: Tensor, x: Tensor) -> Tensor:
        """Close a part of the layer whose input was `x`."""
        with x.tape.scope("output"):
            hidden = self.dense(hidden)
            hidden = dropout(hidden, self.p, "dropout")
            return self.norm(ops.add(hidden, x, "residual sum"), layer_norm)


class Attention:
    """Self-attention in both directions, and its output block."""

    def __init__(self, builder: Builder) -> None:
        spec = self.spec = builder.spec
        with builder.inside("attention"):
            with builder.inside("self"):
                self.query, self.key, self.value = (
                    builder.linear(name, spec.hidden_size, spec.q_width, True, role=name[0])
                    for name in ("query", "key", "value")
                )
            self.output = Output(builder, spec.hidden_size)

    def __call__(self, x: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor | None]:
        """Return the output and, from eager attention, the weights."""
        with x.tape.scope("attention"):
            out, weights = self._attended(x, options)
            out = self.output(out, x)
            return out, weights

    def _attended(self, x: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor | None]:
        heads, width, copies = self.spec.num_heads, self.spec.head_dim, options.kernel == "eager"
        with x.tape.scope("self"):
            q = split_heads(self.query(x), heads, width, copies_gradient=copies)
            # the gradient of a transposed k is laid out so that one sequence's heads are joined without a copy
            k = split_heads(self.key(x), heads, width, copies_gradient=copies and not options.single)
            v = split_heads(self.value(x), heads, width, copies_gradient=copies)
            out, weights = attend_with_weights(q, k, v, options)
            del q, k, v  # they last as long as the function
            return out, weights


class EncoderLayer:
    """Attention, then the MLP; each ends in its Output block."""

    def __init__(self, builder: Builder, index: int) -> None:
        spec = self.spec = builder.spec
        self.index = index
        self.attention = Attention(builder)
        with builder.inside("intermediate"):
            self.intermediate = builder.linear("dense", spec.hidden_size, spec.intermediate_size, True)
        self.output = Output(builder, spec.intermediate_size)

    def __call__(self, x: Tensor, options: AttentionOptions) -> Tensor:
        """Run the layer."""
        attention_output, _ = self.attention(x, options)  # the weights last to the end, as in the modelling file
        return self.output(self._intermediate(attention_output), attention_output)

    def _intermediate(self, x: Tensor) -> Tensor:
        with x.tape.scope("intermediate"):
            hidden = self.intermediate(x)
            with x.tape.scope("intermediate_act_fn"):
                return activation(hidden, self.spec.hidden_act)


class HeadLinear:
    """A linear layer of the classification head. No method adapts or quantises it."""

    def __init__(self, builder: Builder, name: str, out_features: int, *, kind: str, trained: bool) -> None:
        self.name = name
        width = builder.spec.hidden_size
        with builder.inside(name):
            self.weight = builder.parameter("weight", (out_features, width), kind=kind, trained=trained)
            self.bias = builder.parameter("bias", (out_features,), kind=kind, trained=trained)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the layer."""
        with x.tape.scope(self.name):
            return ops.linear(x, self.weight, self.bias)


class Pooler:
    """BERT's tanh(dense(first token)). Its layer is a linear one among the others: adapted, quantised."""

    def __init__(self, builder: Builder) -> None:
        width = builder.spec.hidden_size
        with builder.inside("pooler"):
            self.dense = builder.linear("dense", width, width, True)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return one vector a sequence."""
        with hidden.tape.scope("pooler"):
            first = ops.narrow(hidden, "b", hidden.shape[-1])
            return ops.unary(self.dense(first), "tanh", saves="output")


class PooledHead:
    """BERT's: classifier(dropout(what was pooled))."""

    def __init__(self, builder: Builder, name: str, *, kind: str, trained: bool) -> None:
        self.p = head_dropout(builder)
        self.classifier = HeadLinear(builder, name, builder.spec.num_labels, kind=kind, trained=trained)

    def __call__(self, pooled: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(dropout(pooled, self.p, "dropout"))


def head_dropout(builder: Builder) -> float:
    """Return the dropout of the head: its own, or that of the layers."""
    own = builder.spec.config.get("classifier_dropout")
    return builder.spec.hidden_dropout if own is None else float(own)


class Head:
    """out_proj(dropout(tanh(dense(dropout(first token)))))."""

    def __init__(self, builder: Builder, name: str, *, kind: str, trained: bool) -> None:
        spec = builder.spec
        self.name = name
        self.p = head_dropout(builder)
        with builder.inside(name):
            self.dense = HeadLinear(builder, "dense", spec.hidden_size, kind=kind, trained=trained)
            self.out_proj = HeadLinear(builder, "out_proj", spec.num_labels, kind=kind, trained=trained)

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits."""
        with features.tape.scope(self.name):
            x = ops.narrow(features, "b", features.shape[-1])
            x = dropout(x, self.p, "dropout")
            x = self.dense(x)
            x = ops.unary(x, "tanh", saves="output")
            x = dropout(x, self.p, "dropout")
            return self.out_proj(x)


def trained_head(builder: Builder) -> Head | PooledHead:
    """Build the head; with adapters that is a trained copy, and the original stays beside it."""
    of_kind = PooledHead if builder.spec.architecture == "bert" else Head
    if not builder.wrapped:
        return of_kind(builder, "classifier", kind=WEIGHTS, trained=builder.full)
    of_kind(builder, "classifier.original_module", kind=WEIGHTS, trained=False)
    return of_kind(builder, "classifier.modules_to_save", kind=ADAPTERS, trained=True)


class Classifier:
    """The whole model with its head."""

    batch: tuple[Tensor, Tensor, Tensor]

    def __init__(self, builder: Builder) -> None:
        self.builder, self.spec = builder, builder.spec
        self.prefix = "bert" if self.spec.architecture == "bert" else "roberta"
        with builder.inside(self.prefix):
            self.embeddings = Embeddings(builder)
            self.layers: list[EncoderLayer] = []
            for index, count in builder.layers(self.spec.num_layers):
                with builder.inside(f"encoder.layer.{index}", count):
                    self.layers.append(EncoderLayer(builder, index))
            self.pooler = Pooler(builder) if self.prefix == "bert" else None
        self.head = trained_head(builder)
        builder.attach_adapters()

    def loss(self) -> Tensor:
        """Run the forward and return the loss.

        Raises:
            UnsupportedError: another task than single-label classification, a decoder, or padded batches.
        """
        self._refuse_what_is_not_modelled()
        tape = self.builder.tape
        self.batch = ids, labels, _ = make_batch(tape, self.spec.task)
        with tape.scope(self.prefix):
            hidden = self._hidden(ids)  # the model's output keeps it, and what was pooled, until the loss is there
            pooled = hidden if self.pooler is None else self.pooler(hidden)
        logits = self.head(pooled)
        with tape.scope("loss"):
            tape.enter(tape.module, "loss")
            loss = ops.cross_entropy(logits, labels)
        del hidden, pooled
        return self.builder.finished(loss)

    def _refuse_what_is_not_modelled(self) -> None:
        if self.spec.config.get("is_decoder"):
            raise not_modelled(self.spec, "as a decoder")
        if self.builder.run.padded:
            raise not_modelled(self.spec, "with padded batches")
        kind = self.spec.config.get("problem_type") or ("regression" if self.spec.num_labels == 1 else None)
        if kind not in (None, "single_label_classification"):
            raise not_modelled(self.spec, f"with the loss of {kind}")

    def _hidden(self, ids: Tensor) -> Tensor:
        builder = self.builder
        embedded = self.embeddings(ids)  # the model's forward keeps it to its end
        options = replace(attention_options(builder.run, causal=False), softmax_dtype=None, casts_weights=False)
        layers = [
            BuiltLayer(layer.index, f"encoder.layer.{layer.index}", _bound(layer, options)) for layer in self.layers
        ]
        return run_layers(builder, layers, embedded)


def _bound(layer: EncoderLayer, options: AttentionOptions) -> Layer:
    return lambda x: layer(x, options)
