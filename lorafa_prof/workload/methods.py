"""The adapter methods: one registered function each, which says how PEFT is asked for it.

Adding a method is one function here, one in `lorafa_prof.analytic.methods`, and a golden row in their tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.registry import Registry
from lorafa_prof.specs import MethodSpec

Configure = Callable[[MethodSpec, dict[str, Any]], peft.PeftConfig]
"""Takes the method and what all configurations have in common: the modules to adapt and the task."""

_METHODS: Registry[Configure] = Registry("method")
register = _METHODS.register


def configure(method: MethodSpec, **common: Any) -> peft.PeftConfig:
    """Return the PEFT configuration of a method.

    Args:
        method: the method.
        common: what every configuration has: "target_modules", "task_type".

    Raises:
        UnsupportedError: a method of the contract that no real step is built for.
    """
    if method.name not in _METHODS:
        built = ", ".join(["full", *_METHODS])
        raise UnsupportedError(f"the real step of the method {method.name} is not built (it is of {built})")
    return _METHODS[method.name](method, common)


def built_methods() -> list[str]:
    """Return the adapter methods that a real step is built for."""
    return list(_METHODS)


def _lora(method: MethodSpec, common: dict[str, Any], **more: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=method.rank, lora_dropout=method.dropout, lora_alpha=2 * method.rank, **more, **common
    )  # fmt: skip


@register("lora", "lora-fa", "lora-fa-peft", "lora-fb", "lora-qv", "qlora", "qlora-fa", "lora-plus", "lora-pro")
def lora(method: MethodSpec, common: dict[str, Any]) -> peft.PeftConfig:
    """PEFT's LoRA, whatever is trained of it, at which rates and by which optimizer."""
    return _lora(method, common)


@register("pissa")
def pissa(method: MethodSpec, common: dict[str, Any]) -> peft.PeftConfig:
    """LoRA that takes the weights' largest singular values over from the base; a step is LoRA's to the byte.

    PEFT decomposes every weight when it makes the adapters. A step knows nothing of the values, and weights here are
    random: the adapters are left as LoRA's are made.
    """
    return _lora(method, common)


@register("lora-ga")
def lora_ga(method: MethodSpec, common: dict[str, Any]) -> peft.PeftConfig:
    """LoRA that starts from the singular vectors of gradients: see `lorafa_prof.workload.lora_ga`."""
    return _lora(method, common, init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig())


@register("dora")
def dora(method: MethodSpec, common: dict[str, Any]) -> peft.PeftConfig:
    """LoRA beside a trained magnitude of each of the weight's rows."""
    return _lora(method, common, use_dora=True)


@register("vera")
def vera(method: MethodSpec, common: dict[str, Any]) -> peft.PeftConfig:
    """Two trained vectors a layer beside matrices that all layers share."""
    return peft.VeraConfig(r=method.rank, vera_dropout=method.dropout, **common)


#: Steps of AdaLoRA's schedule: its warm-up, in which nothing is pruned, never ends here.
_ADALORA_STEPS = 10**9


@register("adalora")
def adalora(method: MethodSpec, common: dict[str, Any]) -> peft.PeftConfig:
    """Singular values of a rank that is shared out among the layers; pruning masks them and frees nothing.

    PEFT's default halves neither the initial rank nor the final one by itself; the budget asked for is half.
    """
    return peft.AdaLoraConfig(
        init_r=method.rank, target_r=max(1, method.rank // 2), tinit=_ADALORA_STEPS // 2, total_step=_ADALORA_STEPS,
        lora_dropout=method.dropout, lora_alpha=2 * method.rank, **common,
    )  # fmt: skip


def follow_steps(model: Any, optimizer: torch.optim.Optimizer, method: MethodSpec) -> None:
    """Let a method do what its users have to call after each step of the optimizer, before gradients go.

    AdaLoRA updates the importance of each trained number.
    """
    if method.name != "adalora":
        return
    taken = 0

    def update(*_: Any) -> None:
        nonlocal taken
        model.base_model.update_and_allocate(taken)
        taken += 1

    optimizer.register_step_post_hook(update)
