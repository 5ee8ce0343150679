"""Operators on lists of tensors: how many kernels `multi_tensor_apply` makes of one.

A kernel takes its tensors' addresses as arguments, which are 4 KiB: so many tensors, cut into chunks of 65536 elements,
of which at most 320 go into one launch (PyTorch 2.13, ATen/native/cuda/MultiTensorApply.cuh). Lists of several dtypes
go the slow way, one kernel a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from lorafa_prof.simulate.kernels.workspaces.registry import ceil_div

#: Elements of a chunk, and chunks of a launch.
CHUNK, CHUNKS = 65536, 320
#: Tensors of a launch by the number of lists, from one to five; the second where each has a number of its own as well.
MOST_TENSORS = (110, 64, 48, 36, 30)
MOST_TENSORS_WITH_SCALARS = (96, 64, 48, 36, 30)


def is_foreach(name: str) -> bool:
    """Say whether an operator ("aten._foreach_add_") is one of those, or an optimizer that is made of one."""
    return name.startswith(("aten._foreach_", "aten._fused_"))


def launches(lists: Sequence[Sequence[torch.Tensor]], *, scalars: bool) -> int:
    """Return how many kernels run over lists of equal lengths.

    Args:
        lists: the tensors, results included.
        scalars: whether each tensor comes with a number.
    """
    if len({tensor.dtype for tensor in chain(*lists)}) > 1 or len(lists) > len(MOST_TENSORS):
        return len(lists[0])
    most = (MOST_TENSORS_WITH_SCALARS if scalars else MOST_TENSORS)[len(lists) - 1]
    return packed([tensor.numel() for tensor in lists[0]], most)


def packed(elements: Sequence[int], most_tensors: int) -> int:
    """Return the launches for tensors of so many elements: one is full by its tensors, or by its chunks.

    A tensor whose chunks do not all fit takes a place in the next launch as well.
    """
    done = tensors = chunks = 0
    for number in elements:
        left = ceil_div(number, CHUNK)
        if not left:
            continue
        tensors += 1
        while left:
            taken = min(left, CHUNKS - chunks)
            chunks, left = chunks + taken, left - taken
            if chunks == CHUNKS or (tensors == most_tensors and not left):
                done, chunks = done + 1, 0
                tensors = 1 if left else 0
    return done + (chunks > 0)


def lists_of(args: Sequence[Any], outputs: Sequence[torch.Tensor], length: int) -> list[Sequence[torch.Tensor]]:
    """Return the lists of an operator's arguments that have as many tensors as the first, and that of its results."""
    given: list[Sequence[torch.Tensor]] = [
        value
        for value in args
        if isinstance(value, (list, tuple)) and len(value) == length and isinstance(value[0], torch.Tensor)
    ]
    return [*given, outputs] if len(outputs) == length else given
