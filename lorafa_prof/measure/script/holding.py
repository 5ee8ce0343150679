"""Tensors that a script's own variables hold: the batch, the loss and the outputs of the step before, data sets."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch

from lorafa_prof.ledger import Category
from lorafa_prof.measure.names import Name, Names, address_of, shard_of


def held_tensors(device_type: str) -> Iterator[torch.Tensor]:
    """Yield every tensor with storage on a device that a Python object holds.

    What only a graph in C++ holds is not among them.
    """
    for thing in gc.get_objects():
        # not isinstance, which asks proxies what they stand for
        if issubclass(type(thing), torch.Tensor) and _has_storage(thing, device_type):
            yield thing


def _has_storage(tensor: torch.Tensor, device_type: str) -> bool:
    with contextlib.suppress(Exception), torch._C.DisableTorchFunctionSubclass():
        here = shard_of(tensor)
        return here.device.type == device_type and here.untyped_storage().nbytes() > 0
    return False


def names_of_held(device_type: str, logits_sizes: frozenset[int]) -> Names:
    """Name all of them by what they look like; whoever knows better overwrites it."""
    names: Names = {}
    for tensor in held_tensors(device_type):
        with torch._C.DisableTorchFunctionSubclass():
            here = shard_of(tensor)
            nbytes = here.untyped_storage().nbytes()
            category = Category.LOGITS if nbytes in logits_sizes else Category.TEMPORARIES
            dtype = str(here.dtype).removeprefix("torch.")
            name = Name(category, "", "held by the script", tuple(here.shape), dtype, nbytes)
            names.setdefault(address_of(tensor), name)
    return names
