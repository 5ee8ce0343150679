"""The gradient of an embedding (ATen/native/cuda/{Embedding.cu, EmbeddingBackwardKernel.cu}).

More than 3072 positions are sorted by their index, cut into segments of equal indices and those into pieces of at most
ten rows; each piece is summed into a row in float32, then the rows of a segment into the row of the weight. The sums of
the pieces are the large buffer: up to one row for each position.

n positions, V rows of the weight, N its width.
"""

from __future__ import annotations

import torch

from lorafa_prof.simulate.kernels.workspaces.registry import (
    OUTPUTS,
    KernelCall,
    Workspace,
    ceil_div,
    contiguous_copy,
    register,
    round_up,
)

#: NROWS_PER_THREAD, MAX_BLOCK_SIZE and MAX_ATOMIC_ACCUM_BLOCKS_PER_SM.
ROWS_IN_A_PIECE, BLOCK, ATOMIC_BLOCKS = 10, 1024, 4
#: Up to here one kernel walks the positions without sorting them.
UNSORTED = 3072
HALF = (torch.float16, torch.bfloat16)
#: A counter on the device: int64.
COUNTER = 8


@register("aten.embedding_dense_backward.default")
def embedding_dense_backward(call: KernelCall) -> list[Workspace]:
    """Copies, the sort, the segments and the sums of their pieces; the sort's is a lower bound (`UNMODELLED`)."""
    grad, indices, rows = (call.argument(i, n) for i, n in enumerate(("grad_output", "indices", "num_weights")))
    by_frequency = bool(call.argument(4, "scale_grad_by_freq", False))
    buffers = contiguous_copy("indices", indices, after_outputs=False)
    buffers += contiguous_copy("grad", grad, after_outputs=False)
    count = indices.numel()
    if count <= UNSORTED and not by_frequency:
        return buffers
    of_positions = count * indices.element_size()  # [n]
    buffers += sort_of_positions(of_positions, freed_before=OUTPUTS)
    if by_frequency:
        buffers.append(Workspace("count", of_positions, after_outputs=False))
    return buffers + _sums(call, grad, count, rows, indices.element_size())


def sort_of_positions(of_positions: int, *, freed_before: str | None, after_outputs: bool = False) -> list[Workspace]:
    """What sorting indices with their positions takes: keys and positions, sorted and not, and once more inside CUB.

    CUB's temporary storage holds at least one more buffer for keys and one for values, since neither input may be
    overwritten; its histograms come on top.
    """
    return [
        Workspace("sorted_indices", of_positions, after_outputs),
        Workspace("orig_indices", of_positions, after_outputs),
        Workspace("range", of_positions, after_outputs, freed_before=freed_before),
        Workspace("temporary storage of the sort", 2 * of_positions, after_outputs, freed_before=freed_before),
    ]


def _sums(call: KernelCall, grad: torch.Tensor, count: int, rows: int, index: int) -> list[Workspace]:
    segments = min(count, rows)  # max_segments
    pieces = count // ROWS_IN_A_PIECE + segments  # max_partial_segment
    width = grad.shape[-1]
    names = ("segment_offsets", "num_of_segments", "keys of the segments", "partials_per_segment",
             "partials_per_segment_offset", "num_of_partial_segments", "partial_segment_offset")  # fmt: skip
    sizes = (count * index, COUNTER, count * index, segments * index, segments * index, COUNTER, pieces * index)
    freed = {"keys of the segments": "partials_per_segment"}
    buffers = [Workspace(n, size, True, freed.get(n)) for n, size in zip(names, sizes, strict=True)]
    if _adds_atomically(call, segments, pieces, width):
        # [pieces], and for 16-bit gradients [V, N] in float32
        accumulator = rows * width * 4 if grad.dtype in HALF else 0
        return [
            *buffers,
            Workspace("partial_to_segment_idx", pieces * index, after_outputs=True),
            Workspace("grad_weight_acc", accumulator, after_outputs=True),
        ]
    # [pieces, N] in float32 (float64 for float64)
    wide = 4 if grad.dtype in HALF else grad.element_size()
    return [*buffers, Workspace("grad_weight_per_segment", pieces * width * wide, after_outputs=True)]


def _adds_atomically(call: KernelCall, segments: int, pieces: int, width: int) -> bool:
    # use_fused_kernel (2.11 and later): few segments with many pieces each, as with token types
    multiprocessors = call.device.multiprocessors
    if multiprocessors is None or torch.are_deterministic_algorithms_enabled():
        return False
    threads = round_up(width, 32)
    blocks = ceil_div(segments * threads, min(threads, BLOCK))
    return blocks < multiprocessors * ATOMIC_BLOCKS and pieces > 4 * blocks
