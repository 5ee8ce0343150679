"""The fine-tuning methods: one registered function each, which adds an adapter to a linear layer and says how it runs.

The forwards are those of PEFT 0.21; what autograd keeps of them follows from the operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lorafa_prof.analytic import ops, ops_adalora
from lorafa_prof.analytic.builder import ADAPTERS, BUFFERS, AdapterForward, Builder, Linear, MakeAdapter, targeted
from lorafa_prof.analytic.lora_fa import add_adapter
from lorafa_prof.analytic.sizes import SENTINEL, WITNESS
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.layers import RankBeyondError
from lorafa_prof.registry import Registry

_METHODS: Registry[MakeAdapter] = Registry("method")
register = _METHODS.register


def adapter_maker(name: str) -> MakeAdapter | None:
    """Return the registered function of a method; None for full fine-tuning.

    Raises:
        UnsupportedError: a method of the contract that this engine does not model.
    """
    if name == "full":
        return None
    if name not in _METHODS:
        modelled = ", ".join(modelled_methods())
        raise UnsupportedError(
            f"the analytic engine does not model the method {name} (it does: {modelled}); --engine simulate runs others"
        )
    return _METHODS[name]


def modelled_methods() -> list[str]:
    """Return the names of the methods that this engine models."""
    return ["full", *_METHODS]


def _pair(builder: Builder, layer: Linear, *, train_a: bool, train_b: bool) -> tuple[Parameter, Parameter]:
    """A (r, m) and B (k, r)."""
    rank, dtype = builder.run.method.rank, builder.run.resolved_adapter_dtype
    a = builder.parameter("lora_A.weight", (rank, layer.in_features), kind=ADAPTERS, trained=train_a, dtype=dtype)
    b = builder.parameter("lora_B.weight", (layer.out_features, rank), kind=ADAPTERS, trained=train_b, dtype=dtype)
    return a, b


def _low_rank(builder: Builder, layer: Linear, *, train_a: bool, train_b: bool) -> AdapterForward:
    """y = W x + scaling * B A dropout(x), A (r, m), B (k, r): PEFT's lora.Linear and lora.bnb.Linear4bit."""
    run = builder.run
    dtype, p = run.resolved_adapter_dtype, run.method.dropout
    a, b = _pair(builder, layer, train_a=train_a, train_b=train_b)
    if layer.quant != "none":
        return _over_quantised((a, b), p, dtype, clones=layer.quant != "int8")

    def forward(x: Tensor, result: Tensor) -> Tensor:
        out_dtype = result.dtype
        x = ops.cast(x, dtype, "adapter input")
        delta = _product(x, (a, b), p)
        result = ops.add(result, delta, "adapted result")
        del delta
        return ops.cast(result, out_dtype, "adapted result")

    return forward


def _over_quantised(pair: tuple[Parameter, Parameter], p: float, dtype: str, *, clones: bool) -> AdapterForward:
    """PEFT clones a 4-bit layer's result, and leaves all casts to autocast where that is on."""

    def forward(x: Tensor, result: Tensor) -> Tensor:
        if clones:
            result = ops.contiguous(result, "cloned base result")
        converts = result.tape.autocast is None
        x = ops.cast(x, dtype, "adapter input") if converts else x
        delta = _product(x, pair, p)
        delta = ops.cast(delta, result.dtype, "scaled B A x") if converts else delta
        return ops.add(result, delta, "adapted result")

    return forward


def _product(x: Tensor, pair: tuple[Parameter, Parameter], p: float) -> Tensor:
    """scaling * B (A dropout(x)); each inner result goes as soon as the next one is there."""
    a, b = pair
    return ops.scale(ops.linear(_lowered(x, a, p), b, name="B A x"), "scaled B A x")


def _lowered(x: Tensor, a: Parameter, p: float) -> Tensor:
    return ops.linear(ops.dropout(x, p, "adapter dropout"), a, name="A x")


@register("lora", "lora-qv", "qlora", "pissa", "lora-plus", "lora-pro", "lora-ga")
def lora(builder: Builder, layer: Linear) -> AdapterForward:
    """LoRA: A and B are trained, so A's input stays for backward. LoRA-GA's are, once there are any (`lora_ga`)."""
    return _low_rank(builder, layer, train_a=True, train_b=True)


@register("lora-fa", "qlora-fa")
def lora_fa(builder: Builder, layer: Linear) -> AdapterForward:
    """LoRA-FA as this package runs it (`lorafa_prof.analytic.lora_fa`): of the adapter only A x, r wide, stays.

    Raises:
        BadInputError: a rank beyond the layer's width.
    """
    rank, p = builder.run.method.rank, builder.run.method.dropout
    if rank > layer.in_features and rank not in (SENTINEL, WITNESS):
        raise RankBeyondError(layer.path, rank, layer.in_features, "LoRA-FA")
    pair = _pair(builder, layer, train_a=False, train_b=True)
    return lambda x, result: add_adapter(result, x, pair, p)


@register("lora-fa-peft")
def lora_fa_peft(builder: Builder, layer: Linear) -> AdapterForward:
    """LoRA-FA as PEFT runs it: A is frozen, so only the r-wide A x stays for backward, in the adapters' dtype."""
    return _low_rank(builder, layer, train_a=False, train_b=True)


@register("lora-fb")
def lora_fb(builder: Builder, layer: Linear) -> AdapterForward:
    """LoRA-FB: B is frozen; A's full-width input stays for backward."""
    return _low_rank(builder, layer, train_a=True, train_b=False)


@register("dora")
def dora(builder: Builder, layer: Linear) -> AdapterForward:
    """DoRA: y = W x + (m / ||W + BA|| - 1) * W x + m / ||W + BA|| * scaling * B A x, with a trained magnitude m (k,).

    The norm of each row counts as a constant. For its sake the product BA is made anew in each forward, by running both
    adapters on an identity matrix: (m, m) and some matrices of the weight's own size, while the layer runs. With
    dropout W x is computed once more, of the input that went through it.
    """
    if layer.quant != "none":
        raise UnsupportedError(
            "the analytic engine does not model DoRA over quantised weights; --engine simulate runs it"
        )
    run, rank = builder.run, builder.run.method.rank
    dtype, width = run.resolved_adapter_dtype, layer.out_features
    if run.method.dropout and run.model.architecture == "gpt2" and dtype == run.dtype:
        # PEFT makes a new parameter, a trained one, of a transposed weight that it need not cast
        raise UnsupportedError(
            "the analytic engine does not model DoRA with dropout over GPT-2's transposed weights in the adapters' "
            "dtype, of which PEFT computes a gradient that nobody uses; --engine simulate runs it"
        )
    a = builder.parameter("lora_A.weight", (rank, layer.in_features), kind=ADAPTERS, trained=True, dtype=dtype)
    b = builder.parameter("lora_B.weight", (width, rank), kind=ADAPTERS, trained=True, dtype=dtype)
    magnitude = builder.parameter("lora_magnitude_vector.weight", (width,), kind=ADAPTERS, trained=True, dtype=dtype)
    p = run.method.dropout

    def forward(x: Tensor, result: Tensor) -> Tensor:
        out_dtype = result.dtype
        given = x = ops.cast(x, dtype, "adapter input")
        x = ops.dropout(x, p, "adapter dropout")
        delta = ops.cast(_identity_lowered(x.tape, (a, b)), x.dtype, "B A")
        weight = ops.cast(layer.weight, x.dtype, "weight")
        factor = ops.divide(magnitude, _row_norms(weight, delta), "magnitude / norm")
        factor = ops.view(factor, 1, width)
        low_rank = ops.linear(ops.linear(x, a, name="A x"), b, name="B A x")
        if p == 0.0:
            base = result if layer.bias is None else ops.add(result, layer.bias, "W x")
        else:
            base = ops.linear(x, weight, name="W dropout(x)")
        scaled_base = ops.mul(ops.shift(factor, "magnitude / norm - 1"), base, "scaled W x")
        scaled = ops.scale(ops.mul(factor, low_rank, "scaled B A x"), "scaled B A x")
        dora_result = ops.add(scaled_base, scaled, "DoRA's result")
        del given, delta, weight, factor, low_rank, base, scaled_base, scaled
        return ops.cast(ops.add(result, dora_result, "adapted result"), out_dtype, "adapted result")

    return forward


def _identity_lowered(tape: Tape, pair: tuple[Parameter, Parameter]) -> Tensor:
    """B A (k, m) as PEFT makes it: both adapters run on an identity matrix. Its graph is never run."""
    a, b = pair
    width = int(a.shape[1])
    identity = tape.new("identity matrix", (width, width), a.dtype)
    product = ops.linear(ops.linear(identity, a, name="A"), b, name="B A")
    tape.never_run(product)
    return product


def _row_norms(weight: Tensor, delta: Tensor) -> Tensor:
    """||W + scaling * B A|| of each row (k,), outside the graph. Autocast takes norms in fp32."""
    tape, dtype = weight.tape, weight.dtype
    summed = ops.add(weight.detached(), ops.scale(delta.detached(), "scaled B A"), "W + B A")
    if tape.autocast:
        norms = tape.new("norms of rows", weight.shape[:1], "fp32")
    else:
        norms = tape.new("norms of rows", weight.shape[:1], dtype)
    del summed
    return ops.cast(norms, dtype, "norms of rows")


@register("vera")
def vera(builder: Builder, layer: Linear) -> AdapterForward:
    """VeRA: y = W x + lambda_b * (B (lambda_d * (A dropout(x)))) with A and B frozen and shared by all layers.

    A and B are buffers sized for the widest layer; a layer uses a slice of them.
    """
    run, rank = builder.run, builder.run.method.rank
    dtype = run.resolved_adapter_dtype
    shared_a, shared_b = _vera_shared(builder)
    tape = builder.tape
    a = Parameter(tape, "vera_A", (rank, layer.in_features), shared_a.dtype, trained=False, kind=BUFFERS)
    b = Parameter(tape, "vera_B", (layer.out_features, rank), shared_b.dtype, trained=False, kind=BUFFERS)
    lambda_b = builder.parameter("vera_lambda_b", (layer.out_features,), kind=ADAPTERS, trained=True, dtype=dtype)
    lambda_d = builder.parameter("vera_lambda_d", (rank,), kind=ADAPTERS, trained=True, dtype=dtype)
    p = run.method.dropout

    def forward(x: Tensor, result: Tensor) -> Tensor:
        out_dtype = result.dtype
        previous_dtype = x.dtype
        if layer.quant in ("nf4", "nf4-dq"):
            result = ops.contiguous(result, "cloned base result")
        x = ops.cast(x, dtype, "adapter input")
        low = ops.mul(lambda_d, _lowered(x, a, p), "lambda_d * A x")
        high = ops.linear(low, b, name="B (lambda_d * A x)")
        del low
        delta = ops.mul(lambda_b, high, "lambda_b * B (...)")
        del high
        result = ops.add(result, delta, "adapted result")
        del delta
        return ops.cast(ops.cast(result, out_dtype, "adapted result"), previous_dtype, "adapted result")

    return forward


@register("adalora")
def adalora(builder: Builder, layer: Linear) -> AdapterForward:
    """AdaLoRA: y = W x + scaling / ranknum * B ((E * A) dropout(x)), E (r, 1): what would be singular values.

    All of its initial rank stays in memory: pruning masks values and frees nothing. PEFT means to freeze ranknum, a
    divisor, but does not when it moves an adapter to its device: so what it divides is saved, and it has a gradient.
    """
    if layer.quant != "none":
        raise UnsupportedError(
            "the analytic engine does not model AdaLoRA over quantised weights; --engine simulate runs it"
        )
    run, rank = builder.run, builder.run.method.rank
    dtype = run.resolved_adapter_dtype
    a = builder.parameter("lora_A", (rank, layer.in_features), kind=ADAPTERS, trained=True, dtype=dtype)
    b = builder.parameter("lora_B", (layer.out_features, rank), kind=ADAPTERS, trained=True, dtype=dtype)
    e = builder.parameter("lora_E", (rank, 1), kind=ADAPTERS, trained=True, dtype=dtype)
    ranknum = builder.parameter("ranknum", (1,), kind=ADAPTERS, trained=True, dtype=dtype)
    p = run.method.dropout
    builder.penalty = orthogonality

    def forward(x: Tensor, result: Tensor) -> Tensor:
        divisor = ops.shift(ranknum, "ranknum + 1e-5")
        x = ops.cast(x, dtype, "adapter input")
        low = ops.linear(ops.dropout(x, p, "adapter dropout"), ops.mul(a, e, "E * A"), name="E A x")
        # a transposed B, of which autocast keeps no copy for later uses
        high = ops.linear(low, ops.view(b, *b.shape), name="B E A x")
        del low
        scaled = ops.scale(high, "scaled B E A x")
        del high
        scaled = ops_adalora.quotient(scaled, divisor, "scaled B E A x / ranknum")
        # a product with a bias is made of matrices, and what comes of it a view
        flattened = layer.bias is not None and len(result.shape) > 2
        return (ops_adalora.add_to_view if flattened else ops_adalora.add_in_place)(result, scaled)

    return forward


def orthogonality(builder: Builder, loss: Tensor) -> Tensor:
    """AdaLoRA's regulariser: loss + weight * mean of ||A A^T - 1|| and ||B^T B - 1||, Frobenius norms, over all layers.

    It runs in the model's forward, after the loss and while the logits are there. Its backward is the first of all.
    """
    tape = loss.tape
    total = covariance = identity = None
    for matrix in _orthogonal(builder):
        covariance = ops_adalora.gram(matrix, rows="lora_A" in matrix.name)
        identity = tape.new("identity matrix", covariance.shape, covariance.dtype)
        norm = ops_adalora.norm(ops.shift(covariance, "A A^T - 1"))
        total = ops.shift(norm, "sum of norms") if total is None else ops_adalora.add_in_place(total, norm)
        del norm
    assert total is not None, "a model with adapters has matrices"
    total = ops.scale(total, "mean of norms")
    loss = ops_adalora.add_in_place(loss, ops.scale(total, "weighted mean of norms"))
    del total, covariance, identity
    return loss


def _orthogonal(builder: Builder) -> Iterator[Parameter]:
    """Yield all A and B as the real model has them: those of layers that are not built as leaves of their own."""
    for count, layer in itertools.groupby(builder.held, key=lambda held: (held.count, _layer_of(held.parameter.name))):
        matrices = [h.parameter for h in layer if h.parameter.name.endswith(("lora_A", "lora_B"))]
        yield from matrices
        for _ in range(count[0] - 1):
            for p in matrices:
                made = Parameter(builder.tape, p.name, p.shape, p.dtype, trained=True, kind=ADAPTERS)
                made.uses = 1
                builder.stand_ins.append(made)
                yield made


def _layer_of(name: str) -> list[str]:
    """Return the path of the layer that a parameter is in; its whole name where that is in none."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return parts[: numbers[0] + 1] if numbers else parts


def _vera_shared(builder: Builder) -> tuple[Parameter, Parameter]:
    """Return VeRA's shared A and B, made once at the size of the widest targeted layer."""
    for held in builder.held:
        if held.parameter.name == "vera_A":
            shared = [h.parameter for h in builder.held if h.parameter.name in ("vera_A", "vera_B")]
            return shared[0], shared[1]
    rank, layers = builder.run.method.rank, targeted(builder.linears, builder.run)
    dtype = builder.run.resolved_adapter_dtype
    widest_in, widest_out = max(x.in_features for x in layers), max(x.out_features for x in layers)
    with builder.at("", 1):
        shared_a = builder.parameter("vera_A", (rank, widest_in), kind=BUFFERS, dtype=dtype)
        shared_b = builder.parameter("vera_B", (widest_out, rank), kind=BUFFERS, dtype=dtype)
    return shared_a, shared_b
