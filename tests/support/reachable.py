"""Which storages are held by something, found by following every reference, without knowing what has what.

    storage_bytes(work)    of model, adapters, quantisation, batch and optimizer, whatever their attributes are called

It shares nothing with the code that names tensors, so that a tensor which that code does not know is counted too.
"""

from __future__ import annotations

import gc
import types
from typing import Any

import torch

#: What leads out of the object into the program, or names things without holding them for it.
_ELSEWHERE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)


def storage_bytes(*roots: Any) -> int:
    """Bytes of the storages of all tensors that can be reached from some objects, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, _ELSEWHERE):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        waiting += gc.get_referents(thing)
    return sum(storages.values())
