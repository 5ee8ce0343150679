"""Softmax, layer norm and RMS norm: copies of what is not contiguous, and partial gradients of the weights.

Sources: ATen/native/cuda/{layer_norm_kernel.cu, SoftMax.cu}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lorafa_prof.simulate.kernels.workspaces.registry import (
    DeviceTraits,
    KernelCall,
    Workspace,
    ceil_div,
    contiguous_copy,
    register,
)


@register("aten._softmax.default", "aten._log_softmax.default")
def softmax(call: KernelCall) -> list[Workspace]:
    """The kernel reads a contiguous input (`host_softmax`)."""
    return contiguous_copy("input", call.argument(0, "self"), after_outputs=True)


@register("aten._softmax_backward_data.default")
def softmax_backward(call: KernelCall) -> list[Workspace]:
    """The product of gradient and output, as large as either (`softmax_backward_cuda_out`), and copies.

    With attention that is not fused this is one more [B, H, S, T] in the middle of the backward.
    """
    grad, output = call.argument(0, "grad_output"), call.argument(1, "output")
    product = grad.numel() * max(grad.element_size(), output.element_size())
    buffers = [Workspace("grad * output", product, after_outputs=True)]
    if not grad.is_contiguous():  # the product lies as the gradient does
        buffers.append(Workspace("grad * output, contiguous", product, after_outputs=True))
    return buffers + contiguous_copy("output", output, after_outputs=True)


@register("aten._log_softmax_backward_data.default")
def log_softmax_backward(call: KernelCall) -> list[Workspace]:
    """The kernel reads a contiguous gradient and output (`host_softmax_backward`)."""
    grad, output = call.argument(0, "grad_output"), call.argument(1, "output")
    return [
        *contiguous_copy("grad", grad, after_outputs=True),
        *contiguous_copy("output", output, after_outputs=True),
    ]


@register("aten.native_layer_norm.default")
def layer_norm(call: KernelCall) -> list[Workspace]:
    """The kernel reads a contiguous input (`layer_norm_cuda`)."""
    return contiguous_copy("input", call.argument(0, "input"), after_outputs=False)


@register("aten.native_layer_norm_backward.default")
def layer_norm_backward(call: KernelCall) -> list[Workspace]:
    """Copies, and partial gradients of weight and bias (`LayerNormBackwardKernelImpl`)."""
    grad_out, inputs, shape = (call.argument(i, n) for i, n in enumerate(("grad_out", "input", "normalized_shape")))
    weight, mask = call.argument(5, "weight"), call.argument(7, "output_mask")
    partial = _partial_gradients(inputs, shape, weight, call.device)
    return [
        *contiguous_copy("input", inputs, after_outputs=False),
        *contiguous_copy("grad_out", grad_out, after_outputs=True),
        *(Workspace(n, partial, after_outputs=True) for n, wanted in zip(_PARTIAL, mask[1:], strict=True) if wanted),
    ]


@register("aten._fused_rms_norm.default")
def rms_norm(call: KernelCall) -> list[Workspace]:
    """The kernel reads a contiguous input (`_fused_rms_norm_cuda`)."""
    return contiguous_copy("input", call.argument(0, "input"), after_outputs=False)


@register("aten._fused_rms_norm_backward.default")
def rms_norm_backward(call: KernelCall) -> list[Workspace]:
    """Copies, and partial gradients of the weight (`RMSNormBackwardKernelImpl`)."""
    grad_out, inputs, shape = (call.argument(i, n) for i, n in enumerate(("grad_out", "input", "normalized_shape")))
    weight, mask = call.argument(4, "weight"), call.argument(5, "output_mask")
    partial = _partial_gradients(inputs, shape, weight, call.device) if mask[1] else 0
    return [
        *contiguous_copy("input", inputs, after_outputs=False),
        *contiguous_copy("grad_out", grad_out, after_outputs=True),
        Workspace(_PARTIAL[0], partial, after_outputs=True),
    ]


_PARTIAL = ("dgamma_blocks", "dbeta_blocks")


def _partial_gradients(
    inputs: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, device: DeviceTraits
) -> int:
    # LaunchGammaBetaBackwardCUDAKernel (2.8): more than 65536 rows that are narrow for the device are summed in two
    # passes, through [blocks of 32 rows, N] in the weight's type, at most 32768 blocks of 32 columns in all.
    width = math.prod(shape)
    rows = inputs.numel() // width if width else 0
    if weight is None or device.multiprocessors is None:
        return 0
    if rows <= 64 * 1024 or width // 32 >= device.multiprocessors // 2:
        return 0
    blocks = min(32 * 1024 // ceil_div(width, 32), ceil_div(rows, 32))
    return blocks * width * weight.element_size()
