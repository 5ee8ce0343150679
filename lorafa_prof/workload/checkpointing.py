"""Activation checkpointing of a model's layers: all of a layer is run once more, or what is cheap of it.

Full checkpointing is what the installed transformers turns on when nothing else is said. Selective checkpointing is
`torch.utils.checkpoint.create_selective_checkpoint_contexts` with one policy, an operator at a time: the results of
matrix products and of attention kernels are kept, all others are computed again. These are the operators that
torchtitan keeps too (its `_op_sac_save_list`, of which it computes every other product again); what is computed again
costs no FLOP that anybody counts.
"""

from __future__ import annotations

import functools
from typing import Any

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.versions import installed_versions

#: Operators, without overload, whose results selective checkpointing keeps.
KEPT = frozenset(
    {f"aten.{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm")}
    | {f"aten._scaled_dot_product_{name}" for name in (
        "flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention",
    )}
    | {"bitsandbytes.gemm_4bit", "bitsandbytes.int8_linear_matmul", "bitsandbytes.int8_mixed_scaled_mm"}
)  # fmt: skip


def enable_checkpointing(model: Any, run: RunSpec) -> None:
    """Turn on activation checkpointing of the run's kind, non-reentrant where the kind or the release says so.

    Raises:
        UnsupportedError: selective checkpointing with a PyTorch that has none.
    """
    options = _selective() if run.checkpointing == "selective" else {}
    if hasattr(model, "activation_checkpointing_enable"):  # the name that transformers 5 gives it
        model.activation_checkpointing_enable(**options)
    else:
        model.gradient_checkpointing_enable(**{f"gradient_{name.partition('_')[2]}": o for name, o in options.items()})
    if run.method.name != "full":  # what users of adapters are told to add
        model.enable_input_require_grads()


def _selective() -> dict[str, Any]:
    try:
        from torch.utils.checkpoint import create_selective_checkpoint_contexts
    except ImportError:
        raise UnsupportedError(
            f"torch {installed_versions()['torch']} has no selective checkpointing (2.4 has it); --checkpointing full"
        ) from None
    context = functools.partial(create_selective_checkpoint_contexts, _policy)
    return {"activation_checkpointing_kwargs": {"use_reentrant": False, "context_fn": context}}


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    del context, args, kwargs
    return _decided(operator)


@functools.cache
def _decided(operator: Any) -> Any:
    """Return what is done about an operator; kept, for an operator's name is slow to ask for."""
    from torch.utils.checkpoint import CheckpointPolicy

    name = str(operator).rpartition(".")[0]
    return CheckpointPolicy.MUST_SAVE if name in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
