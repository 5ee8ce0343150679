"""Routed experts as transformers 5 holds them: a bare router matrix and two fused 3-D parameters a layer.

None of them is an nn.Linear. PEFT 0.21 adapts them all the same: it rewrites the target names of the unfused experts,
all-linear's among them, to these parameters, and adds the low-rank product to the parameter itself (ParamWrapper).
Quantisation leaves them as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import Product
from lorafa_prof.analytic.builder import ADAPTERS, Builder, Linear, targeted
from lorafa_prof.analytic.families import routing
from lorafa_prof.analytic.families.common import activation
from lorafa_prof.analytic.sizes import Shape
from lorafa_prof.analytic.tensors import Grads, Parameter, Tensor
from lorafa_prof.errors import BadInputError, ContradictionError, UnsupportedError
from lorafa_prof.layers import experts_everywhere
from lorafa_prof.specs import ModelSpec, MoeSpec

GATE_UP, DOWN, ROUTER = "gate_up_proj", "down_proj", "weight"

_UNFUSED_GATED = {"gate": ROUTER, "gate_proj": GATE_UP, "up_proj": GATE_UP, "down_proj": DOWN}

#: By architecture: the names of the unfused experts' projections and of the router, which PEFT takes for the fused
#: parameter. In DeepSeek-V2 the dense and the shared MLPs bear the same names, so that PEFT no longer adapts those.
#: Of Qwen 2 PEFT knows the names and never looks them up: it adapts linear layers there, and no routed expert.
_REWRITTEN: Mapping[str, Mapping[str, str]] = {
    "mixtral": {"gate": ROUTER, "w1": GATE_UP, "w3": GATE_UP, "w2": DOWN},
    "deepseek_v2": _UNFUSED_GATED,
    "qwen3_moe": _UNFUSED_GATED,
    "qwen2_moe": {},
}

#: Methods that PEFT adapts fused parameters by, by which matrices of a pair they train (A, B).
_TRAINED: Mapping[str, tuple[bool, bool]] = {
    **dict.fromkeys(("lora", "lora-qv", "lora-plus", "qlora"), (True, True)),
    "lora-fa-peft": (False, True),
    "lora-fb": (True, False),
}
#: Methods with a PEFT configuration of their own, for which it rewrites no target: they adapt linear layers alone.
_NEVER_REWRITTEN = ("vera", "adalora")
#: Methods whose targets PEFT rewrites like LoRA's, and which have nothing for a parameter that experts share.
_NOT_OF_EXPERTS: Mapping[str, str] = {
    "dora": "PEFT has no DoRA for them",
    "pissa": "PEFT decomposes the weights of layers, and they have none",
    "lora-pro": "its optimizer takes adapters of a single matrix",
    **dict.fromkeys(("lora-fa", "qlora-fa"), "it is built for linear layers, and lora-fa-peft for these too"),
}


class FusedParameter:
    """A parameter (experts, k, m), or (k, m) for one, and the pair A (r*experts, m), B (k, r*experts) once adapted."""

    def __init__(self, builder: Builder, name: str, shape: Shape) -> None:
        self.name, self.path, self.count = name, builder.path, builder.multiplicity
        self.weight = builder.parameter(name, shape)
        self.pair: tuple[Parameter, Parameter] | None = None

    def adapt(self, builder: Builder) -> None:
        """Add the adapter: gate and up are two matrices fused, so their rank doubles.

        Raises:
            UnsupportedError: a single expert, whose adapter PEFT takes for that of a matrix.
        """
        run = builder.run
        if len(self.weight.shape) == 3 and self.weight.shape[0] == 1:
            raise UnsupportedError("the analytic engine does not model adapters of a single expert")
        train_a, train_b = _TRAINED[run.method.name]
        *experts, k, m = (int(width) for width in self.weight.shape)
        inner = run.method.rank * (2 if self.name == GATE_UP else 1) * (experts[0] if experts else 1)
        kind, dtype = ADAPTERS, run.resolved_adapter_dtype
        with builder.at(f"{self.path}.{self.name}" if experts else self.path, self.count):
            a = builder.parameter("lora_A.weight", (inner, m), kind=kind, trained=train_a, dtype=dtype)
            b = builder.parameter("lora_B.weight", (k, inner), kind=kind, trained=train_b, dtype=dtype)
        self.pair = (a, b)

    def activate(self) -> Callable[[], Tensor]:
        """Return what gives the weight to multiply by: with an adapter, the sum with it, made when it is asked for.

        What the sum is made of is there until the caller lets go of it. Setting it up evaluates it once, as a check.
        """
        if self.pair is None:
            return lambda: self.weight
        make = self._sum_of_experts() if len(self.weight.shape) == 3 else self._sum()
        make()
        return make

    def _sum(self) -> Callable[[], Tensor]:
        """W + (B A * scaling), in W's dtype."""
        assert self.pair is not None
        delta = ops.scale(_product(self.pair[1], self.pair[0]), "scaled B A")
        delta = ops.cast(delta, self.weight.dtype, "scaled B A")
        return lambda: ops.add(self.weight, delta, "adapted weight")

    def _sum_of_experts(self) -> Callable[[], Tensor]:
        """W + scaling * B A for each expert by one baddbmm, which keeps A and B in W's dtype."""
        assert self.pair is not None
        a, b = self.pair
        experts, k, m = (int(width) for width in self.weight.shape)
        inner = int(a.shape[0]) // experts
        left = ops.cast(_permuted(b, (experts, k, inner)), self.weight.dtype, "B by experts")
        right = ops.cast(ops.view(a, experts, inner, m), self.weight.dtype, "A by experts")
        return lambda: _baddbmm(self.weight, left, right)


def _product(b: Parameter, a: Parameter) -> Tensor:
    """B A as a matrix (k, m)."""
    tape = a.tape
    left, right = (ops.autocast_to(x, tape.autocast, "autocast adapter") if tape.autocast else x for x in (b, a))
    (k, inner), m = left.shape, right.shape[1]
    out = tape.result("B A", (k, m), left.dtype)
    flops = ops.matmul_flops((k,), int(inner), int(m))
    product = Product(left.dtype, (), (k,), (inner,), (m,))
    tape.count_flops("linear", flops, of=product)
    if tape.needs_grad(left, right):
        need = (left.requires_grad, right.requires_grad)
        shapes, dtype = (left.shape, right.shape), left.dtype

        def backward(g: Grads) -> list[Tensor | None]:
            made = []
            of_b, of_a = product.backwards
            for needed, shape, of in zip(need[::-1], shapes[::-1], (of_a, of_b), strict=True):
                made.append(tape.new("gradient of adapter", shape, dtype) if needed else None)
                if needed:
                    tape.count_flops("linear", flops, backward=True, of=of)
            return made[::-1]

        tape.record("mm", [left, right], out, [right if need[0] else None, left if need[1] else None], backward)
    return out


def _permuted(b: Parameter, shape: Shape) -> Tensor:
    """View B (k, r*experts) as (experts, k, r); its gradient is laid out back by a copy."""
    tape = b.tape
    out = Tensor(tape, None, shape, b.dtype)
    if tape.needs_grad(b):
        source, dtype = b.shape, b.dtype
        tape.record("permute", [b], out, [], lambda g: [tape.new("gradient of B", source, dtype)])
    return out


def _baddbmm(weight: Parameter, left: Tensor, right: Tensor) -> Tensor:
    """weight + scaling * left @ right over the experts; each factor's gradient is a product, then scaled."""
    tape = weight.tape
    experts, k, inner = (int(width) for width in left.shape)
    out = tape.result("adapted experts", weight.shape, weight.dtype)
    width = int(right.shape[2])
    flops = ops.matmul_flops((experts, k), inner, width)
    product = Product(left.dtype, (experts,), (k,), (inner,), (width,), weight.shape)
    tape.count_flops("linear", flops, of=product)
    if tape.needs_grad(left, right):
        need, shapes, dtype = (left.requires_grad, right.requires_grad), (left.shape, right.shape), out.dtype

        def backward(g: Grads) -> list[Tensor | None]:
            made: list[Tensor | None] = []
            for needed, shape, of in zip(need, shapes, product.backwards, strict=True):
                unscaled = tape.new("gradient of factor, unscaled", shape, dtype) if needed else None
                made.append(scaled := tape.new("gradient of factor", shape, dtype) if needed else None)
                if unscaled is not None and scaled is not None:
                    tape.moved("mul", [unscaled], [scaled])
                    tape.count_flops("linear", flops, backward=True, of=of)
                del unscaled, scaled
            return made

        saved = [right if need[0] else None, left if need[1] else None]
        tape.record("baddbmm", [left, right], out, saved, backward)
    return out


class RoutedExperts:
    """A router and the experts it chooses from."""

    def __init__(self, builder: Builder, moe: MoeSpec) -> None:
        spec = builder.spec
        self.moe, self.act, self.width = moe, spec.hidden_act, spec.hidden_size
        self.wide_router = spec.architecture == "deepseek_v2"
        qwen = spec.architecture in ("qwen2_moe", "qwen3_moe")
        self.divides = bool(spec.config.get("norm_topk_prob")) if qwen else True
        self.narrows = qwen
        self.groups = _groups(spec) if self.wide_router else None
        number, width = moe.experts, moe.intermediate_size
        with builder.inside("gate"):
            self.router = FusedParameter(builder, ROUTER, (number, self.width))
        with builder.inside("experts"):
            self.gate_up = FusedParameter(builder, GATE_UP, (number, 2 * width, self.width))
            self.down = FusedParameter(builder, DOWN, (number, self.width, width))
        self.fused = (self.router, self.gate_up, self.down)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the router's logits, and of each token's experts the weights and the numbers."""
        with x.tape.scope("gate"):
            weight = self.router.activate()
            return self._route_in_fp32(x, weight()) if self.wide_router else self._route(x, weight())

    def _route(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixtral and Qwen: softmax in fp32, and the best experts.

        Mixtral divides their weights by the sum, Qwen if it is told to; there they end in the logits' dtype.
        """
        logits = ops.linear(x, weight, name="router logits")
        scores = ops.softmax(ops.cast(logits, "fp32", "router logits"))
        values, indices = routing.top(scores, self.moe.experts_per_token)
        if self.divides:
            values = routing.divided_by_sum(values)
        if self.narrows:
            values = ops.cast(values, logits.dtype, "expert weights")
        return logits, values, indices

    def _route_in_fp32(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """DeepSeek-V2: the product too is in fp32; the best experts, perhaps of the best groups alone."""
        logits = ops.linear(
            ops.cast(x, "fp32", "router input"), ops.cast(weight, "fp32", "router weight"), name="router logits"
        )
        scores = ops.softmax(logits, "fp32")
        masks: list[Tensor] = []
        if self.groups is not None:
            scores, masks = routing.best_groups(scores, *self.groups)
        values, indices = routing.top(scores, self.moe.experts_per_token)
        values = ops.scale(values, "scaled expert weights")
        del masks
        return logits, values, indices

    def __call__(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """Run the chosen experts: (b, s, d) to (b, s, d)."""
        with x.tape.scope("experts"):
            down = self.down.activate()
            gate_up = self.gate_up.activate()
            return self._grouped(x, weights, indices, gate_up, down)

    def _grouped(
        self,
        x: Tensor,
        weights: Tensor,
        indices: Tensor,
        gate_up: Callable[[], Tensor],
        down: Callable[[], Tensor],
    ) -> Tensor:
        """transformers' grouped_mm_experts_forward: tokens sorted by expert, two grouped products, sorted back."""
        tape, k = x.tape, self.moe.experts_per_token
        pairs: Shape = ("b", "s", k)
        by_expert = [tape.new(f"experts in order, {what}", pairs, "int64") for what in ("numbers", "permutation")]
        chosen = routing.rows(x, tape.new("tokens in order", pairs, "int64"), (*pairs, self.width), "tokens by expert")
        sorted_weights = routing.rows(weights, by_expert[1], pairs, "weights by expert")
        counted = tape.new("experts as int32", pairs, "int32")
        per_expert = tape.new("tokens an expert", (self.moe.experts,), "int32")
        offsets = tape.new("offsets of the experts", (self.moe.experts,), "int32")
        first = gate_up()
        wide = routing.grouped_mm(ops.cast(chosen, first.dtype), first, offsets, "gate and up")
        gate, up = ops.split(wide, [(*pairs, self.moe.intermediate_size)] * 2)
        hidden = ops.mul(activation(gate, self.act), up, "act(gate) * up")
        del gate, up, wide
        second = down()
        hidden = routing.grouped_mm(ops.cast(hidden, second.dtype), second, offsets, "experts' outputs")
        weighted = ops.mul(hidden, ops.view(sorted_weights, *pairs, 1), "weighted outputs")
        back, order = (tape.new(name, pairs, "int64") for name in ("inverse permutation", "order"))
        del order
        weighted = routing.rows(weighted, back, weighted.shape, "weighted outputs by token")
        summed = routing.summed(weighted, x.shape)
        out = ops.cast(summed, x.dtype, "sum of experts")
        del counted, per_expert  # as all variables here, there until the end
        return out


def _groups(spec: ModelSpec) -> tuple[int, int, int] | None:
    """Return (groups, groups chosen, experts) where the router chooses groups of experts first."""
    if spec.config.get("topk_method") != "group_limited_greedy":
        return None
    assert spec.moe is not None
    return int(spec.config["n_group"]), int(spec.config["topk_group"]), spec.moe.experts


def attach_adapters(builder: Builder, experts: list[RoutedExperts]) -> None:
    """Give every targeted linear layer and fused parameter its adapter, as PEFT reads the run's targets.

    Raises:
        UnknownNameError: a target that no module of this model answers to.
        BadInputError: a target that PEFT refuses.
        UnsupportedError: fused parameters under a method that PEFT has no adapter for there.
    """
    if builder.make_adapter is None:
        return
    layers, names = _read_targets(builder)
    if names and builder.run.method.layers is not None:
        raise experts_everywhere(builder.run.model.name)
    builder.adapt(layers)
    chosen = [parameter for layer in experts for parameter in layer.fused if parameter.name in names]
    if chosen and builder.run.method.dropout:
        raise ContradictionError(
            "PEFT has no dropout on the adapters of fused experts: leave out --dropout, or name --targets without them"
        )
    for parameter in chosen:
        parameter.adapt(builder)


def _read_targets(builder: Builder) -> tuple[list[Linear], set[str]]:
    """Return the linear layers to adapt and the names of the fused parameters to adapt."""
    run, linears = builder.run, builder.linears
    method, rewritten = run.method, _REWRITTEN[run.spec.architecture]
    if method.name == "lora-qv" or method.targets == ("qv",) or method.name in _NEVER_REWRITTEN:
        return targeted(linears, run), set()
    layers, names = _rewritten_targets(builder, rewritten)
    if method.name == "lora-ga" and method.targets == ("all-linear",):
        return layers, set()
    if names and method.name not in _TRAINED:
        why = _NOT_OF_EXPERTS.get(method.name, "PEFT estimates gradients of linear layers alone")
        raise UnsupportedError(
            f"{method.name} does not adapt the parameters that experts of {run.spec.architecture} share: {why}; "
            f"name --targets without {', '.join(rewritten)}"
        )
    return layers, names


def _rewritten_targets(builder: Builder, rewritten: Mapping[str, str]) -> tuple[list[Linear], set[str]]:
    """Return the linear layers that the run's targets name, and the fused parameters that PEFT makes of the others."""
    run, linears = builder.run, builder.linears
    method = run.method
    if method.targets == ("all-linear",):
        return [x for x in targeted(linears, run) if x.name not in rewritten], set(rewritten.values())
    old_names = {target: target.rsplit(".", 1)[-1] for target in method.targets}
    kept = tuple(target for target, old in old_names.items() if old not in rewritten)
    taken = {old for old in old_names.values() if old in rewritten}
    halves = {old for old, new in rewritten.items() if new == GATE_UP}
    if len(taken & halves) == 1:
        raise BadInputError(f"PEFT adapts {' and '.join(sorted(halves))} only together: they are one fused parameter")
    names = {rewritten[old] for old in taken}
    if not kept:
        return [], names
    return targeted(linears, run.replace(method=dataclasses.replace(method, targets=kept))), names
