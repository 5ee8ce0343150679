"""Activation checkpointing of a model's layers: all of a layer is run once more, or what is not kept of it.

Full checkpointing is what the installed transformers turns on when nothing else is said. Selective checkpointing is
`torch.utils.checkpoint.create_selective_checkpoint_contexts` with a policy, an operator at a time: the results of the
operators that the run keeps stay, all others are computed again. Those that are kept by default, matrix products and
attention kernels, are what torchtitan keeps too (its `_op_sac_save_list`, of which it computes every other product
again); what is computed again then costs no FLOP that anybody counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from lorafa_prof.errors import BadInputError, UnknownNameError, UnsupportedError
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.versions import installed_versions

#: Operators, without overload, by the names that groups of them have.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "products": (
            "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._grouped_mm", "bitsandbytes.gemm_4bit",
            "bitsandbytes.int8_linear_matmul", "bitsandbytes.int8_mixed_scaled_mm",
        ),
        "attention": tuple(
            f"aten._scaled_dot_product_{kernel}"
            for kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
        ),
        "functions": ("aten.silu", "aten.gelu", "aten.relu", "aten.tanh", "aten.sigmoid"),
        "softmax": ("aten._softmax",),
        "casts": ("aten._to_copy",),
    }
)  # fmt: skip


def enable_checkpointing(model: Any, run: RunSpec) -> None:
    """Turn on activation checkpointing of the run's kind, non-reentrant where the kind or the release says so.

    Raises:
        UnsupportedError: selective checkpointing with a PyTorch that has none.
        BadInputError: an operator to keep that torch does not have, or that no policy is asked about.
    """
    options = _selective(run.keep) if run.checkpointing == "selective" else {}
    if hasattr(model, "activation_checkpointing_enable"):  # the name that transformers 5 gives it
        model.activation_checkpointing_enable(**options)
    else:
        model.gradient_checkpointing_enable(**{f"gradient_{name.partition('_')[2]}": o for name, o in options.items()})
    if run.method.name != "full":  # what users of adapters are told to add
        model.enable_input_require_grads()


def _selective(keep: Iterable[str]) -> dict[str, Any]:
    try:
        from torch.utils.checkpoint import create_selective_checkpoint_contexts
    except ImportError:
        raise UnsupportedError(
            f"torch {installed_versions()['torch']} has no selective checkpointing (2.4 has it); --checkpointing full"
        ) from None
    context = functools.partial(create_selective_checkpoint_contexts, _policy(operators_kept(keep)))
    return {"activation_checkpointing_kwargs": {"use_reentrant": False, "context_fn": context}}


def operators_kept(keep: Iterable[str]) -> frozenset[str]:
    """Return the operators whose results are kept, without overload, of groups and names.

    Raises:
        UnknownNameError: an operator that torch does not have.
        BadInputError: one that no policy is asked about, or that writes into its inputs.
    """
    named: set[str] = set()
    for name in keep:
        if name in GROUPS:
            named.update(GROUPS[name])
        else:
            _refuse_unkeepable(name)
            named.add(name)
    return frozenset(named)


def _refuse_unkeepable(name: str) -> None:
    """Refuse an operator of which there is nothing to keep: an unknown one, one made of others, one in place."""
    overloads = _overloads(name)
    if not overloads:
        raise UnknownNameError(
            "operator", name, _operators(), "Operators are those of the installed torch, without overload: aten.mm."
        )
    dispatched, into = torch._C._dispatch_has_kernel_for_dispatch_key, (".out", "_out")  # what a caller hands over
    if all(dispatched(full, "CompositeImplicitAutograd") for full in overloads if not full.endswith(into)):
        raise BadInputError(
            f"{name} is made of other operators before a policy is asked about them: name those (aten.linear is "
            "aten.mm or aten.addmm), or the group products or attention"
        )
    if name.endswith("_"):
        raise BadInputError(
            f"{name} writes into its input, and a recomputation that left it out would be wrong: keep what reads the "
            "result"
        )


def _overloads(name: str) -> list[str]:
    """Return the full names of an operator's overloads that have kernels: aten::add.Tensor."""
    return [full for full in torch._C._dispatch_get_all_op_names() if _without_overload(full) == name]


def _operators() -> list[str]:
    """Return all operators, without overload: aten.mm."""
    return sorted({_without_overload(full) for full in torch._C._dispatch_get_all_op_names()})


def _without_overload(full: str) -> str:
    return full.partition(".")[0].replace("::", ".")


def _policy(kept: frozenset[str]) -> Callable[..., Any]:
    """Return the policy that keeps operators, as torch asks for it."""
    from torch.utils.checkpoint import CheckpointPolicy

    @functools.cache  # an operator's name is slow to ask for
    def decided(operator: Any) -> Any:
        name = str(operator).rpartition(".")[0]
        return CheckpointPolicy.MUST_SAVE if name in kept else CheckpointPolicy.PREFER_RECOMPUTE

    return lambda context, operator, *args, **kwargs: decided(operator)


def never_run(run: RunSpec, operators: Iterable[str]) -> tuple[str, ...]:
    """Say which operators to keep, each named by itself, a step does not run.

    Args:
        run: the configuration.
        operators: that ran, with overload.
    """
    ran = {operator.rpartition(".")[0] for operator in operators}
    idle = [name for name in run.keep if name not in GROUPS and name not in ran]
    return (f"nothing of {', '.join(idle)} is kept: no such operator runs in this step",) if idle else ()
