"""Makes meta tensors take the way that CUDA tensors take, where the two differ in what they allocate or save.

The rules for attention are those of torch 2.13 on cards whose order is flash, memory-efficient, math. On data-centre
Hopper and Blackwell cards with a recent cuDNN its kernel comes first, which also takes a mask and grouped heads; what
it saves is of the same sizes as flash's. Buffers inside a kernel (flash's fp32 accumulator for the gradient of the
query, the keys of an embedding's backward) are in no trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from lorafa_prof.simulate.autocast import (
    CudaAutocast,
    autocast_for_meta,
    autocast_is_available,
    autocast_options,
    current as current_autocast,
)

aten = torch.ops.aten
HALF = (torch.bfloat16, torch.float16)


def flash_allowed(query: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """CUDA's rules for the flash kernel (ATen/native/transformers/cuda/sdp_utils.cpp)."""
    return mask is None and query.dtype in HALF and query.shape[-1] == value.shape[-1] <= 256


def efficient_allowed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """CUDA's rules for the memory-efficient kernel: no grouped heads, rows aligned to 16 bytes."""
    aligned = all(t.shape[-1] * t.element_size() % 16 == 0 for t in (query, value))
    return aligned and query.shape[1] == key.shape[1]


def scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """What `F.scaled_dot_product_attention` runs on CUDA."""
    if autocast := current_autocast():
        query, key, value = (autocast.to_16_bit(t) for t in (query, key, value))
        attn_mask = None if attn_mask is None else autocast.to_16_bit(attn_mask)
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    if flash_allowed(query, value, attn_mask):
        if spare := -width % 8:
            query, key, value = (F.pad(t, (0, spare)) for t in (query, key, value))
        out = first(aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale))
        return out[..., :width] if spare else out
    if efficient_allowed(query, key, value):
        bias = None if attn_mask is None else _attention_bias(attn_mask, query, key)
        with_lse = any(t.requires_grad for t in (query, key, value))
        with_bias = (query, key, value, bias, with_lse, dropout_p, is_causal)
        return first(aten._scaled_dot_product_efficient_attention(*with_bias, scale=scale))
    plain = (query, key, value, attn_mask, dropout_p, is_causal)
    return first(aten._scaled_dot_product_attention_math(*plain, scale=scale, enable_gqa=enable_gqa))


def first(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The result proper; the rest is what the operator keeps for its backward."""
    return outputs[0]


def _attention_bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    # A boolean mask becomes an additive one in the query's dtype; rows are padded to 16 elements for alignment.
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.full((), float("-inf"), dtype=query.dtype, device=mask.device))
    if spare := -mask.shape[-1] % 16:
        mask = F.pad(mask, (0, spare))[..., : key.shape[2]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """What `F.dropout` runs on CUDA: one fused kernel with a mask of one byte an element."""
    if not training or p == 0.0 or inplace:
        return torch.dropout(input, p, training)
    return first(aten.native_dropout(input, p, True))


@contextlib.contextmanager
def cuda_on_meta() -> Iterator[None]:
    """CUDA's choices of kernels for meta tensors, while the context is entered."""
    # Functions are patched rather than caught by a TorchFunctionMode: backward() switches such modes off, and with
    # checkpointing the forward runs a second time in there.
    with contextlib.ExitStack() as stack:
        for function in (scaled_dot_product_attention, dropout):
            stack.enter_context(mock.patch.object(F, function.__name__, function))
        for name, replacement in _REPLACED.items():
            stack.enter_context(mock.patch(name, replacement))
        try:  # PEFT's LoRA-FA optimizer runs one product under the autocast of the device that it finds
            in_optimizer = lambda **_: CudaAutocast(without_grad=True)  # noqa: E731
            stack.enter_context(mock.patch("peft.optimizers.lorafa.autocast", in_optimizer))
        except ModuleNotFoundError:  # an older PEFT has none
            pass
        yield


#: What asks for the device, in which meta is not known.
_REPLACED: dict[str, Any] = {
    "torch.autocast": autocast_for_meta,
    "torch.amp.autocast": autocast_for_meta,
    "torch.amp.is_autocast_available": autocast_is_available,
    "torch.utils.checkpoint._get_autocast_kwargs": autocast_options,
    # fused optimizers ask for a device that has the kernel
    "torch.optim.adam._device_dtype_check_for_fused": lambda *_, **__: None,
}
