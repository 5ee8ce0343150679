"""What modules and tensors are called, in the simulation and on a real device alike."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch

#: The loss counts as a module of its own, whichever way the model computes it.
LOSS = "loss"


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested tuples, lists and dicts (model outputs are dicts)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def shard_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a sharded tensor (a DTensor) that this process has; of any other the tensor itself."""
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def common_path(one: str, other: str) -> str:
    """Return the path of the innermost module that contains both."""
    parts = zip(one.split("."), other.split("."), strict=False)
    return ".".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], parts))


#: Modules that are the model itself, within a wrapper.
_WRAPPED = ("module", "base_model", "base_model.model")


def short_name(name: str) -> str:
    """Return a module path without the prefixes that the wrappers of DDP and PEFT add."""
    name = name.removeprefix("module.")
    return "" if name in _WRAPPED else name.removeprefix("base_model.model.")


def loss_functions() -> dict[str, Any]:
    """The table that transformers (4.46 and newer) takes a model's loss from; older ones call a loss module.

    Empty where transformers has not been imported: then no model of it is there.
    """
    if "transformers" not in sys.modules:
        return {}
    try:
        from transformers.loss.loss_utils import LOSS_MAPPING
    except ImportError:
        return {}
    table: dict[str, Any] = LOSS_MAPPING
    return table


#: What PEFT has in the names of parameters that it adds: adapters, and copies of modules that it trains.
_OF_ADAPTERS = ("lora_", "vera_", "ranknum", "modules_to_save")


def is_adapter(name: str) -> bool:
    """Return whether a parameter or buffer of that name is one that PEFT has added."""
    return any(part in name for part in _OF_ADAPTERS)


def counted_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Return the elements of all parameters, "total", and of those that are trained, "trainable"."""
    parameters = list(model.parameters())
    return {
        "total": sum(elements(p) for p in parameters),
        "trainable": sum(elements(p) for p in parameters if p.requires_grad),
    }


def elements(parameter: Any) -> int:
    """Return the elements of a parameter; of one that is quantised, those that it stands for."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else math.prod(state.shape))


def table_elements(model: Any) -> int:
    """Return the elements of the input embedding table, unless the output head multiplies by it."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is table.weight:
        return 0
    return int(table.weight.numel())


def named_states(model: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield what a method keeps from step to step beside parameters and the optimizer's states.

    Yields:
        the path of the parameter, what it is, and the tensor: AdaLoRA's importances, of each parameter three.
    """
    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    for what in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        for path, tensor in getattr(allocator, what, {}).items():
            yield path, what, tensor


def kept_states(model: torch.nn.Module, optimizer: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield what an optimizer keeps from step to step beside its states: LoRA-FA's corrections.

    Yields:
        the path of the parameter, what it is, and the tensor.
    """
    ours = sys.modules.get("lorafa_prof.lorafa.optimizer")  # imported by whoever has made one of it
    if ours is not None and isinstance(optimizer, ours.LoraFA):
        paths = {parameter: path for path, parameter in model.named_parameters()}
        for parameter, what, tensor in optimizer.kept():
            yield paths[parameter], what, tensor
