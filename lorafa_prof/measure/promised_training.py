"""Promises about what is trained: frozen matrices and base weights, and the adapters' dtype."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from lorafa_prof.layers import spelled
from lorafa_prof.lorafa.layers import OneSidedLayer
from lorafa_prof.measure import costs
from lorafa_prof.measure.promised_optimizer import CLASSES, states_of
from lorafa_prof.measure.subject import Named, Subject, short
from lorafa_prof.results import Promise
from lorafa_prof.units import format_bytes
from lorafa_prof.workload.adapted_layers import layer_of
from lorafa_prof.workload.adapters import FROZEN
from lorafa_prof.workload.models import DTYPES
from lorafa_prof.workload.naming import short_name

#: What a method leaves untrained, beside the pairs of `FROZEN`: VeRA's matrices, which all layers share.
_SHARED = ("vera_A", "vera_B")
_BY_PEFT = "PEFT turns them on when disable_adapter() ends or set_adapter() is called"
_BY_HAND = "lorafa.prepare froze them and its layers refuse the next forward: something has set their requires_grad"


def frozen_matrices(subject: Subject) -> Promise | None:
    """The half of each adapter that the method does not train has no gradient and no optimizer state."""
    run = subject.run
    if run is None:
        return _frozen_a_of_a_script(subject)
    if run.method.name == "vera":
        shared = {path: t for path, t in subject.adapters.items() if any(name in path for name in _SHARED)}
        return _untrained(subject, "frozen shared matrices", shared)
    half = FROZEN.get(run.method.name)
    if half is None:
        return None
    return _untrained(subject, f"frozen {half[-1]}", _halves(subject, half), _hazard(subject))


def _hazard(subject: Subject) -> str:
    """Return what can have turned a frozen half on: of a prepared model none of PEFT's calls does."""
    return _BY_HAND if any(isinstance(module, OneSidedLayer) for module in subject.model.modules()) else _BY_PEFT


def _halves(subject: Subject, half: str) -> Named:
    return {path: tensor for path, tensor in subject.adapters.items() if f"{half}." in path}


def _frozen_a_of_a_script(subject: Subject) -> Promise | None:
    """Judge what needs no word from the user: A trains for nobody's use, or beside pairs whose A is frozen."""
    pairs = {
        path: tensor
        for path, tensor in _halves(subject, "lora_A").items()
        if getattr(subject.adapters.get(path.replace("lora_A.", "lora_B.")), "requires_grad", False)
    }
    trained = [tensor for tensor in pairs.values() if tensor.requires_grad]
    mixed = 0 < len(trained) < len(pairs)
    held = {id(p) for group in subject.optimizer.param_groups for p in group["params"]}
    useless = bool(trained) and not any(id(tensor) in held for tensor in trained)
    its_optimizer = type(subject.optimizer).__name__ in (CLASSES["lorafa"], CLASSES["lorafa-peft"])
    if not pairs or (len(trained) == len(pairs) and not useless and not its_optimizer):
        return None  # no LoRA, or LoRA as it is
    why = "others are frozen" if mixed else "the optimizer does not step them"
    return _untrained(subject, "frozen A", pairs, f"{why}; {_hazard(subject)}")


def base_weights(subject: Subject) -> Promise | None:
    """No weight beneath the adapters is trained."""
    if not subject.adapters:
        return None
    base = subject.base
    configs: Mapping[str, Any] = getattr(subject.model, "peft_config", {})
    if any(getattr(config, "bias", "none") != "none" for config in configs.values()):  # asked for in a user's script
        base = {path: tensor for path, tensor in base.items() if not path.endswith(".bias")}
    return _untrained(subject, "base weights without gradients", base)


def _untrained(subject: Subject, name: str, tensors: Named, hint: str = "") -> Promise:
    """Check that tensors have neither gradients nor states.

    What it costs if they do is observed: the activations that the forward saves for them (`costs.extra_activations`),
    and the bytes of gradients and states (`costs.at_worst`).
    """
    states: Any = subject.optimizer.state
    wrong = {path: t for path, t in tensors.items() if t.requires_grad or t.grad is not None or states.get(t)}
    if not wrong:
        return Promise(
            name=name, kept=True, detail=f"none of {len(tensors)} tensors has a gradient or an optimizer state"
        )
    found = list(wrong.values())
    gradients, kept = costs.gradient_bytes(found), costs.kept_gradient_bytes(found)
    state = costs.state_bytes(found, subject.optimizer)
    activations = None
    if subject.forward is not None:
        activations = costs.extra_activations(subject.model, subject.forward, partial(costs.frozen, found))
    sizes = (
        f"activations saved for them {format_bytes(activations) if activations is not None else 'unknown'}, "
        f"gradients {format_bytes(gradients)}, optimizer states {format_bytes(state)}"
    )
    which = f"{len(wrong)} of {len(tensors)} tensors are trained, first {short_name(next(iter(wrong)))}"
    cost = None if activations is None else costs.at_worst(activations, gradients, kept, state)
    return Promise(name=name, kept=False, detail="; ".join(filter(None, (which, sizes, hint))), cost_bytes=cost)


def adapted_layers(subject: Subject) -> Promise | None:
    """Where some layers were asked for, each of them has adapters, and no other layer."""
    run = subject.run
    if run is None or run.method.layers is None or not subject.adapters:
        return None
    places = {path: layer_of(short_name(path)) for path in subject.adapters}
    found = sorted({layer for layer in places.values() if layer is not None})
    astray = [t for path, t in subject.adapters.items() if places[path] not in (None, *run.method.layers)]
    detail = f"asked for: {run.adapted_layers}; adapters are in {spelled(found) or 'none'}"
    cost = _cost_of_adapters(subject, astray) if astray else None
    return Promise(name="adapted layers", kept=found == list(run.method.layers), detail=detail, cost_bytes=cost)


def _cost_of_adapters(subject: Subject, tensors: list[Any]) -> int | None:
    """Their weights, what the forward saves for their training, and their gradients and states."""
    if subject.forward is None:
        return None
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    activations = costs.extra_activations(subject.model, subject.forward, partial(costs.frozen, trained))
    if activations is None:
        return None
    gradients, kept = costs.gradient_bytes(trained), costs.kept_gradient_bytes(trained)
    weights, states = sum(map(costs.nbytes, tensors)), costs.state_bytes(trained, subject.optimizer)
    return weights + costs.at_worst(activations, gradients, kept, states)


def adapter_dtype(subject: Subject) -> Promise | None:
    """The adapters have the dtype that was asked for, or PEFT's default."""
    if subject.run is None or not subject.adapters:
        return None
    name, wanted = "adapter dtype", DTYPES[subject.run.resolved_adapter_dtype]
    weights = {path: t for path, t in subject.adapters.items() if t.is_floating_point()}
    wrong = {path: t for path, t in weights.items() if t.dtype != wanted}
    if not wrong:
        return Promise(name=name, kept=True, detail=f"all {len(weights)} tensors are {short(wanted)}")
    found = list(wrong.values())
    dtypes = ", ".join(sorted({short(tensor.dtype) for tensor in found}))
    return Promise(
        name=name, kept=False, cost_bytes=_cost_of_dtype(subject, found, wanted),
        detail=f"{len(wrong)} of {len(weights)} tensors are {dtypes}, not {short(wanted)}, "
               f"first {short_name(next(iter(wrong)))}",
    )  # fmt: skip


def _cost_of_dtype(subject: Subject, wrong: list[Any], wanted: torch.dtype) -> int | None:
    """Weights, their gradients and their states grow with the element; what the forward saves is observed."""
    if subject.forward is None:
        return None
    activations = costs.extra_activations(subject.model, subject.forward, partial(costs.cast, wrong, wanted))
    if activations is None:
        return None

    def wider(tensor: torch.Tensor) -> int:
        return tensor.numel() * (tensor.element_size() - wanted.itemsize)

    weights = sum(wider(tensor) for tensor in wrong)
    gradients = sum(wider(tensor) for tensor in wrong if tensor.requires_grad)
    kept = sum(wider(tensor.grad) for tensor in wrong if tensor.grad is not None)
    states = sum(
        wider(state) for t, state in states_of(subject) if state.dtype == t.dtype and any(t is w for w in wrong)
    )
    return max(0, weights + costs.at_worst(activations, gradients, kept, states))
