"""Follows which storages are alive, from outside the code that is observed."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafa_prof.workload.modules import ModulePaths
from lorafa_prof.workload.naming import tensors_in

#: What the CUDA allocator rounds every request up to.
ROUND = 512


def rounded(nbytes: int) -> int:
    """Bytes that the CUDA caching allocator counts as allocated for a request."""
    return -(-nbytes // ROUND) * ROUND


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of the tensor's storage, valid while that storage lives."""
    return int(tensor.untyped_storage()._cdata)


@dataclass(eq=False)
class Block:
    """One storage: what made it and how long it lived, in events of the tracker."""

    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    op: str
    module: str
    phase: str
    born: int
    died: int | None = None
    on_cpu: bool = False

    @property
    def label(self) -> str:
        """Short description for lists."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.nbytes:>14,} {kind:>8} {'x'.join(map(str, self.shape)):<20} {self.op} @ {self.module}"


@dataclass(frozen=True)
class Event:
    """One storage born (positive bytes) or freed (negative), and what was executing then."""

    delta: int
    live: int
    """Bytes alive after this event, each storage rounded up."""
    block: Block
    op: str
    module: str
    phase: str


class StorageTracker(TorchDispatchMode):
    """Records the birth and death of every storage that an operator makes.

    What exists before has to be named by `adopt`; buffers inside an operator's kernel are not visible.
    """

    def __init__(self, paths: ModulePaths, *, round_up: bool = True, ignore_cpu: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.paths = paths
        self.round_up = round_up
        #: On meta, what lives on the CPU (AdamW's step counters) lives there on CUDA too.
        self.ignore_cpu = ignore_cpu
        self.phase = "before"
        self.op = ""
        self.live_bytes = 0
        self.events: list[Event] = []
        self.blocks: list[Block] = []
        self._alive: dict[int, tuple[Block, weakref.ref[Any]]] = {}

    def adopt(self, tensors: Iterable[torch.Tensor], label: str) -> int:
        """Count storages that exist already; returns their bytes."""
        before = self.live_bytes
        for tensor in tensors:
            self._see(tensor, label)
        return self.live_bytes - before

    def alive(self) -> list[Block]:
        """The storages that are alive now, in the order of their birth."""
        return sorted((block for block, _ in self._alive.values()), key=lambda block: block.born)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.op = str(func).removesuffix(".default").removeprefix("aten.")
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._see(tensor, self.op)
        return out

    def _see(self, tensor: torch.Tensor, op: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        if tensor.device.type == "cpu" and self.ignore_cpu:
            return
        size = rounded(storage.nbytes()) if self.round_up else storage.nbytes()
        block = Block(size, tuple(tensor.shape), tensor.dtype, op, self.paths.current, self.phase, len(self.events))
        self.blocks.append(block)
        self._alive[key] = (block, weakref.ref(storage, lambda _: self._die(key, block)))
        self._log(size, block)

    def _die(self, key: int, block: Block) -> None:
        if self._alive.get(key, (None,))[0] is not block:
            return
        del self._alive[key]
        block.died = len(self.events)
        self._log(-block.nbytes, block)

    def _log(self, delta: int, block: Block) -> None:
        self.live_bytes += delta
        self.events.append(Event(delta, self.live_bytes, block, self.op, self.paths.current, self.phase))


def grouped(blocks: Iterable[Block]) -> list[tuple[int, int, Block]]:
    """Blocks alike but for the layer number, as (count, bytes together, one of them), largest first."""
    count: Counter[tuple[Any, ...]] = Counter()
    example: dict[tuple[Any, ...], Block] = {}
    for block in blocks:
        parts = ".".join("*" if part.isdigit() else part for part in block.module.split("."))
        key = (block.nbytes, block.shape, block.dtype, block.op, parts, block.phase)
        count[key] += 1
        example.setdefault(key, dataclasses.replace(block, module=parts))
    rows = [(n, n * example[key].nbytes, example[key]) for key, n in count.items()]
    return sorted(rows, key=lambda row: -row[1])
