"""The CPU as a platform: the same recording, held to what everybody can run and profile.

Nobody fine-tunes large models on it. It is here because a real step on the CPU can be run anywhere under PyTorch's
profiler, whose reports of the allocator know nothing of this project: the simulated CPU has to show the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from lorafa_prof.simulate.calls import CallSpec
from lorafa_prof.simulate.kernels.autocast import CpuAutocast, autocast_on_meta, current
from lorafa_prof.simulate.kernels.cpu_workspaces import cpu_workspaces, registered_operators
from lorafa_prof.simulate.kernels.cuda import fused_optimizers_on_meta
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits, Workspace

aten = torch.ops.aten

_SDPA = F.scaled_dot_product_attention


def scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """What `F.scaled_dot_product_attention` runs on the CPU: its flash kernel, which knows no dropout."""
    autocast = current()
    if autocast is not None:
        query, key, value = map(autocast.to_16_bit, (query, key, value))
    learnt = attn_mask is not None and attn_mask.requires_grad  # as T5's position bias is
    shared = not enable_gqa and query.shape[:-2] != key.shape[:-2]  # heads that broadcast, as Falcon's
    if learnt or shared or dropout_p or query.dim() != 4 or query.shape[-1] != value.shape[-1]:
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        return _SDPA(query, key, value, attn_mask, dropout_p, is_causal, **options)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zero = torch.full((), 0.0, dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, zero, float("-inf"))
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    out: torch.Tensor = flash(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


class NoLibraries:
    """The CPU's libraries keep nothing in PyTorch's allocator."""

    def at(self, call: CallSpec, phase: str) -> Sequence[Workspace]:
        """See `Libraries.at`."""
        del call, phase
        return ()


class Cpu:
    """The CPU, simulated on meta.

    Args:
        threads: what `torch.get_num_threads()` is meant to say.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._watched: dict[Any, bool] = {}

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """See `Platform.kernels`."""
        attention = mock.patch.object(F, "scaled_dot_product_attention", scaled_dot_product_attention)
        with attention, autocast_on_meta(CpuAutocast), fused_optimizers_on_meta():
            yield

    def holds(self, tensor: torch.Tensor) -> bool:
        """What is on the host is on this device."""
        return tensor.is_meta or tensor.device.type == "cpu"

    def watches(self, func: Any) -> bool:
        """See `Platform.watches`."""
        known = self._watched.get(func)
        if known is None:
            known = self._watched[func] = str(func) in registered_operators()
        return known

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator.

        The CPU keeps layer norm's statistics in the dtype of the weights, CUDA and meta in fp32; LAPACK writes singular
        vectors by columns, cuSOLVER and meta those on the right by rows.
        """
        out = func(*args, **kwargs)
        if func is aten._linalg_svd.default:
            u, s, vh = out
            return u, s, vh.as_strided(vh.shape, (1, vh.shape[0]))
        if func is not aten.native_layer_norm.default:
            return out
        result, mean, rstd = out
        dtype = args[0].dtype if args[2] is None else args[2].dtype
        return result, mean.to(dtype), rstd.to(dtype)

    def workspaces(self, call: CallSpec) -> Sequence[Workspace]:
        """See `Platform.workspaces`."""
        name = str(call.func)
        found = cpu_workspaces(call.kernel_call(name, DeviceTraits(None, None)), self.threads)
        if name.endswith(
            ".Tensor"
        ):  # Python makes a tensor of a number before it calls: host memory, whatever the device
            return [workspace for workspace in found if workspace.name != "number"]
        return found

    def new_process(self) -> NoLibraries:
        """See `Platform.new_process`."""
        return NoLibraries()
