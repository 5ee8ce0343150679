"""LoRA-GA: adapters that begin at the singular vectors of a gradient, which a pass before training estimates.

Before there are adapters, one forward and backward of the base model computes the whole gradient of every weight that
is to be adapted, all at once; nothing else is trained in it. PEFT then decomposes one gradient after the other, makes
its A and B, takes scaling * B A from the weight, and lets go of the gradient. From there on a step is LoRA's.
Where A needs no cast (fp32 over fp32) it stays a part of what the decomposition returned, which on CUDA keeps all of
its 4 r rows.

The pass runs as a step of training does: on its batch, with its attention, autocast and checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.layers import too_few_vectors
from lorafa_prof.ledger import PRE_PASS_BACKWARD
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.adapters import add_adapters, names_of_fused_experts, peft_config, quiet
from lorafa_prof.workload.checkpointing import enable_checkpointing
from lorafa_prof.workload.models import base_model

#: The phases in which autograd's thread works.
BACKWARDS = ("backward", PRE_PASS_BACKWARD)


def has_pre_pass(run: RunSpec) -> bool:
    """Return whether gradients are estimated before there are adapters."""
    return run.method.name == "lora-ga"


def base_of(run: RunSpec, device: str) -> torch.nn.Module:
    """Return the model as the pass finds it: in training mode, without adapters.

    Raises:
        UnsupportedError: quantised weights (no gradient), the fused loss, or a PEFT without LoRA-GA.
    """
    if run.resolved_quant != "none":
        raise UnsupportedError(f"LoRA-GA takes the gradients of the weights: {run.resolved_quant} weights have none")
    if run.loss == "fused":
        raise UnsupportedError("the fused loss is not built for LoRA-GA's pass over the weights; it is with --loss hf")
    if not hasattr(peft, "preprocess_loraga"):
        raise UnsupportedError("the installed peft has no LoRA-GA: pip install --upgrade peft")
    model = base_model(run, device)
    if run.checkpointing != "none":
        enable_checkpointing(model, run)
    return model.train()


def estimate(model: torch.nn.Module, run: RunSpec, pass_once: Callable[[], None]) -> peft.PeftConfig:
    """Leave with each weight to be adapted its mean gradient over what `pass_once` runs; return PEFT's configuration.

    Args:
        model: from `base_of`.
        run: the configuration.
        pass_once: forward and backward of the model, which lets go of the loss.

    Raises:
        UnsupportedError: weights that are no linear layer's, of which PEFT estimates no gradient.
    """
    config: Any = peft_config(model, run)
    experts = names_of_fused_experts(run.model.architecture)
    if config.target_modules == "all-linear":  # PEFT spells it out when it makes the adapters, and here not at all
        from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

        config = _maybe_include_all_linear_layers(config, model)
        config.target_modules = {path for path in config.target_modules if path.rpartition(".")[2] not in experts}
    elif asked := sorted(experts.intersection(config.target_modules)):
        raise UnsupportedError(
            f"LoRA-GA has no gradients of the experts of {run.model.name}, for parts of which PEFT takes "
            f"{', '.join(asked)}: they share parameters, and PEFT estimates gradients of linear layers alone; "
            "leave these out of --targets"
        )
    if run.model.task == "seq-cls":
        config.target_modules = _outside_the_head(model, config)
    _refuse_narrow_weights(model, config)
    try:
        with quiet():
            peft.preprocess_loraga(model, config, pass_once)
    except ValueError as error:
        raise UnsupportedError(f"PEFT cannot estimate gradients of {run.model.name}: {error}") from error
    made: peft.PeftConfig = config
    return made


def _outside_the_head(model: torch.nn.Module, config: peft.LoraConfig) -> set[str]:
    """Return the targets path by path, without those in a classifier's head.

    PEFT trains a copy of the head and adapts nothing in it. By names that layers there share with others it would
    estimate their gradients all the same, and never let go of them.
    """
    from peft.tuners.lora.loraga import get_target_modules
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES

    paths = (path for path, _ in get_target_modules(model, config))
    return {path for path in paths if not set(SEQ_CLS_HEAD_NAMES).intersection(path.split("."))}


def _refuse_narrow_weights(model: torch.nn.Module, config: peft.LoraConfig) -> None:
    from peft.tuners.lora.loraga import get_target_modules

    for path, module in get_target_modules(model, config):
        if refusal := too_few_vectors(path, module.weight.shape, config.r):
            raise refusal


def linear_layers_alone(run: RunSpec) -> tuple[str, ...]:
    """Say what "all-linear" leaves out where experts share parameters, which other methods adapt by that name."""
    experts = names_of_fused_experts(run.model.architecture)
    if not has_pre_pass(run) or run.method.targets != ("all-linear",) or not experts:
        return ()
    line = (
        "LoRA-GA adapts linear layers alone: no experts, which share parameters, and nothing of the names that PEFT "
        f"takes for parts of them ({', '.join(sorted(experts))})"
    )
    return (line,)


def gradients_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the gradients that `estimate` has left."""
    found = (getattr(module, "_peft_loraga_grad", None) for module in model.modules())
    return [gradient for gradient in found if gradient is not None]


def initialise(model: torch.nn.Module, run: RunSpec, config: peft.PeftConfig) -> torch.nn.Module:
    """Return the model wrapped with adapters that begin at its gradients, which are let go."""
    return add_adapters(model, run, config).train()
