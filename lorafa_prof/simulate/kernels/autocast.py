"""bf16 autocast for meta tensors, which `torch.autocast` refuses.

The lists are those of ATen/autocast_mode.h, as far as the models here use them: CUDA's, and the CPU's, which leaves
softmax, layer norm and pow as they are.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Set
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import checkpoint

TO_16_BIT = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "addmm", "mm", "mv", "addbmm", "einsum",
    "conv1d", "conv2d", "prelu",
}  # fmt: skip
TO_FP32 = {
    "pow", "__pow__", "__rpow__", "rsqrt", "exp", "expm1", "log", "log1p", "log2", "log10", "reciprocal", "acos",
    "asin", "cosh", "sinh", "tan", "softplus", "layer_norm", "group_norm", "norm", "logsumexp", "nll_loss",
    "mse_loss", "l1_loss", "kl_div", "binary_cross_entropy_with_logits", "cosine_similarity", "dist",
}  # fmt: skip
#: The result is fp32 unless the caller names another dtype; the argument stays as it is.
RESULT_IN_FP32 = {"softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod"}


class CudaAutocast(TorchFunctionMode):
    """Casts the arguments of functions as autocast does, once a weight: casts of trained fp32 weights are kept."""

    device_type: ClassVar[str] = "cuda"
    to_16_bit_names: ClassVar[Set[str]] = TO_16_BIT
    to_fp32_names: ClassVar[Set[str]] = TO_FP32
    result_in_fp32_names: ClassVar[Set[str]] = RESULT_IN_FP32

    def __init__(self) -> None:
        super().__init__()
        self.suspended = False
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __enter__(self) -> CudaAutocast:
        self._before = _TORCH_ENABLED(self.device_type)
        torch.set_autocast_enabled(self.device_type, True)  # PEFT asks for CUDA's
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's
        torch.set_autocast_enabled(self.device_type, self._before)
        self._casts.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.suspended or kwargs.get("out") is not None:  # autocast knows no variant that is told where to write
            return func(*args, **kwargs)
        if func is F.cross_entropy:
            return self._cross_entropy(*args, **kwargs)
        if name in self.to_16_bit_names:
            args, kwargs = self._cast((args, kwargs), torch.bfloat16)
        elif name in self.to_fp32_names:
            args, kwargs = self._cast((args, kwargs), torch.float32)
        elif name in self.result_in_fp32_names and args[0].is_floating_point() and not _has_dtype(args, kwargs):
            kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)

    def to_16_bit(self, tensor: torch.Tensor) -> torch.Tensor:
        """Cast as an argument of a matrix product would be."""
        return self._cast_tensor(tensor, torch.bfloat16)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return self._cast_tensor(value, dtype)
        if isinstance(value, dict):
            return {key: self._cast(item, dtype) for key, item in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._cast(item, dtype) for item in value)
        return value

    def _cast_tensor(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if not tensor.is_meta or not tensor.is_floating_point() or tensor.dtype in (dtype, torch.float64):
            return tensor
        weight = tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32 and not tensor._is_view()
        if dtype == torch.float32 or not weight:  # frozen weights are cast anew at every use
            return tensor.to(dtype)
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = (tensor, tensor.to(dtype))
        return self._casts[id(tensor)][1]

    def _cross_entropy(self, input: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        # ATen names the dtype of its log-softmax, so autocast leaves that one alone and casts what nll_loss gets.
        logs = F.log_softmax(input, dim=1, dtype=input.dtype)
        return F.nll_loss(logs.float(), target, **{k: v for k, v in options.items() if k != "label_smoothing"})


class CpuAutocast(CudaAutocast):
    """The CPU's lists: little besides products is cast."""

    device_type: ClassVar[str] = "cpu"
    to_16_bit_names: ClassVar[Set[str]] = TO_16_BIT - {"mv", "einsum"} | {"scaled_dot_product_attention"}
    to_fp32_names: ClassVar[Set[str]] = {"nll_loss", "mse_loss", "l1_loss", "kl_div", "prod"}
    result_in_fp32_names: ClassVar[Set[str]] = frozenset()

    def _cross_entropy(self, input: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        with _suspended():  # it is on the list as a whole, and autocast is off inside
            return F.cross_entropy(self._cast_tensor(input, torch.float32), target, **options)


def _has_dtype(args: Any, kwargs: Any) -> bool:
    return kwargs.get("dtype") is not None or any(isinstance(arg, torch.dtype) for arg in args)


def current() -> CudaAutocast | None:
    """The innermost autocast that is active, if any."""
    modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, CudaAutocast)]
    return modes[-1] if modes and not modes[-1].suspended else None


@contextlib.contextmanager
def _suspended() -> Iterator[None]:
    mode = current()
    if mode is not None:
        mode.suspended = True
    try:
        yield
    finally:
        if mode is not None:
            mode.suspended = False


def autocast_for_meta(
    kind: type[CudaAutocast], device_type: str, *args: Any, **options: Any
) -> contextlib.AbstractContextManager[Any]:
    """In place of `torch.autocast`, so that code may switch it off around tensors that are on meta."""
    if device_type != "meta":
        return _TORCH_AUTOCAST(device_type, *args, **options)
    return kind() if options.get("enabled", True) else _suspended()


def autocast_options(device_type: str = "cuda") -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """In place of `torch.utils.checkpoint._get_autocast_kwargs`: what a recomputation enters again.

    On meta, that is the autocast that is active there; the original asks torch, which knows none on meta.
    """
    if device_type != "meta":
        return _TORCH_OPTIONS(device_type)
    on_cpu = {"enabled": False, "dtype": torch.bfloat16, "cache_enabled": True}
    return {"enabled": current() is not None}, on_cpu


def autocast_is_available(device_type: str) -> bool:
    """In place of `torch.amp.is_autocast_available`."""
    return device_type == "meta" or _TORCH_AVAILABLE(device_type)


def autocast_is_enabled(*device_type: str) -> bool:
    """In place of `torch.is_autocast_enabled`."""
    return current() is not None if device_type == ("meta",) else _TORCH_ENABLED(*device_type)


def autocast_dtype(device_type: str) -> torch.dtype:
    """In place of `torch.get_autocast_dtype`."""
    return torch.bfloat16 if device_type == "meta" else _TORCH_DTYPE(device_type)


@contextlib.contextmanager
def autocast_on_meta(kind: type[CudaAutocast] = CudaAutocast) -> Iterator[None]:
    """Let autocast be entered, left and asked for with meta tensors, as libraries do for their device.

    Args:
        kind: the lists of which device.
    """
    with contextlib.ExitStack() as stack:
        for name in ("torch.autocast", "torch.amp.autocast"):
            stack.enter_context(mock.patch(name, functools.partial(autocast_for_meta, kind)))
        for name, replacement in _REPLACED.items():
            stack.enter_context(mock.patch(name, replacement))
        # PEFT's LoRA-FA optimizer runs one product under the bf16 autocast of the device that it finds; older ones have
        # no such optimizer
        if importlib.util.find_spec("peft.optimizers.lorafa") is not None:
            stack.enter_context(mock.patch("peft.optimizers.lorafa.autocast", functools.partial(_in_optimizer, kind)))
        yield


_REPLACED: dict[str, Any] = {
    "torch.amp.is_autocast_available": autocast_is_available,
    "torch.is_autocast_enabled": autocast_is_enabled,
    "torch.get_autocast_dtype": autocast_dtype,
    "torch.utils.checkpoint._get_autocast_kwargs": autocast_options,
}


def _in_optimizer(kind: type[CudaAutocast], **_: Any) -> CudaAutocast:
    return kind()


_TORCH_AUTOCAST = torch.autocast
_TORCH_OPTIONS: Callable[..., tuple[dict[str, Any] | None, dict[str, Any]]] = checkpoint._get_autocast_kwargs
_TORCH_AVAILABLE = torch.amp.is_autocast_available
_TORCH_ENABLED: Callable[..., bool] = torch.is_autocast_enabled
_TORCH_DTYPE = torch.get_autocast_dtype
