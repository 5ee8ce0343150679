"""What the families share: the plan of layers, activations, masks, embeddings, the language-model head and its loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.attention import AttentionOptions
from lorafa_prof.analytic.builder import Builder, Linear, prepared_dtype
from lorafa_prof.analytic.ops_loss import causal_lm_loss, fused_causal_lm_loss
from lorafa_prof.analytic.tape import INPUT, Tape
from lorafa_prof.analytic.tensors import ACTIVATIONS, Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import ModelSpec, RunSpec

Layer = Callable[[Tensor], Tensor]
#: Fused activations and which of their tensors autograd keeps.
_FUSED_ACTIVATIONS = {
    "silu": "input", "swish": "input", "gelu": "input", "gelu_pytorch_tanh": "input", "gelu_fast": "", "gelu_new": "",
    "relu": "output", "tanh": "output",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """One traced layer: its index in the real model and how to run it."""

    index: int
    name: str
    run: Layer
    kind: str = ""
    """What it is alike others in, where a model has several kinds."""


def not_modelled(spec: ModelSpec, what: str = "") -> UnsupportedError:
    """Return the error for a model whose parameters are counted here but whose step is not."""
    return UnsupportedError(
        f"the analytic engine does not model the step of {spec.name} ({spec.architecture}){what and ' ' + what}, "
        "only its parameters (lorafa-prof list models)"
    )


def activation(x: Tensor, name: str) -> Tensor:
    """Run the activation that transformers' ACT2FN gives for `name`.

    Raises:
        UnsupportedError: an activation whose saved tensors are not known here.
    """
    if _FUSED_ACTIVATIONS.get(name):
        return ops.unary(x, name, saves=_FUSED_ACTIVATIONS[name])
    if name == "gelu_new":
        return _new_gelu(x)
    raise UnsupportedError(f"the analytic engine does not model the activation {name!r}")


def _new_gelu(x: Tensor) -> Tensor:
    """0.5 * x * (1 + tanh(c * (x + 0.044715 * x**3))), written in Python (GPT-2): four tensors of the width are kept.

    Autocast runs the power in fp32 and so all that follows from it.
    """
    half = ops.scale(x, "0.5*x")
    # no names for the inner results: they would keep them longer than the one expression in transformers does
    return ops.mul(half, ops.shift(ops.unary(_tanh_argument(x), "tanh", saves="output"), "1 + tanh"), "gelu output")


def _tanh_argument(x: Tensor) -> Tensor:
    return ops.scale(ops.add(x, ops.scale(_cube(x), "0.044715*x**3"), "x + 0.044715*x**3"), "tanh argument")


def _cube(x: Tensor) -> Tensor:
    return ops.power(ops.cast(x, "fp32", "power input") if x.tape.autocast else x, 3)


def dropout(x: Tensor, p: float, name: str) -> Tensor:
    """Run the dropout module `name`."""
    with x.tape.scope(name):
        return ops.dropout(x, p)


def attention_kernel(run: RunSpec, *, mask: bool) -> str:
    """Return which kernel CUDA runs for the requested attention.

    Flash attention takes 16-bit inputs without a mask; memory-efficient attention takes the rest, except grouped
    key/value heads that are not repeated first, which are left to PyTorch's unfused path.

    Raises:
        UnsupportedError: flash attention of what it does not take.
    """
    spec = run.spec
    if run.attn == "eager":
        return "eager"
    if takes_eager_instead(run):
        return "eager"
    # prepared norms, in fp32, make all that comes behind them so
    if run.amp or (run.dtype in ("bf16", "fp16") and run.prepare_kbit == "none"):
        return "efficient" if mask and run.attn == "sdpa" else "flash"
    if run.attn == "flash":
        raise UnsupportedError("flash attention needs 16-bit tensors: use --dtype bf16 or --amp, or --attn sdpa")
    return "math" if spec.num_heads != spec.num_kv_heads and not mask else "efficient"


def takes_eager_instead(run: RunSpec) -> bool:
    """Say whether eager attention runs where sdpa is asked for: transformers refuses sdpa for capped scores."""
    return run.spec.attention_softcap is not None and run.attn == "sdpa"


def attention_options(run: RunSpec, *, mask: bool = False, causal: bool = True) -> AttentionOptions:
    """Return the options of the model's self-attention."""
    spec = run.spec
    return AttentionOptions(
        kernel=attention_kernel(run, mask=mask),
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        causal=causal,
        dropout=spec.attention_dropout,
        softcap=spec.attention_softcap,
        single=run.bs == 1,
        by_heads=spec.architecture == "phi3",
        softmax_dtype="fp32",
    )


def window_binds(run: RunSpec) -> bool:
    """Say whether the sequence reaches the sliding window: from there on windowed layers get an explicit mask."""
    return bool(reaches_window(run.spec, run.seq))


def reaches_window(spec: ModelSpec, seq: Any) -> Any:
    """Say whether a sequence, or which of an array of them, is as long as the sliding window."""
    return False if spec.sliding_window is None else seq >= spec.sliding_window


def causal_mask(tape: Tape, run: RunSpec, kernel: str) -> Tensor | None:
    """Return the mask that transformers makes for this kernel: none for flash, additive for eager, boolean for sdpa."""
    if kernel == "flash":
        return None
    if kernel == "eager":
        return tape.new("attention mask", ("b", "s", "s"), prepared_dtype(run, "embed_tokens"))
    return tape.new("attention mask", ("b", "s", "s"), "bool")  # one a sequence: the batch's own mask is worked in


def run_layers(builder: Builder, layers: Sequence[BuiltLayer], x: Tensor) -> Tensor:
    """Run the layers in order, marking where each begins so that the plan can repeat the middle one of each stack.

    Layers in a row that are alike are a stack: of one kind, and all with adapters or all without.
    """
    tape, method = builder.tape, builder.run.method
    checkpointing = builder.run.checkpointing
    selective = checkpointing == "selective"
    # the input of a stack is bound to no name but `x`: it may go when the stack's first layer is done
    for _, alike in itertools.groupby(layers, lambda layer: (layer.kind, method.adapts(layer.index))):
        row = list(alike)
        around = _Around(builder, len(tape.stacks), [layer.name for layer in row])
        tape.stacks.append(row[-1].index - row[0].index + 1)
        for position, layer in enumerate(row):
            x = around.boundary(x, position)
            with tape.scope(layer.name):
                around.enter(position)
                x = layer.run(x) if checkpointing == "none" else tape.checkpoint(layer.run, x, selective=selective)
                around.leave(position)
        x = around.boundary(x, len(row))
    return x


class _Around:
    """Notes what lies between the layers of a stack, and tells units where the step is."""

    def __init__(self, builder: Builder, stack: int, names: Sequence[str]) -> None:
        self.tape, self.units, self.stack, self.stand_ins = builder.tape, builder.units, stack, builder.stand_ins
        module = self.tape.module
        self.paths = [f"{module}.{name}" if module else name for name in names]

    def enter(self, position: int) -> None:
        if self.units is not None:
            self.units.enter(self.paths[position])

    def leave(self, position: int) -> None:
        if self.units is not None:
            self.units.leave(self.paths[position])

    def boundary(self, x: Tensor, position: int) -> Tensor:
        """Note where a layer begins, and let an identity note when the gradient of its input is complete."""
        tape = self.tape
        tape.boundaries["forward", self.stack, position] = len(tape.events)
        if not x.requires_grad:
            return x
        out = Tensor(tape, x.storage, x.shape, x.dtype)

        def backward(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
            if self.units is not None and position < len(self.paths):
                self.units.input_complete(self.paths[position])
            if position == 2:  # the layers that are not built have their turn between the third and the second
                self._complete_stand_ins()
            tape.boundaries["backward", self.stack, position] = len(tape.events)
            if self.units is not None and position > 0:
                self.units.output_complete(self.paths[position - 1])
            return [grads[0]]

        tape.record("layer boundary", [x], out, [], backward)
        return out

    def _complete_stand_ins(self) -> None:
        for leaf in self.stand_ins:
            if leaf.name.startswith(f"{self.paths[1]}."):
                self.tape.used(leaf)


def require_input_grad(builder: Builder, x: Tensor) -> Tensor:
    """With adapters and checkpointing, `enable_input_require_grads` makes the embedding's output a trained leaf."""
    if builder.full or builder.run.checkpointing == "none":
        return x
    leaf = Parameter(builder.tape, "embedding output", x.shape, x.dtype, trained=True, kind=INPUT)
    leaf.storage = x.storage
    return leaf


def make_batch(tape: Tape, task: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, labels (a label a token, or a class a sequence) and the attention mask, which is all set.

    Nothing is made of such a mask.
    """
    before = len(tape.items)
    with tape.scope("batch"):
        labels = ("b",) if task == "seq-cls" else ("b", "s")
        ids, targets = tape.new("input ids", ("b", "s"), "int64"), tape.new("labels", labels, "int64")
        mask = tape.new("attention mask", ("b", "s"), "int64")
    for item in tape.items[before:]:
        item.category = ACTIVATIONS
    return ids, targets, mask


def position_ids(tape: Tape) -> Tensor:
    """Return the positions 0..s-1, which the model's forward holds to its end."""
    return tape.new("position ids", ("s",), "int64")


def language_model_loss(logits: Tensor, head: Linear, labels: Tensor, run: RunSpec) -> Tensor:
    """Return the loss of a causal language model.

    Args:
        logits: what the model makes of its head's output; of the hidden states where the loss is fused with the head.
        head: the output head.
        labels: the batch's.
        run: says which loss.
    """
    tape = logits.tape
    with tape.scope("loss"):
        tape.enter(tape.module, "loss")
        if run.loss == "fused":
            return fused_causal_lm_loss(logits, head, labels, run)
        return causal_lm_loss(logits, labels, run.spec.vocab_size, single=run.bs == 1)
