"""Tensors that a script's own variables hold: the batch, the loss and the outputs of the step before, data sets."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lorafa_prof.ledger import Category
from lorafa_prof.measure.names import Name, Names, address_of
from lorafa_prof.workload.naming import shard_of


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
        storage = here.untyped_storage()
        # the address is refused by what only pretends to be there, as compilers keep it
        return here.device.type == device_type and storage.nbytes() > 0 and storage.data_ptr() != 0
    return False


class Departures:
    """Notes which tensors that a script held are gone, where the device's record does not hear of their end.

    Such are batches that worker processes have made, and what is older than the record.

    Args:
        device_type: tensors of which device.
    """

    def __init__(self, device_type: str) -> None:
        held = {address_of(tensor): shard_of(tensor).untyped_storage() for tensor in held_tensors(device_type)}
        self._held = {address: StorageWeakRef(storage) for address, storage in held.items()}
        #: For a mark of the trace, the addresses at which nothing was any more when it was set.
        self.seen: dict[int, list[int]] = {}

    def look(self, mark: int) -> None:
        """Note what is gone when a mark is set."""
        gone = [address for address, storage in self._held.items() if storage.expired()]
        for address in gone:
            del self._held[address]
        if gone:
            self.seen[mark] = gone


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
