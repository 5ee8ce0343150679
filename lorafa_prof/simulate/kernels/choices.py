"""What a recorded step has asked its card for: which attention kernel it runs, call by call.

The order of operators, and so everything in a recording, depends on the card by these answers alone; what kernels
allocate inside is put in when a recording becomes a trace. A card that gives the same answers has the same recording.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorafa_prof.simulate.kernels.attention_choice import AttentionCall, SdpaKernel, choose_sdpa_kernel
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits


class Choices:
    """Chooses attention kernels for one card, and remembers what it was asked."""

    def __init__(self) -> None:
        self._made: dict[_Question, SdpaKernel] = {}

    def choose(self, call: AttentionCall) -> SdpaKernel:
        """Return the kernel that runs."""
        kernel = choose_sdpa_kernel(call)
        self._made[_Question.of(call)] = kernel
        return kernel

    def are_those_of(self, device: DeviceTraits) -> bool:
        """Return whether another card answers every question alike."""
        return all(choose_sdpa_kernel(asked.on(device)) == kernel for asked, kernel in self._made.items())


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the choice reads of a tensor, without its storage: a recording watches when storages die."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Layout:
        return cls(
            shape=tuple(tensor.shape), stride=tuple(tensor.stride()), offset=int(tensor.storage_offset()),
            dtype=tensor.dtype, requires_grad=tensor.requires_grad,
        )  # fmt: skip

    def tensor(self) -> torch.Tensor:
        size = self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        whole = torch.empty(max(0, size), dtype=self.dtype, device="meta")
        return whole.as_strided(self.shape, self.stride, self.offset).requires_grad_(self.requires_grad)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """An `AttentionCall` without its device, and without tensors."""

    query: _Layout
    key: _Layout
    value: _Layout
    mask: _Layout | None
    dropout_p: float
    is_causal: bool
    enable_gqa: bool
    needs_grad: bool
    cudnn_version: int

    @classmethod
    def of(cls, call: AttentionCall) -> _Question:
        query, key, value = map(_Layout.of, call.tensors)
        return cls(
            query=query, key=key, value=value, mask=None if call.mask is None else _Layout.of(call.mask),
            dropout_p=call.dropout_p, is_causal=call.is_causal, enable_gqa=call.enable_gqa,
            needs_grad=call.needs_grad, cudnn_version=call.cudnn_version,
        )  # fmt: skip

    def on(self, device: DeviceTraits) -> AttentionCall:
        """Return the call as another card would be asked it."""
        return AttentionCall(
            query=self.query.tensor(), key=self.key.tensor(), value=self.value.tensor(),
            mask=None if self.mask is None else self.mask.tensor(), dropout_p=self.dropout_p,
            is_causal=self.is_causal, enable_gqa=self.enable_gqa, device=device, needs_grad=self.needs_grad,
            cudnn_version=self.cudnn_version,
        )  # fmt: skip
