"""What has to hold around a step for its bytes to repeat: on every machine, and in every run."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Take PyTorch's own kernels on the CPU: the scratch memory of oneDNN differs from processor to processor.

    Not by `torch.backends.mkldnn.flags`, which sets the precision of products too and warns of what processors lack.
    """
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect now, then not again: when Python frees reference cycles depends on how much of it has run before."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
