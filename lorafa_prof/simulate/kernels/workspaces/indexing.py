"""Writing through indices that may repeat (ATen/native/cuda/Indexing.cu, `index_put_with_sort_kernel`).

Accumulating into the indexed places, which the backward of `tensor[indices]` does, sorts the indices first.
"""

from __future__ import annotations

import math

import torch

from lorafa_prof.simulate.kernels.workspaces.embedding import sort_of_positions
from lorafa_prof.simulate.kernels.workspaces.registry import KernelCall, Workspace, contiguous_copy, nbytes, register

INT64 = 8


@register("aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default")
def index_put(call: KernelCall) -> list[Workspace]:
    """The linear index, the expanded values and the sort; nothing where indices are written without accumulating.

    n index values for each of the indexed dimensions; boolean indices are not modelled, their count is in the data.
    """
    tensor, indices, values = (call.argument(i, n) for i, n in enumerate(("self", "indices", "values")))
    given = [index for index in indices if index is not None]
    repeatable = torch.are_deterministic_algorithms_enabled() and values.numel() > 1
    sorts = call.argument(3, "accumulate", False) or repeatable
    if not sorts or any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return []
    shape = torch.broadcast_shapes(*(index.shape for index in given))
    count = math.prod(shape)
    of_positions = count * INT64  # [n]
    expanded = values.expand(_values_shape(tensor, indices, shape))
    return [
        *contiguous_copy("self", tensor, after_outputs=True),
        *_linear_index(len(given), of_positions),
        *contiguous_copy("values", expanded, after_outputs=True),
        *([] if _adjacent(indices) else [Workspace("src", nbytes(tensor), after_outputs=True)]),
        *sort_of_positions(of_positions, freed_before=None, after_outputs=True),
    ]


def _linear_index(indexed: int, of_positions: int) -> list[Workspace]:
    # computeLinearIndex: for each indexed dimension the remainder, and that times the stride, which for the first
    # dimension becomes the linear index and for the others is added to it.
    buffers = []
    for dim in range(indexed):
        then = f"remainder {dim + 1}" if dim + 1 < indexed else "sorted_indices"
        buffers.append(Workspace(f"remainder {dim}", of_positions, after_outputs=True, freed_before=then))
        product = ("linearIndex", None) if dim == 0 else (f"index {dim}", then)
        buffers.append(Workspace(product[0], of_positions, after_outputs=True, freed_before=product[1]))
    return buffers


def _values_shape(tensor: torch.Tensor, indices: list[torch.Tensor | None], shape: torch.Size) -> tuple[int, ...]:
    # Indexed dimensions give way to those of the indices: in their place, or in front where they are not adjacent.
    places = [place for place, index in enumerate(indices) if index is not None]
    kept = [size for dim, size in enumerate(tensor.shape) if dim not in places]
    front = places[0] if _adjacent(indices) else 0
    return (*kept[:front], *shape, *kept[front:])


def _adjacent(indices: list[torch.Tensor | None]) -> bool:
    places = [place for place, index in enumerate(indices) if index is not None]
    return places == list(range(places[0], places[-1] + 1))
