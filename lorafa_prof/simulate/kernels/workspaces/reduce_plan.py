"""How CUDA splits a reduction between thread blocks, and the memory in which the blocks meet.

A reduction with few outputs and many inputs for each is shared by several thread blocks, which leave their partial
results in a staging buffer and count themselves off in semaphores (ATen/native/cuda/Reduce.cuh, `gpu_reduce_kernel`).
The names are those of `setReduceConfig` and of `TensorIteratorBase` (ATen/TensorIterator.cpp).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from lorafa_prof.simulate.kernels.workspaces.registry import DeviceTraits, ceil_div

INT32_MAX = 2**31 - 1
MAX_NUM_THREADS = 512
WARP = 32


@dataclass(frozen=True)
class Dim:
    """One dimension of the iteration: strides in elements, the output's is 0 where the dimension is reduced."""

    size: int
    input: int
    output: int

    @property
    def reduced(self) -> bool:
        """Whether the dimension is summed over."""
        return self.output == 0


@dataclass(frozen=True)
class Element:
    """The types of a reduction, by their sizes in bytes."""

    input: int
    """Of one element that is read (`scalar_t`)."""

    output: int
    """Of one element that is written (`out_scalar_t`)."""

    partial: int
    """Of one partial result (`arg_t`)."""

    vector: int
    """How many elements a vectorised load takes (`input_vec_size`)."""

    accumulates_in_output: bool
    """Whether partial results of pieces may be kept in the output: not with 16-bit inputs and outputs."""


@dataclass(frozen=True)
class Staging:
    """What a reduction allocates beside its output, in bytes."""

    accumulation: int = 0
    """The wider copy of a 16-bit output in which the pieces of an input of 2 GiB and more are added up."""

    buffer: int = 0
    """The partial results of the thread blocks."""

    semaphores: int = 0
    """One counter for each group of outputs."""


def staging(tensor: torch.Tensor, reduced: Iterable[int] | None, element: Element, device: DeviceTraits) -> Staging:
    """Return what it takes to reduce `tensor` over the dimensions `reduced` (None or empty: over all)."""
    if device.multiprocessors is None or tensor.numel() <= 1:
        return Staging()
    dims = iteration_dims(tensor.shape, tensor.stride(), reduced)
    pieces = _pieces(dims, element)
    plans = [_plan(piece, int(tensor.storage_offset()), element, device) for piece in pieces]
    largest = max(plans, key=lambda plan: plan.buffer)  # one piece after the other, each with its own
    if len(pieces) > 1 and not element.accumulates_in_output:
        extent = max(1, *(dim.size * dim.output for dim in dims))
        return replace(largest, accumulation=extent * element.partial)
    return largest


def iteration_dims(shape: Sequence[int], strides: Sequence[int], reduced: Iterable[int] | None) -> list[Dim]:
    """Return the dimensions in the order of the iteration, those that follow one another in memory made one.

    Reduced dimensions come first, then by rising stride (`reorder_dimensions`, `coalesce_dimensions`).
    """
    over = {dim % len(shape) for dim in reduced or ()} or set(range(len(shape)))
    dims, output = [], 1
    for index in reversed(range(len(shape))):
        dims.append(Dim(shape[index], strides[index], 0 if index in over else output))
        output *= 1 if index in over else shape[index]
    dims = [dim for dim in dims if dim.size > 1]
    for first in range(1, len(dims)):  # an insertion sort, for the order is not total where strides are 0
        place = first
        for other in reversed(range(first)):
            order = _order(dims[other], dims[place])
            if order > 0:
                dims[other], dims[place] = dims[place], dims[other]
                place = other
            elif order < 0:
                break
    return _coalesced(dims)


def _order(left: Dim, right: Dim) -> int:
    if left.reduced != right.reduced:
        return 1 if right.reduced else -1
    for a, b in ((left.output, right.output), (left.input, right.input)):
        if a and b and a != b:
            return -1 if a < b else 1
        if a and a == b and left.size > right.size:
            return 1
    return 0


def _coalesced(dims: list[Dim]) -> list[Dim]:
    merged = dims[:1]
    for dim in dims[1:]:
        last = merged[-1]
        if last.size * last.input == dim.input and last.size * last.output == dim.output:
            merged[-1] = replace(last, size=last.size * dim.size)
        else:
            merged.append(dim)
    return merged


def _pieces(dims: list[Dim], element: Element) -> list[list[Dim]]:
    # with_32bit_indexing: halve the dimension that reaches furthest until every offset in bytes fits in 31 bits.
    reach = [max((d.size - 1) * d.input * element.input, (d.size - 1) * d.output * element.output) for d in dims]
    inputs = 1 + sum((d.size - 1) * d.input * element.input for d in dims)
    numel = 1
    for dim in dims:
        numel *= dim.size
    if max(inputs, numel) <= INT32_MAX:
        return [dims]
    split = max(range(len(dims)), key=lambda index: (reach[index], index))
    half = dims[split].size // 2
    sizes = (half, dims[split].size - half)
    parts = [[*dims[:split], replace(dims[split], size=size), *dims[split + 1 :]] for size in sizes]
    return [piece for part in parts for piece in _pieces(part, element)]


def _plan(dims: list[Dim], storage_offset: int, element: Element, device: DeviceTraits) -> Staging:
    reduced = [dim for dim in dims if dim.reduced]
    kept = [dim for dim in dims if not dim.reduced]
    outputs, inputs = _count(kept), _count(reduced)  # num_outputs, inputs_per_output
    along_input = not kept or (bool(reduced) and reduced[0].input < kept[0].input)
    fastest = (reduced if along_input else kept)[0].input
    width, height = (inputs, outputs) if along_input else (outputs, inputs)  # dim0, dim1
    output_vector = 1
    if fastest == 1:
        if along_input and width >= 128 and len(reduced) == 1:
            width //= element.vector
        elif not along_input:
            output_vector = _output_vector(dims, kept[0], storage_offset)
            width //= output_vector
    block_width, block_height = _block(width, height, MAX_NUM_THREADS // output_vector)

    step_input = block_width if along_input else 1
    step_output = 1 if along_input else block_width
    if ceil_div(inputs, step_input) < min(block_height * 16, 256):  # each warp has outputs of its own
        return Staging()
    step_input *= block_height
    values = ceil_div(inputs, step_input)  # values_per_thread
    grid = ceil_div(outputs // output_vector, step_output)
    target = device.multiprocessors or 0
    target *= device.max_threads_per_multiprocessor // (block_width * block_height)
    if values < 256 or grid > target:
        return Staging()
    blocks = max(min(ceil_div(target, grid), ceil_div(values, 16)), ceil_div(values, 256))  # ctas_per_output
    if blocks <= 1:
        return Staging()
    buffer = element.partial * outputs * blocks
    if not along_input:
        buffer *= block_width * output_vector
    return Staging(buffer=buffer, semaphores=4 * grid)


def _block(width: int, height: int, threads: int) -> tuple[int, int]:
    # set_block_dimension
    width = _last_pow2(width) if width < threads else threads
    height = _last_pow2(height) if height < threads else threads
    block_width = min(width, WARP)
    block_height = min(height, threads // block_width)
    return min(width, threads // block_height), block_height


def _output_vector(dims: list[Dim], first_kept: Dim, storage_offset: int) -> int:
    # get_output_vec_size: the address, the outputs in a row and every other stride must be multiples. Addresses of the
    # allocator are multiples of 512 bytes, which leaves the offset within the storage.
    vector = 4
    for number in (storage_offset, first_kept.size, *(dim.input for dim in dims if dim is not first_kept)):
        while number % vector:
            vector //= 2
    return vector


def _count(dims: list[Dim]) -> int:
    count = 1
    for dim in dims:
        count *= dim.size
    return count


def _last_pow2(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)
