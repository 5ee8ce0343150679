"""What the processes of a group keep in memory to talk to each other, by name: DDP's buckets, FSDP2's gathered weights.

FSDP2's buffers come and go within the step. They are seen, with their addresses, at the moments in which FSDP2 has made
them; a block that lies at the address at that moment is the buffer.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.profiler import record_function

from lorafa_prof.ledger import Category
from lorafa_prof.measure.names import Name, Names, address_of
from lorafa_prof.measure.trace import BaseBlock, Tell
from lorafa_prof.workload.communication import Buffers, watching_fsdp


@dataclass(frozen=True)
class Sighting:
    """What was at these addresses when a mark was set."""

    mark: int
    """Which mark of the trace."""
    names: Names


class Lookout:
    """Passes on what a step tells, and notes what is seen meanwhile.

    Args:
        tell: the tracer's.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._marks = 0
        self._last = ("forward", "")
        self.sightings: list[Sighting] = []

    def tell(self, phase: str, module: str) -> None:
        """Say which module is at work from now on."""
        self._last = (phase, module)
        self._marks += 1
        self._tell(phase, module)

    def see(self, names: Names) -> None:
        """Note what lies at addresses now."""
        if names:
            self.sightings.append(Sighting(self._marks, names))
            self.tell(*self._last)


@contextlib.contextmanager
def watching(work_is_sharded: bool, lookout: Lookout) -> Iterator[None]:
    """While entered, FSDP2's buffers are seen."""
    with watching_fsdp(lambda buffers: lookout.see(_names(buffers))) if work_is_sharded else contextlib.nullcontext():
        yield


def _names(buffers: Buffers) -> Names:
    return {address_of(b.tensor): Name.of(f"{b.path}.{b.what}", b.tensor, b.category) for b in buffers}


def buckets_of(wrapper: Any) -> list[Name]:
    """Return the buckets in which DDP reduces gradients; torch does not tell where they are."""
    if not isinstance(wrapper, torch.nn.parallel.DistributedDataParallel):
        return []
    tensors = [bucket.buffer() for bucket in wrapper.reducer._get_zeros_like_grad_buckets()]
    return [Name.of(".DDP bucket", tensor, Category.WORKSPACES) for tensor in tensors]


def without_address(buckets: Iterable[Name]) -> Names:
    """Return the buckets at addresses that nothing has, for a device that cannot tell what was there before a step."""
    return {-1 - number: name for number, name in enumerate(buckets)}


def found_by_size(buckets: Iterable[Name], names: Names, base: Mapping[int, BaseBlock]) -> Names:
    """Return the buckets, each at the address of a block of its size that has no name."""
    free = {address: block.requested for address, block in base.items() if address not in names}
    found: Names = {}
    for bucket in buckets:
        address = next((a for a, nbytes in free.items() if nbytes == bucket.nbytes and a not in found), None)
        if address is not None:
            found[address] = bucket
    return found


#: Collectives that DDP and FSDP2 call, by the names that they have had.
_COLLECTIVES = ("all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single")
_BROADCAST = "_broadcast_coalesced"
#: Seconds within which gloo's thread has let go of what it worked on.
_LET_GO_S = 1.0
_PAUSE_S = 0.002


@contextlib.contextmanager
def settling_collectives() -> Iterator[None]:
    """While entered, a collective on the CPU returns when gloo's thread has let go of the tensors.

    That thread holds them a moment longer than the call lasts. What it is the last to hold would be freed at a moment
    that differs from run to run, and that the profiler is not told of. DDP's broadcast of buffers hands it a copy that
    nobody else holds: it counts as gloo's own.
    """
    with contextlib.ExitStack() as patches:
        broadcast = getattr(torch.distributed, _BROADCAST)
        patches.enter_context(
            mock.patch.object(torch.distributed, _BROADCAST, record_function(f"gloo:{_BROADCAST}")(broadcast))
        )
        for name in _COLLECTIVES:
            if hasattr(torch.distributed, name):
                settled = _settled(getattr(torch.distributed, name))
                patches.enter_context(mock.patch.object(torch.distributed, name, settled))
        yield


def _settled(collective: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(collective)
    def settled(*args: Any, **kwargs: Any) -> Any:
        storages = [t.untyped_storage() for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        before = [_holders(storage) for storage in storages]
        result = collective(*args, **kwargs)
        deadline = time.monotonic() + _LET_GO_S
        time.sleep(_PAUSE_S)
        while [_holders(storage) for storage in storages] > before and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        return result

    return settled


def _holders(storage: Any) -> int:
    return int(torch._C._storage_Use_Count(storage._cdata))
