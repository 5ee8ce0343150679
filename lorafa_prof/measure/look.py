"""A short look at one forward and backward: which attention kernels ran, under which autocast, and what ran twice.

It belongs into a step that is neither timed nor traced: it stands between Python and every operator.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: What SDPA may run, by the names that `torch.nn.attention.SDPBackend` gives it.
_FUSED = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_fused_attention_overrideable": "overrideable",
}
#: Functions of Python that autocast makes 16-bit products of: linear layers, and GPT-2's Conv1D.
_PRODUCTS = ("linear", "addmm")


class Look:
    """Watches the operators while it is entered as a context.

    Attributes:
        attention: how often each kernel computed attention in the forward: "flash", "efficient", "cudnn",
            "overrideable", "math" (what SDPA falls back to); empty where the model's own eager code did.
        autocast: dtypes of the autocast around the forward's linear layers; None is among them where there was none.
        recomputed: whether a module's forward ran within the backward.
        operators: that ran, with overload: "aten.mm.default".
    """

    def __init__(self) -> None:
        self.attention: Counter[str] = Counter()
        self.autocast: set[torch.dtype | None] = set()
        self.recomputed = False
        self.operators: set[str] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Look:
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Kernels(self))
        handle = nn_module.register_module_forward_pre_hook(self._entered)
        self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        # Math is no operator but a function made of others: it ran where SDPA was called and no kernel followed.
        self.attention["math"] = self.attention.pop("called", 0) - self.attention.total()
        self.attention = +self.attention

    def _entered(self, _module: torch.nn.Module, _args: Any) -> None:
        self.recomputed |= _in_backward()


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class _Functions(TorchFunctionMode):
    """Sees what Python calls, above autograd and autocast: SDPA before it has chosen a kernel."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self._look = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention" and not _in_backward():
            self._look.attention["called"] += 1
        elif name in _PRODUCTS and not _in_backward():
            kind = args[0].device.type
            self._look.autocast.add(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        return func(*args, **(kwargs or {}))


class _Kernels(TorchDispatchMode):
    """Sees what runs, beneath autograd."""

    def __init__(self, look: Look) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._look = look

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._look.operators.add(str(func))
        kernel = _FUSED.get(func.overloadpacket.__name__)
        if kernel is not None and not _in_backward():
            self._look.attention[kernel] += 1
        return func(*args, **(kwargs or {}))
