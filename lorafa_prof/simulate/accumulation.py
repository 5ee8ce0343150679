"""Gradients added in place, as autograd adds them where no dispatch mode is active.

Where a tensor has several users, the engine sums their gradients in the input buffer of the node that made it. It adds
in place if it holds the only reference to the gradient that came first, so that the sum takes no memory (PyTorch 2.13,
torch/csrc/autograd/input_buffer.cpp, `can_accumulate_inplace`). The backward formulas of indexing do the same with the
zeros that they have just made (`index_backward` in torch/csrc/autograd/FunctionsManual.cpp; `gather_backward`,
`index_select_backward` in ATen/native/TensorAdvancedIndexing.cpp; `value_selecting_reduction_backward` in
ATen/native/ReduceOps.cpp).

None of them does so while a dispatch mode is active, nor on meta: `isTensorSubclassLike` answers yes to both
(ATen/TensorSubclassLikeUtils.h), and what follows is computed out of place, a storage more than in a real step. Here
the mode decides anew, by the rules of the engine.

Known limitation: two formulas of the forward add in place for the same reason, and are left out of place: attention's
math path its mask (ATen/native/transformers/attention.cpp), `linear` its bias where the input is not contiguous
(ATen/native/Linear.cpp). Each is one storage of the result's size more, for the time of the operator.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

#: What the backward formulas of indexing call under a mode on the zeros that they have made, and otherwise.
_ON_NEW_ZEROS: Mapping[Any, Any] = MappingProxyType(
    {
        aten.index_put.default: aten.index_put_.default,  # x[rows, columns], with accumulate=True
        aten.scatter_add.default: aten.scatter_add_.default,  # gather
        aten.index_add.default: aten.index_add_.default,  # index_select
        aten.scatter.src: aten.scatter_.src,  # max, sort, ... along a dimension
    }
)

#: Modules whose frames lie around every `__torch_dispatch__`, which they exempt from compilation.
_WRAPPERS = ("torch._compile", "torch._dynamo.eval_frame")


class _References(NamedTuple):
    """How often a tensor is referred to when the dispatcher hands it to a mode."""

    tensor: int
    """Owners of the TensorImpl: who holds it in C++, the dispatcher's copies, the Python object."""
    wrapper: int
    """References to that Python object. A hook that keeps a gradient adds one here and none above."""
    storage: int
    """Owners of the storage: each tensor on it, and the Python object that stands for it while it is asked."""


def _references(args: tuple[Any, ...]) -> _References:
    storage: Any = args[0].untyped_storage()
    owners = torch._C._storage_Use_Count(storage._cdata)
    return _References(args[0]._use_count(), sys.getrefcount(args[0]), owners)


def _called_by_engine(frame: FrameType | None) -> bool:
    """Whether no Python code lies between the autograd engine and the `__torch_dispatch__` that runs in `frame`."""
    caller = frame.f_back if frame else None
    while caller and caller.f_globals.get("__name__") in _WRAPPERS:
        caller = caller.f_back
    return caller is not None and caller.f_code.co_name == "_engine_run_backward"


class _Witness(TorchDispatchMode):
    """Keeps the counts of the one addition that the engine makes under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.found: _References | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.add.Tensor and _called_by_engine(sys._getframe()):
            self.found = _references(args)
        return func(*args, **(kwargs or {}))


@functools.cache
def _sole_owner() -> _References:
    """What is counted for a gradient that nobody but the engine's buffer holds.

    Observed rather than written down, for it depends on how the installed PyTorch passes arguments to a mode.
    """
    if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality):
        raise RuntimeError("references cannot be counted from within an operator: make the mode before")
    with _python_dispatch._disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(1, device="meta", requires_grad=True)
        with _Witness() as witness:
            y = x * 2
            (y.sin() * y.cos()).backward()
    found: _References | None = witness.found
    assert found is not None, "a tensor with two users gets a sum of two gradients"
    return found


class InPlaceAccumulation(TorchDispatchMode):
    """Lets autograd add gradients in place as it does where no mode is active.

    Enter it last, inside the modes that record: they see `aten.add_` where the engine adds in place. Or derive the
    recording mode from it, and let that run `self.as_autograd_would(func, args)` in the place of `func`.

    Only calls that come straight from the engine count: a backward function written in Python, hooks, and recomputation
    under checkpointing have Python code between them and the engine. A formula in C++ has none; were one to add to a
    temporary of its own and need that again, this would be mistaken for the engine's sum. None of those that a
    transformer's training step runs does.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._sole_owner = _sole_owner()

    def as_autograd_would(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return the overload that autograd, had there been no mode, would have called: the one in place, or `func`.

        References are counted: to be called by `__torch_dispatch__` itself, with `args` as they came in, none of them
        bound to another name.
        """
        if func is not aten.add.Tensor and func not in _ON_NEW_ZEROS:
            return func
        if torch.is_grad_enabled() or not _called_by_engine(sys._getframe(1)):
            return func
        if not all(_is_plain(value) for value in args if isinstance(value, torch.Tensor)):
            return func
        references = _references(args)
        if func is aten.add.Tensor:
            return aten.add_.Tensor if references == self._sole_owner and _is_dense(args[0]) else func
        if func is aten.index_put.default and args[3:] != (True,):  # the backward of index_put, which copies
            return func
        return _ON_NEW_ZEROS[func] if references.storage == self._sole_owner.storage else func

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.as_autograd_would(func, args)(*args, **(kwargs or {}))


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_nested


def _is_dense(tensor: torch.Tensor) -> bool:
    return not tensor._is_zerotensor() and bool(aten.is_non_overlapping_and_dense(tensor))
