"""Losses of language models: transformers' own after the head, and head and loss in one."""

from __future__ import annotations

from collections.abc import Sequence

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import Product
from lorafa_prof.analytic.builder import Linear
from lorafa_prof.analytic.sizes import Shape, chunk_symbol
from lorafa_prof.analytic.tensors import Grads, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import RunSpec


def causal_lm_loss(logits: Tensor, labels: Tensor, vocab: int, *, single: bool = False) -> Tensor:
    """transformers' ForCausalLMLoss: logits to fp32, labels shifted by one token, cross entropy.

    The shift of a `single` sequence is a view of the padded labels.
    """
    logits = ops.cast(logits, "fp32", "logits")
    padded, shifted = _shifted(labels, single=single)
    flat = ops.view(logits, "b", "s", vocab)
    del labels
    loss = ops.cross_entropy(flat, shifted)
    del padded, shifted
    return loss


def _shifted(labels: Tensor, *, single: bool) -> tuple[Tensor, Tensor]:
    tape = labels.tape
    padded = tape.new("padded labels", ("b", "p"), "int64")
    return padded, padded if single else tape.new("shifted labels", ("b", "s"), "int64")


def fused_causal_lm_loss(hidden: Tensor, head: Linear, labels: Tensor, run: RunSpec) -> Tensor:
    """Head and loss in one, chunk by chunk, as `lorafa_prof.workload.fused_loss` runs them after Liger.

    Raises:
        UnsupportedError: capped logits, an adapted head, or a trained head under autocast.
    """
    refused = (
        (run.spec.logit_softcap is not None, "with capped logits"),
        (head.adapter is not None, "over an adapted head"),
        (run.amp and run.method.name == "full", "with a trained head under autocast"),
    )
    for is_refused, what in refused:
        if is_refused:
            raise UnsupportedError(f"{run.model.name}: the fused loss is not modelled {what}; --loss hf is")
    padded, shifted = _shifted(labels, single=run.bs == 1)
    loss = _fused_linear_cross_entropy(ops.view(hidden, "b", "s", int(head.weight.shape[1])), head.weight)
    del padded, shifted
    return loss


def _fused_linear_cross_entropy(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (b, s, m), weight (v, m): the forward makes both gradients, and they are all that is kept.

    One chunk of C tokens stands for all: each writes over the one before. Under autocast the product is none that is
    told where to write, and the weight is cast for each.
    """
    tape, dtype = hidden.tape, hidden.dtype
    v, m = int(weight.shape[0]), int(weight.shape[1])
    rows, chunk = hidden.shape[:-1], chunk_symbol(-(-v // m))
    kept: list[Tensor | None] = [ops.like(hidden, "gradient of hidden states")]
    kept.append(tape.new("gradient of weight", weight.shape, weight.dtype) if weight.requires_grad else None)
    losses = tape.new("losses of tokens", rows, "fp32")
    counted = tape.new("labels that count", rows, "bool")
    number = tape.new("number of labels", (), "int64")
    scale = tape.new("1 / number of labels", (), "fp32")
    del number
    places = tape.new("places of labels", rows, "int64")
    labels = tape.new("labels, none ignored", rows, "int64")
    del labels
    direct = dtype == weight.dtype and (not tape.autocast or dtype == tape.autocast)
    if direct:
        logits = tape.new("logits of a chunk", (chunk, v), dtype)
    else:
        casts = _autocast(weight), tape.new("chunk to bf16", (chunk, m), "bf16") if dtype != "bf16" else None
        logits = tape.new("logits of a chunk", (chunk, v), "bf16")
        del casts
    chosen = tape.new("probabilities of labels", (chunk,), logits.dtype)
    del chosen
    if not direct:
        cast = _autocast(weight)
        gradient = tape.new("gradient of a chunk", (chunk, m), "bf16")
        del cast, gradient
    del logits
    loss = tape.new("loss", (), "fp32")
    flops = ops.matmul_flops(rows, m, v)
    product = Product(dtype if direct else "bf16", (), rows, (m,), (v,), chunk=(chunk,))
    of_hidden, of_weight = product.backwards
    of_weight = of_weight.transposed._replace(added=weight.shape)
    tape.count_flops("linear", flops, of=product)
    for _, of in filter(lambda made: made[0] is not None, zip(kept, (of_hidden, of_weight), strict=True)):
        tape.count_flops("linear", flops, backward=True, of=of)
    _move_chunks(rows, v, product.dtype, [x for x in kept if x is not None])
    saved = list(kept)

    def backward(g: Grads) -> list[Tensor | None]:
        del g  # multiplied in place
        made = list(kept)
        for gradient in filter(None, made):
            tape.moved("mul_", [gradient], [gradient])
        kept.clear()
        return made

    if tape.needs_grad(hidden, weight):
        tape.record("fused linear cross entropy", [hidden, weight], loss, saved, backward)
    del saved, losses, counted, scale, places
    return loss


def _move_chunks(rows: Shape, v: int, dtype: str, gradients: Sequence[Tensor]) -> None:
    """Note what the forward moves beside its products: softmax of the logits, ignored ones cleared; gradients scaled.

    Of all chunks together; what there is a number for each token of is left out.
    """
    tape = gradients[0].tape
    logits = Tensor(tape, None, (*rows, v), dtype)
    for gradient in gradients:
        tape.moved("zeros_like", [], [gradient])
    for op in ("_softmax", "mul_"):
        tape.moved(op, [logits], [logits])
    for gradient in gradients:
        tape.moved("mul_", [gradient], [gradient])


def _autocast(weight: Tensor) -> Tensor | None:
    """Return the cast of a frozen weight, which autocast does not keep."""
    return None if weight.dtype == "bf16" else ops.like(weight, "autocast weight", "bf16")
