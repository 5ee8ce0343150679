"""Which kernel `scaled_dot_product_attention` runs on a CUDA device, and why the others do not.

The rules are those of PyTorch 2.13, ATen/native/transformers/cuda/sdp_utils.cpp and sdp_utils_cpp.h: kernels are tried
in an order that depends on the device, and each has a list of conditions. The math kernel takes whatever is left.

Not asked for here: nested tensors, kernels that were switched off at run time, and the user's own order of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from lorafa_prof.simulate.kernels.workspaces import DeviceTraits

SdpaKernel = Literal["flash", "efficient", "cudnn", "math"]

HALF = (torch.float16, torch.bfloat16)
FIRST, LAST = (8, 0), (12, 1)
#: Above this, cuDNN's kernels come first on Hopper and the data-centre cards of Blackwell (9.15.0).
CUDNN_PREFERRED_ABOVE = 91500
#: The cuDNN that wheels of PyTorch 2.13 for CUDA 13 require: 9.20.0.
CUDNN_OF_WHEELS = 92000
CUDNN_MAX_SIZE = 65535
#: Above this, 9.22.0, its heads may be 256 wide (in builds whose cuDNN frontend is 1.24 or newer, taken for granted).
CUDNN_256_ABOVE = 92200


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What the choice depends on."""

    query: torch.Tensor
    """[B, H, S, K]"""

    key: torch.Tensor
    """[B, G, T, K]"""

    value: torch.Tensor
    """[B, G, T, V]"""

    mask: torch.Tensor | None = None
    """Boolean or additive, [S, T] or [B, H, S, T], each size possibly 1."""

    dropout_p: float = 0.0
    """The probability of dropping an attention weight."""

    is_causal: bool = False
    """Whether the kernel masks what comes later."""

    enable_gqa: bool = False
    """Whether fewer key heads than query heads are meant to be shared."""

    device: DeviceTraits
    """Where it would run."""

    needs_grad: bool = False
    """Whether any of query, key and value requires a gradient, with gradients enabled."""

    cudnn_version: int = CUDNN_OF_WHEELS
    """cuDNN's version number as `torch.backends.cudnn.version()` gives it; 0: built without."""

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value


def choose_sdpa_kernel(call: AttentionCall) -> SdpaKernel:
    """Return the kernel that runs: the first in the device's order that `why_not` has nothing against."""
    return next(kernel for kernel in kernel_order(call) if why_not(kernel, call) is None)


def kernel_order(call: AttentionCall) -> tuple[SdpaKernel, ...]:
    """Return the order in which kernels are tried (`priority_order`, `check_prefer_cudnn_attention`).

    cuDNN first on compute capability 9.x and 10.x with cuDNN above 9.15.0, else last but for math, which always can.
    """
    prefers_cudnn = call.device.capability[0] in (9, 10) and call.cudnn_version > CUDNN_PREFERRED_ABOVE
    return ("cudnn", "flash", "efficient", "math") if prefers_cudnn else ("flash", "efficient", "math", "cudnn")


def why_not(kernel: SdpaKernel, call: AttentionCall) -> str | None:
    """Return why `kernel` cannot run this call, in words that complete "it cannot, since"; None: it can."""
    return next((reason for rule in _RULES[kernel] for reason in rule(call)), None)


# ---- conditions: each yields its reason where it is not met ----------------------------------------------------------

Rule = Callable[[AttentionCall], Iterator[str]]


def _four_dimensions(call: AttentionCall) -> Iterator[str]:
    if any(tensor.dim() != 4 for tensor in call.tensors):
        yield "query, key and value need four dimensions"


def _no_mask(call: AttentionCall) -> Iterator[str]:
    if call.mask is not None:
        yield "it takes no mask"


def _flash_width(call: AttentionCall) -> Iterator[str]:
    widths = [tensor.shape[-1] for tensor in call.tensors]
    if len(set(widths)) > 1:
        yield f"heads of query, key and value differ in width: {widths}"
    elif widths[0] > 256:
        yield f"heads are {widths[0]} wide, more than 256"


def _from_ampere_on(call: AttentionCall) -> Iterator[str]:
    if not FIRST <= call.device.capability <= LAST:
        yield f"compute capability {_shown(call)} is not from 8.0 to 12.1"


def _from_maxwell_on(call: AttentionCall) -> Iterator[str]:
    if not (5, 0) <= call.device.capability <= LAST:
        yield f"compute capability {_shown(call)} is not from 5.0 to 12.1"


def _flash_backward_width(call: AttentionCall) -> Iterator[str]:
    # Small shared memory: no backward for 193 to 224, nor with dropout for 225 to 256.
    width, capability = call.query.shape[-1], call.device.capability
    small = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
    if call.needs_grad and small and width > 192 and (call.dropout_p > 0 or width <= 224):
        yield f"its backward takes no heads {width} wide on compute capability {_shown(call)}" + (
            " with dropout" if call.dropout_p > 0 else ""
        )


def _flash_causal_square(call: AttentionCall) -> Iterator[str]:
    queries, keys = call.query.shape[-2], call.key.shape[-2]
    if call.is_causal and queries != keys:
        yield f"its causal mask needs as many queries as keys, not {queries} and {keys}"


def _half_precision(call: AttentionCall) -> Iterator[str]:
    yield from _dtypes(call, HALF if call.device.capability >= FIRST else (torch.float16,))


def _efficient_precision(call: AttentionCall) -> Iterator[str]:
    half = HALF if call.device.capability >= FIRST else (torch.float16,)
    yield from _dtypes(call, (*half, torch.float32))


def _dtypes(call: AttentionCall, allowed: tuple[torch.dtype, ...]) -> Iterator[str]:
    found = {tensor.dtype for tensor in call.tensors}
    if len(found) > 1 or not found <= set(allowed):
        shown = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        yield f"query, key and value are {shown}, not all of one of " + ", ".join(
            str(dtype).removeprefix("torch.") for dtype in allowed
        )


def _same_batch(call: AttentionCall) -> Iterator[str]:
    if len({tensor.shape[0] for tensor in call.tensors}) > 1:
        yield "query, key and value differ in batch size"


def _same_heads(call: AttentionCall) -> Iterator[str]:
    heads = [tensor.shape[1] for tensor in call.tensors]
    if len(set(heads)) > 1:
        yield f"it takes no grouped heads: {heads[0]} for queries, {heads[1]} for keys, {heads[2]} for values"


def _flash_heads(call: AttentionCall) -> Iterator[str]:
    if not call.enable_gqa:
        yield from _same_heads(call)
        return
    heads, keys, values = (tensor.shape[1] for tensor in call.tensors)
    if keys != values:
        yield f"keys and values need as many heads, not {keys} and {values}"
    elif heads % keys:
        yield f"{keys} key heads do not divide {heads} query heads"


def _cudnn_heads(call: AttentionCall) -> Iterator[str]:
    if not call.enable_gqa:
        yield from _same_heads(call)
        return
    heads, keys, values = (tensor.shape[1] for tensor in call.tensors)
    if heads % keys or heads % values:
        yield f"{keys} key heads and {values} value heads do not both divide {heads} query heads"


def _nonzero_lengths(call: AttentionCall) -> Iterator[str]:
    if call.query.shape[-2] == 0 or call.key.shape[-2] == 0:
        yield "there are no queries or no keys"


def _dense_rows(call: AttentionCall) -> Iterator[str]:
    yield from _last_strides(call, ignore_single=True)


def _strictly_dense_rows(call: AttentionCall) -> Iterator[str]:
    yield from _last_strides(call, ignore_single=False)


def _last_strides(call: AttentionCall, *, ignore_single: bool) -> Iterator[str]:
    single = ignore_single and call.query.shape[-1] == 1
    if not single and any(tensor.stride(-1) != 1 for tensor in call.tensors):
        yield "the last dimension of query, key and value needs stride 1"
    elif call.mask is not None and call.mask.stride(-1) != 1:
        yield "the last dimension of the mask needs stride 1"


def _efficient_width(call: AttentionCall) -> Iterator[str]:
    # minimum_gemm_alignment: 16 bytes on tensor cores
    query, key, value = (tensor.shape[-1] for tensor in call.tensors)
    alignment = _gemm_alignment(call)
    if query != key:
        yield f"heads of query and key differ in width: {query} and {key}"
    elif query % alignment or value % alignment or 0 in (query, value):
        yield f"widths of heads must be multiples of {alignment}, not {query} and {value}"


def _gemm_alignment(call: AttentionCall) -> int:
    capability, half = call.device.capability, call.query.dtype in HALF
    tensor_cores = capability >= FIRST or (capability >= (7, 0) and half)
    plain = 4 if capability >= FIRST else 1
    return max(plain, 8 if half else 4) if tensor_cores else plain


def _cudnn_version(call: AttentionCall) -> Iterator[str]:
    if call.cudnn_version < 90000:
        yield f"it needs cuDNN 9, not {call.cudnn_version or 'none'}"
    elif call.dropout_p > 0 and 91100 < call.cudnn_version < 91400:
        yield "cuDNN 9.11 to 9.13 take no dropout"


def _cudnn_deterministic(_: AttentionCall) -> Iterator[str]:
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        yield "it is not deterministic"


def _cudnn_mask(call: AttentionCall) -> Iterator[str]:
    if call.mask is None:
        return
    full = (call.query.shape[0], call.query.shape[1], call.query.shape[2], call.key.shape[2])
    shape = tuple(call.mask.shape)
    fits = len(shape) in (2, 4) and all(s in (1, f) for s, f in zip(shape, full[-len(shape) :], strict=True))
    if call.mask.requires_grad:
        yield "it gives no gradient for the mask"
    elif not fits:
        yield f"a mask of shape {shape} is neither {full[-2:]} nor {full}, with sizes of 1 allowed"


def _cudnn_dropout(call: AttentionCall) -> Iterator[str]:
    if not (call.dropout_p * 16).is_integer():
        yield "dropout must be a multiple of 1/16"


def _cudnn_shapes(call: AttentionCall) -> Iterator[str]:
    (batch, heads, queries, width), keys, value_width = call.query.shape, call.key.shape[2], call.value.shape[3]
    limit = _cudnn_width_limit(call, (width, value_width))
    if max(batch, heads) > CUDNN_MAX_SIZE:
        yield f"batch and heads may be at most {CUDNN_MAX_SIZE}"
    if max(width, value_width) > limit:
        yield f"heads may be at most {limit} wide, not {width} and {value_width}"
    if width % 8 or value_width % 8:
        yield f"widths of heads must be multiples of 8, not {width} and {value_width}"
    if keys == 1:
        yield "it takes no single key"
    if queries == 1 and call.dropout_p > 0:
        yield "it takes no single query with dropout"


def _cudnn_width_limit(call: AttentionCall, widths: tuple[int, int]) -> int:
    if not _wide_in_cudnn(call):
        return 128
    if call.cudnn_version > CUDNN_256_ABOVE:
        return 256
    return 192 if call.cudnn_version >= 91100 and widths == (192, 128) else 128


def _cudnn_backward_width(call: AttentionCall) -> Iterator[str]:
    widths = (call.query.shape[3], call.value.shape[3])
    if not call.needs_grad or not _wide_in_cudnn(call) or call.cudnn_version <= CUDNN_256_ABOVE:
        return
    if max(widths) > 128 and widths not in ((192, 128), (256, 256)):
        yield f"its backward takes no heads {widths[0]} and {widths[1]} wide"


def _wide_in_cudnn(call: AttentionCall) -> bool:
    return call.device.capability == (9, 0) or call.device.capability[0] == 10


def _aligned_storage(call: AttentionCall) -> Iterator[str]:
    # Memory of the allocator is aligned to 512 bytes, which leaves the offset within the storage.
    alignment = _gemm_alignment(call)
    offsets = [int(tensor.storage_offset()) for tensor in call.tensors]
    if call.device.capability >= FIRST and any(offset % alignment for offset in offsets):
        yield f"query, key and value must begin at multiples of {alignment} elements"


def _shown(call: AttentionCall) -> str:
    return ".".join(str(part) for part in call.device.capability)


_RULES: dict[SdpaKernel, tuple[Rule, ...]] = {
    "flash": (
        _four_dimensions, _no_mask, _flash_width, _from_ampere_on, _flash_backward_width, _flash_causal_square,
        _half_precision, _same_batch, _flash_heads, _nonzero_lengths, _dense_rows,
    ),
    "efficient": (
        _from_maxwell_on, _four_dimensions, _efficient_width, _aligned_storage, _nonzero_lengths,
        _strictly_dense_rows, _same_batch, _same_heads, _efficient_precision,
    ),
    "cudnn": (
        _cudnn_version, _four_dimensions, _cudnn_deterministic, _half_precision, _cudnn_mask, _from_ampere_on,
        _cudnn_dropout, _nonzero_lengths, _dense_rows, _same_batch, _cudnn_heads, _cudnn_shapes,
        _cudnn_backward_width,
    ),
    "math": (),
}  # fmt: skip
