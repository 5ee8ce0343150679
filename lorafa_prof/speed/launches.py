"""Operators on lists of tensors: how many kernels PyTorch's `multi_tensor_apply` makes of one.

A kernel takes its tensors' addresses as arguments, which are 4 KiB: so many tensors, cut into chunks of 65536 elements,
of which at most 320 go into one launch (PyTorch 2.13, ATen/native/cuda/MultiTensorApply.cuh).
"""

from __future__ import annotations

from collections.abc import Iterable

#: Elements of a chunk, and chunks of a launch.
CHUNK, CHUNKS = 65536, 320
#: Tensors of a launch by the number of lists, from one to five; the second where each has a number of its own as well.
_MOST_TENSORS = (110, 64, 48, 36, 30)
_MOST_TENSORS_WITH_SCALARS = (96, 64, 48, 36, 30)
#: Lists that an operator takes at most.
MOST_LISTS = len(_MOST_TENSORS)


def launches(elements: Iterable[int], lists: int, *, scalars: bool) -> int:
    """Return the kernels over `lists` lists of tensors of so many elements.

    Args:
        elements: of each tensor of one list.
        lists: how many there are, results included.
        scalars: whether each tensor comes with a number of its own.
    """
    return packed(elements, (_MOST_TENSORS_WITH_SCALARS if scalars else _MOST_TENSORS)[lists - 1])


def packed(elements: Iterable[int], most_tensors: int) -> int:
    """Return the launches for tensors of so many elements: one is full by its tensors, or by its chunks.

    A tensor whose chunks do not all fit takes a place in the next launch as well.
    """
    done = tensors = chunks = 0
    for number in elements:
        left = -(-number // CHUNK)
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
