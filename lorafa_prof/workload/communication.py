"""The buffers that FSDP2 makes in a step, seen at the moments in which it has made them.

They come and go within the step, and FSDP2 hands them to nobody.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from lorafa_prof.ledger import Category


@dataclass(frozen=True)
class Buffer:
    """One buffer."""

    path: str
    """Of the module, or of the parameter, that it is for."""
    what: str
    """What it is: "all-gather buffer", "gathered weight"."""
    category: Category
    tensor: torch.Tensor


Buffers = list[Buffer]


@contextlib.contextmanager
def watching_fsdp(see: Callable[[Buffers], None]) -> Iterator[None]:
    """While entered, `see` is shown FSDP2's buffers, where they are kept as in the releases that are known."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    with contextlib.ExitStack() as patches:
        for method, before, after in (
            ("unshard", None, _all_gather_buffer),
            ("wait_for_unshard", None, _gathered_weights),
            ("post_backward", _whole_gradients, _reduce_scatter_buffer),
        ):
            seen = _watched(getattr(FSDPParamGroup, method), see, before, after)
            patches.enter_context(mock.patch.object(FSDPParamGroup, method, seen))
        yield


Look = Callable[[Any], Buffers]
"""Finds buffers of a group of parameters."""


def _watched(
    method: Callable[..., Any], see: Callable[[Buffers], None], before: Look | None, after: Look
) -> Callable[..., Any]:
    @functools.wraps(method)
    def watched(group: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            see(before(group))
        result = method(group, *args, **kwargs)
        see(after(group))
        return result

    return watched


def _all_gather_buffer(group: Any) -> Buffers:
    output = getattr(getattr(group, "_all_gather_result", None), "all_gather_output", None)
    return _buffer(group, "all-gather buffer", output)


def _reduce_scatter_buffer(group: Any) -> Buffers:
    common = group.comm_ctx
    states = getattr(common, "reduce_scatter_states", None) or [getattr(common, "reduce_scatter_state", None)]
    return _buffer(group, "reduce-scatter buffer", getattr(states[-1], "reduce_scatter_input", None))


def _buffer(group: Any, what: str, tensor: torch.Tensor | None) -> Buffers:
    if tensor is None:
        return []
    return [Buffer(getattr(group, "_module_fqn", None) or "", what, Category.WORKSPACES, tensor)]


def _gathered_weights(group: Any) -> Buffers:
    found = ((param, output) for param in group.fsdp_params for output in param.all_gather_outputs)
    return [
        _of_parameter(param, "gathered {}", Category.WORKSPACES, output)
        for param, output in found
        if output.untyped_storage().nbytes()
    ]


def _whole_gradients(group: Any) -> Buffers:
    """Return the gradients that are not yet reduced: as large as the parameter, those of one group at a time."""
    found = ((param, getattr(getattr(param, "_unsharded_param", None), "grad", None)) for param in group.fsdp_params)
    return [
        _of_parameter(param, "whole gradient of {}", Category.GRADIENTS, gradient)
        for param, gradient in found
        if gradient is not None
    ]


def _of_parameter(param: Any, how: str, category: Category, tensor: torch.Tensor) -> Buffer:
    module, _, leaf = (getattr(param, "_param_fqn", None) or "").rpartition(".")
    return Buffer(module, how.format(leaf), category, tensor)
