"""Calls that are alike: what an operator returns on meta follows from what it is given, and layers repeat each other.

PyTorch works out the shapes of many results in Python, at some tenths of a millisecond each. Of an operator that
neither writes to what it is given nor returns a view of it, the result of a second call with the same shapes, strides,
dtypes and numbers is made as the first one was, without that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from lorafa_prof.simulate.calls import TensorSpec
from lorafa_prof.workload.naming import tensors_in

_PLAIN = (torch.Tensor, torch.nn.Parameter)


_Run = Callable[[Any, Any, Any], Any]


def plainly(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator as it is."""
    return func(*args, **kwargs)


class _NotAlikeError(Exception):
    """What is given, or returned, is more than its description."""


class AlikeCalls:
    """Runs operators on meta, those that are alike once."""

    def __init__(self) -> None:
        self._made: dict[Any, Callable[[], Any] | None] = {}

    def run(self, run: _Run, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what the operator `func` returns; `run` runs it where that is not known."""
        if not _is_function(func):
            return run(func, args, kwargs)
        try:
            key = (func, _described(args), tuple((name, _described(value)) for name, value in kwargs.items()))
            made = self._made.get(key, _UNSEEN)
        except (_NotAlikeError, TypeError):  # TypeError: an argument that cannot be a key
            return run(func, args, kwargs)
        if made is _UNSEEN:
            out = run(func, args, kwargs)
            self._made[key] = _maker(out, (args, kwargs))
            return out
        return run(func, args, kwargs) if made is None else made()


def _unseen() -> Any:
    raise AssertionError("it stands for no result")


_UNSEEN: Callable[[], Any] = _unseen


@cache
def _is_function(func: Any) -> bool:
    """Return whether an operator's schema says that it writes nothing and returns no views."""
    schema = func._schema
    return func.namespace == "aten" and not any(each.alias_info for each in (*schema.arguments, *schema.returns))


def _described(value: Any) -> Any:
    """Return an argument as a key. Numbers come with their type: 1, 1.0 and True are equal, and no operator's same.

    Raises:
        _NotAlikeError: a tensor that is not on meta, or of a class of its own.
    """
    if isinstance(value, torch.Tensor):
        if type(value) not in _PLAIN or not value.is_meta or value.layout is not torch.strided:
            raise _NotAlikeError
        return TensorSpec(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    return (type(value), value)


def _maker(out: Any, given: Any) -> Callable[[], Any] | None:
    """Return what makes such a result anew; None where its storages are not as its description says."""
    storages = {tensor.untyped_storage()._cdata for tensor in tensors_in(given)}
    for tensor in tensors_in(out):
        storage = tensor.untyped_storage()
        spec = TensorSpec(tuple(tensor.shape), tensor.stride(), tensor.dtype)
        again = spec.tensor()
        if (
            type(tensor) is not torch.Tensor or not tensor.is_meta or tensor.is_conj() or tensor.is_neg()
            or tensor.storage_offset() or storage._cdata in storages
            or storage.nbytes() != again.untyped_storage().nbytes()
        ):  # fmt: skip
            return None
        storages.add(storage._cdata)
    return _making(out)


def _making(out: Any) -> Callable[[], Any] | None:
    if isinstance(out, torch.Tensor):
        return TensorSpec(tuple(out.shape), out.stride(), out.dtype).tensor
    if type(out) not in (list, tuple):
        return None if isinstance(out, (list, tuple)) else lambda: out
    kind, parts = type(out), [_making(each) for each in out]
    made = [part for part in parts if part is not None]
    return None if len(made) < len(parts) else lambda: kind(part() for part in made)
