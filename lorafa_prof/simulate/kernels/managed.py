"""CUDA's managed memory on meta: where bitsandbytes' paged optimizers keep their large states.

`get_paged` of bitsandbytes 0.50 (functional.py) asks the driver (cudaMallocManaged) and wraps the pointer into a tensor
that PyTorch takes for one on the host. The caching allocator never hears of it. Its pages are prefetched to the card in
each step, and may be moved to the host when the card is full.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from lorafa_prof.specs import PAGED, RunSpec


def get_paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    """Return a tensor of the shape on the host, as bitsandbytes marks it; one element stands for all."""
    del device
    paged: Any = torch.empty(1, dtype=dtype, device="cpu").expand(shape)
    paged.is_paged = True
    tensor: torch.Tensor = paged
    return tensor


def _nothing(*_: Any, **__: Any) -> None:
    """Filling and prefetching allocate nothing."""


@contextlib.contextmanager
def managed_memory(run: RunSpec) -> Iterator[None]:
    """Let bitsandbytes take managed memory where there is no CUDA, while entered, for a run that wants it."""
    if run.resolved_optimizer not in PAGED or importlib.util.find_spec("bitsandbytes") is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        for name, replacement in {"get_paged": get_paged, "fill": _nothing, "prefetch_tensor": _nothing}.items():
            stack.enter_context(mock.patch(f"bitsandbytes.functional.{name}", replacement))
        yield
