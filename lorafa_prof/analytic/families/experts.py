"""Routed experts as transformers 5 holds them: a bare router matrix and two fused 3-D parameters a layer.

None of them is an nn.Linear. PEFT 0.21 adapts them all the same: it rewrites the target names of the unfused experts,
all-linear's among them, to these parameters, and adds the low-rank product to the parameter itself (ParamWrapper).
Quantisation leaves them as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lorafa_prof.analytic.builder import ADAPTERS, Builder, Linear, targeted
from lorafa_prof.analytic.sizes import Shape
from lorafa_prof.analytic.tape import Parameter
from lorafa_prof.errors import BadInputError, UnsupportedError

GATE_UP, DOWN, ROUTER = "gate_up_proj", "down_proj", "weight"

#: By architecture: the names of the unfused experts' projections and of the router, which PEFT takes for the fused
#: parameter. In DeepSeek-V2 the dense and the shared MLPs bear the same names, so that PEFT no longer adapts those.
_REWRITTEN: Mapping[str, Mapping[str, str]] = {
    "mixtral": {"gate": ROUTER, "w1": GATE_UP, "w3": GATE_UP, "w2": DOWN},
    "deepseek_v2": {"gate": ROUTER, "gate_proj": GATE_UP, "up_proj": GATE_UP, "down_proj": DOWN},
}

#: Methods made with PEFT's LoraConfig, by which matrices of a pair they train (A, B). PEFT rewrites targets for these.
_TRAINED: Mapping[str, tuple[bool, bool]] = {
    **dict.fromkeys(("lora", "lora-qv", "lora-plus", "qlora"), (True, True)),
    **dict.fromkeys(("lora-fa", "lora-fa-peft", "qlora-fa"), (False, True)),
    "lora-fb": (True, False),
}


class FusedParameter:
    """A parameter (experts, k, m), or (k, m) for one, and the pair A (r*experts, m), B (k, r*experts) once adapted."""

    def __init__(self, builder: Builder, name: str, shape: Shape) -> None:
        self.name, self.path, self.count = name, builder.path, builder.multiplicity
        self.weight = builder.parameter(name, shape)
        self.pair: tuple[Parameter, Parameter] | None = None

    def adapt(self, builder: Builder) -> None:
        """Add the adapter: gate and up are two matrices fused, so their rank doubles."""
        run = builder.run
        train_a, train_b = _TRAINED[run.method.name]
        *experts, k, m = (int(width) for width in self.weight.shape)
        inner = run.method.rank * (2 if self.name == GATE_UP else 1) * (experts[0] if experts else 1)
        kind, dtype = ADAPTERS, run.resolved_adapter_dtype
        with builder.at(f"{self.path}.{self.name}" if experts else self.path, self.count):
            a = builder.parameter("lora_A.weight", (inner, m), kind=kind, trained=train_a, dtype=dtype)
            b = builder.parameter("lora_B.weight", (k, inner), kind=kind, trained=train_b, dtype=dtype)
        self.pair = (a, b)


def attach_adapters(builder: Builder, fused: list[FusedParameter]) -> None:
    """Give every targeted linear layer and fused parameter its adapter, as PEFT reads the run's targets.

    Raises:
        UnknownNameError: a target that no module of this model answers to.
        BadInputError: a target that PEFT refuses.
        UnsupportedError: fused parameters under a method that PEFT has no adapter for there.
    """
    if builder.make_adapter is None:
        return
    layers, names = _read_targets(builder)
    for layer in layers:
        with builder.at(layer.path, layer.count):
            layer.adapter = builder.make_adapter(builder, layer)
    chosen = [parameter for parameter in fused if parameter.name in names]
    if chosen and builder.run.method.dropout:
        raise BadInputError(
            "PEFT has no dropout on the adapters of fused experts: leave out --dropout, or name --targets without them"
        )
    for parameter in chosen:
        parameter.adapt(builder)


def _read_targets(builder: Builder) -> tuple[list[Linear], set[str]]:
    """Return the linear layers to adapt and the names of the fused parameters to adapt."""
    run, linears = builder.run, builder.linears
    method, rewritten = run.method, _REWRITTEN[run.model.architecture]
    if method.name not in _TRAINED:
        if method.name == "vera":
            return targeted(linears, run), set()
        raise UnsupportedError(f"the analytic engine does not model {method.name} for {run.model.architecture}")
    if method.name == "lora-qv" or method.targets == ("qv",):
        return targeted(linears, run), set()
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
