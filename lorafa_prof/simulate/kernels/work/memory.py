"""What only moves memory and does not simply read its arguments and write its results.

By the kernels of PyTorch 2.13 for CUDA. What has no formula here or elsewhere reads each argument once, writes each
result once and is one kernel: elementwise operators, reductions, norms, softmax, copies, concatenations.
"""

from __future__ import annotations

import torch

from lorafa_prof.simulate.kernels.work.registry import Part, register, size, sizes, whole
from lorafa_prof.simulate.kernels.workspaces import KernelCall

#: Up to so many rows the embedding's gradient is added up without a sort (ATen/native/cuda/Embedding.cu).
UNSORTED_ROWS = 3072


@register(
    "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.empty_permuted", "aten.new_empty",
    "aten.new_empty_strided", "aten.resize_", "aten.set_",
)  # fmt: skip
def nothing(call: KernelCall) -> list[Part]:
    """Memory is taken, and left as it is."""
    del call
    return []


@register(
    "aten.zeros", "aten.ones", "aten.full", "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.new_zeros",
    "aten.new_ones", "aten.new_full", "aten.arange", "aten.scalar_tensor", "aten.eye", "aten.rand", "aten.randn",
    "aten.rand_like", "aten.randn_like", "aten.randint", "aten.randperm",
)  # fmt: skip
def fill(call: KernelCall) -> list[Part]:
    """Written without anything being read."""
    return [Part(read=0, written=sum(map(whole, call.outputs)))]


@register("aten.zero_", "aten.fill_", "aten.normal_", "aten.uniform_", "aten.random_", "aten.exponential_")
def fill_in_place(call: KernelCall) -> list[Part]:
    """Written over, without being read."""
    return [Part(read=0, written=whole(call.args[0]))]


@register("aten.copy_")
def copy(call: KernelCall) -> list[Part]:
    """What is written over is not read."""
    target, source = call.args[:2]
    return [Part(read=size(source), written=whole(target), dtype=None if target is None else target.dtype)]


@register("aten.slice_backward", "aten.select_backward", "aten.diagonal_backward", "aten.constant_pad_nd")
def into_zeros(call: KernelCall) -> list[Part]:
    """A fill of the result, and a copy into its part."""
    given, out = call.args[0], call.outputs[0]
    inner = given.numel() * out.element_size()
    return [Part(what="fill", read=0, written=whole(out)), Part(what="copy", read=size(given), written=inner)]


@register("aten.embedding")
def embedding(call: KernelCall) -> list[Part]:
    """Rows that are asked for, not the table."""
    return _looked_up(call, call.argument(1, "indices"))


@register("aten.index_select", "aten.gather", "aten.index", "aten.take")
def look_up(call: KernelCall) -> list[Part]:
    """Elements that are asked for, not all."""
    return _looked_up(call, call.args[1:])


def _looked_up(call: KernelCall, indices: object) -> list[Part]:
    out = whole(call.outputs[0])
    return [Part(read=out + sizes(_tensors(indices)), written=out)]


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


@register("aten.embedding_dense_backward")
def embedding_backward(call: KernelCall) -> list[Part]:
    """The table's gradient is cleared; rows are added into it, of many tokens after a sort of their ids.

    The sort's passes, over as many ids as there are tokens, are left out: they are small beside the rows.
    """
    grad, indices = call.args[:2]
    rows = whole(grad)
    kernels = 1 if indices.numel() <= UNSORTED_ROWS else 2
    return [
        Part(what="fill", read=0, written=whole(call.outputs[0])),
        Part(what="add rows", read=size(grad) + size(indices) + rows, written=rows, kernels=kernels),
    ]


@register("aten.nll_loss_forward")
def nll_loss(call: KernelCall) -> list[Part]:
    """One element a row."""
    scores, target = call.args[:2]
    return [Part(read=size(target) + target.numel() * scores.element_size(), written=sum(map(whole, call.outputs)))]


@register("aten.nll_loss_backward")
def nll_loss_backward(call: KernelCall) -> list[Part]:
    """A fill of the gradient, and one element a row."""
    target, out = call.args[2], call.outputs[0]
    written = target.numel() * out.element_size()
    return [Part(what="fill", read=0, written=whole(out)), Part(what="rows", read=size(target), written=written)]


@register("aten.index_put_", "aten._index_put_impl_")
def index_put_in_place(call: KernelCall) -> list[Part]:
    """Values go to their places; where they are added up, what is there is read, and their indices are sorted."""
    target, indices, values = call.args[:3]
    adds = bool(call.argument(3, "accumulate", False))
    written = values.numel() * target.element_size()
    read = sizes(_tensors(indices)) + size(values) + (written if adds else 0)
    return [Part(read=read, written=written, dtype=target.dtype, kernels=2 if adds else 1)]


@register("aten.index_put")
def index_put(call: KernelCall) -> list[Part]:
    """The same on a copy."""
    target = call.args[0]
    return [Part(what="copy", read=size(target), written=whole(target)), *index_put_in_place(call)]


@register("aten.scatter_add_", "aten.index_add_", "aten.scatter_", "aten.put_", "aten.scatter_reduce_")
def scatter_in_place(call: KernelCall) -> list[Part]:
    """Elements go to their places; the rest of the target is left alone."""
    target, *rest = call.args
    given = _tensors(rest)
    written = max((tensor.numel() for tensor in given), default=0) * target.element_size()
    return [Part(read=sizes(given) + written, written=written, dtype=target.dtype)]


@register("aten.scatter_add", "aten.index_add", "aten.scatter", "aten.put")
def scatter(call: KernelCall) -> list[Part]:
    """The same on a copy."""
    target = call.args[0]
    return [Part(what="copy", read=size(target), written=whole(target)), *scatter_in_place(call)]


@register("aten.native_layer_norm_backward")
def layer_norm_backward(call: KernelCall) -> list[Part]:
    """The input's gradient; those of scale and shift by a kernel that reads all once more (layer_norm_kernel.cu)."""
    grad, x = call.args[:2]
    statistics = sizes(_tensors(call.args[3:6]))
    masks = call.argument(7, "output_mask")
    made = iter(call.outputs)
    parts = []
    if masks[0]:
        out = next(made)
        parts.append(Part(what="input", read=size(grad) + size(x) + statistics, written=whole(out)))
    if any(masks[1:]):
        written = sum(map(whole, made))
        parts.append(Part(what="parameters", read=size(grad) + size(x) + statistics, written=written))
    return parts


@register("aten._local_scalar_dense", "aten.equal", "aten.is_nonzero")
def value(call: KernelCall) -> list[Part]:
    """A value is copied to the host, which waits for it."""
    return [Part(read=sizes(_tensors(call.args)), written=0, waits=True)]
