"""Makes meta tensors take the way that CUDA tensors take, where the two differ in what they allocate or save.

On meta, `F.scaled_dot_product_attention` decomposes into its products and `F.dropout` keeps a mask as wide as its
input; CUDA runs one kernel for each. These are called here, by the rules of `attention_kernels`; their meta functions
and their backward formulas are PyTorch's own. What such a kernel allocates inside is in `workspaces`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from lorafa_prof.simulate.kernels.attention_choice import AttentionCall
from lorafa_prof.simulate.kernels.autocast import autocast_on_meta, current as current_autocast
from lorafa_prof.simulate.kernels.choices import Choices
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits

aten = torch.ops.aten


def attention_on(traits: DeviceTraits, choices: Choices) -> Callable[..., torch.Tensor]:
    """Return what `F.scaled_dot_product_attention` runs on a CUDA device."""

    def scaled_dot_product_attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        if autocast := current_autocast():
            query, key, value = (autocast.to_16_bit(t) for t in (query, key, value))
            attn_mask = None if attn_mask is None else autocast.to_16_bit(attn_mask)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        with_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        call = AttentionCall(
            query=query, key=key, value=value, mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal,
            enable_gqa=enable_gqa, device=traits, needs_grad=with_grad,
        )  # fmt: skip
        return _KERNELS[choices.choose(call)](call, scale)

    return scaled_dot_product_attention


def _flash(call: AttentionCall, scale: float) -> torch.Tensor:
    query, key, value = call.tensors
    width = query.shape[-1]
    if spare := -width % 8:
        query, key, value = (F.pad(t, (0, spare)) for t in (query, key, value))
    plain = (query, key, value, call.dropout_p, call.is_causal)
    out = first(aten._scaled_dot_product_flash_attention(*plain, scale=scale))
    return out[..., :width] if spare else out


def _efficient(call: AttentionCall, scale: float) -> torch.Tensor:
    bias = None if call.mask is None else _attention_bias(call.mask, call.query, call.key)
    plain = (*call.tensors, bias, call.needs_grad, call.dropout_p, call.is_causal)
    return first(aten._scaled_dot_product_efficient_attention(*plain, scale=scale))


def _cudnn(call: AttentionCall, scale: float) -> torch.Tensor:
    mask = None if call.mask is None else _additive(call.mask, call.query.dtype)
    plain = (*call.tensors, mask, call.needs_grad, call.dropout_p, call.is_causal)
    return first(aten._scaled_dot_product_cudnn_attention(*plain, scale=scale))


def _math(call: AttentionCall, scale: float) -> torch.Tensor:
    plain = (*call.tensors, call.mask, call.dropout_p, call.is_causal)
    with _fused_dropout_within() if call.dropout_p else contextlib.nullcontext():
        return first(aten._scaled_dot_product_attention_math(*plain, scale=scale, enable_gqa=call.enable_gqa))


@contextlib.contextmanager
def _fused_dropout_within() -> Iterator[None]:
    """`at::dropout`, called by PyTorch's own C++ code, as it is on CUDA: it asks the tensor where it is."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("dropout", lambda x, p, train: first(aten.native_dropout(x, p, train)), "AutogradMeta")
        yield


_KERNELS = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn, "math": _math}


def first(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The result proper; the rest is what the operator keeps for its backward."""
    return outputs[0]


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask that is added: a boolean one becomes 0 and minus infinity in the query's dtype."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.full((), float("-inf"), dtype=dtype, device=mask.device))


def _attention_bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the mask as the memory-efficient kernel takes it: rows padded to 16 elements, and expanded."""
    mask = _additive(mask, query.dtype)
    if spare := -mask.shape[-1] % 16:
        mask = F.pad(mask, (0, spare))[..., : key.shape[2]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """What `F.dropout` runs on CUDA: one fused kernel with a mask of one byte an element."""
    if not training or p == 0.0 or inplace:
        return torch.dropout(input, p, training)
    return first(aten.native_dropout(input, p, True))


def grouped_product(a: torch.Tensor, b: torch.Tensor, *_: object, offs: torch.Tensor, **__: object) -> torch.Tensor:
    """What `grouped_mm` makes on CUDA; PyTorch's own function for meta tensors takes bf16 only.

    Rows of the result are padded to 16 bytes, and what is multiplied has to be aligned so already (PyTorch 2.13,
    `create_grouped_gemm_output_tensor` and `check_valid_strides_and_return_transposed`, ATen/native/GroupedMMUtils.h).

    Raises:
        RuntimeError: rows of a factor that do not begin at a multiple of 16 bytes.
    """
    for factor in (a, b):
        if max(factor.stride()[-2:]) * factor.element_size() % 16:
            raise RuntimeError("strides should be multiple of 16 bytes")
    stack = [offs.shape[0]] if a.dim() == b.dim() == 2 else []
    rows, columns = a.shape[-2], b.shape[-1]
    width = columns + -columns % (16 // a.element_size())
    strides = [rows * width] * len(stack) + [width, 1]
    return torch.empty_strided([*stack, rows, columns], strides, dtype=a.dtype, device=a.device)


@contextlib.contextmanager
def cuda_on_meta(traits: DeviceTraits, choices: Choices) -> Iterator[None]:
    """CUDA's kernels for meta tensors, while the context is entered; the choices between them are noted."""
    # Functions are patched rather than caught by a TorchFunctionMode: backward() switches such modes off, and with
    # checkpointing the forward runs a second time in there.
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention_on(traits, choices)))
        stack.enter_context(mock.patch.object(F, "dropout", dropout))
        stack.enter_context(autocast_on_meta())
        stack.enter_context(fused_optimizers_on_meta())
        for name, replacement in _REPLACED.items():
            stack.enter_context(mock.patch(name, replacement))
        yield


def fused_optimizers_on_meta() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which fused optimizers take meta for a device that has the kernel, as CUDA and the CPU do."""
    return mock.patch("torch.optim.adam._device_dtype_check_for_fused", return_value=None)


#: What asks of meta what CUDA does not ask.
_REPLACED: dict[str, Any] = {}
if hasattr(torch._meta_registrations, "_meta_grouped_mm_common"):
    _REPLACED["torch._meta_registrations._meta_grouped_mm_common"] = grouped_product
