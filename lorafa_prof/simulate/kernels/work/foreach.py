"""Operators on lists of tensors, as they were called: which lists there are, and how many kernels run over them.

Lists of several dtypes go the slow way, one kernel a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from lorafa_prof.speed import launches


def is_foreach(name: str) -> bool:
    """Say whether an operator ("aten._foreach_add_") is one of those, or an optimizer that is made of one."""
    return name.startswith(("aten._foreach_", "aten._fused_"))


def kernels(lists: Sequence[Sequence[torch.Tensor]], *, scalars: bool) -> int:
    """Return how many kernels run over lists of equal lengths.

    Args:
        lists: the tensors, results included.
        scalars: whether each tensor comes with a number.
    """
    if len({tensor.dtype for tensor in chain(*lists)}) > 1 or len(lists) > launches.MOST_LISTS:
        return len(lists[0])
    return launches.launches((tensor.numel() for tensor in lists[0]), len(lists), scalars=scalars)


def lists_of(args: Sequence[Any], outputs: Sequence[torch.Tensor], length: int) -> list[Sequence[torch.Tensor]]:
    """Return the lists of an operator's arguments that have as many tensors as the first, and that of its results."""
    given: list[Sequence[torch.Tensor]] = [
        value
        for value in args
        if isinstance(value, (list, tuple)) and len(value) == length and isinstance(value[0], torch.Tensor)
    ]
    return [*given, outputs] if len(outputs) == length else given
