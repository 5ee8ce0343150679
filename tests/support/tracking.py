"""Follows which module is executing and which storages are alive, from outside the code that is observed."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode

#: What the CUDA allocator rounds every request up to.
ROUND = 512


def rounded(nbytes: int) -> int:
    """Bytes that the CUDA caching allocator counts as allocated for a request."""
    return -(-nbytes // ROUND) * ROUND


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts (model outputs are dicts)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of the tensor's storage, valid while that storage lives."""
    return int(tensor.untyped_storage()._cdata)


class ModulePaths:
    """Keeps the path of the module that is executing, in forward and (through the graph's nodes) in backward.

    The loss counts as a module of its own, "loss", whichever way the model computes it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.names = {id(module): short_name(name) for name, module in model.named_modules()}
        self.stack: list[str] = []
        self._handles: list[Any] = []

    def __enter__(self) -> ModulePaths:
        for module in self.model.modules():
            if isinstance(module, transformers.PreTrainedModel) and hasattr(module, "loss_function"):
                module.loss_function = self._as_module(module.loss_function)
        self._handles += [
            nn_module.register_module_forward_pre_hook(self._enter),
            # also when forward raises: non-reentrant checkpointing stops its recomputation by an exception
            nn_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    @property
    def current(self) -> str:
        """Path of the innermost module that executes, or whose nodes the backward pass executes."""
        if self.stack:
            return self.stack[-1]
        node: Any = torch._C._current_autograd_node()
        return str(node.metadata.get("module", "")) if node is not None else ""

    def _as_module(self, loss_function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._label((args, kwargs), self.current)
            self.stack.append("loss")
            out = loss_function(*args, **kwargs)
            self._label(out, self.stack.pop())
            return out

        return wrapped

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        path = self.names.get(id(module))
        if path is None:  # made within forward, as RoBERTa and T5 make their CrossEntropyLoss
            path = "loss" if isinstance(module, torch.nn.modules.loss._Loss) else type(module).__name__
            self._label(args, self.current)
        self.stack.append(path)

    def _leave(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self._label(output, self.stack.pop())

    def _label(self, output: Any, path: str) -> None:
        # Inner modules leave first: what is still unlabelled behind an output was made by the module itself.
        waiting: list[Any] = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if "module" not in node.metadata:
                node.metadata["module"] = path
                waiting += [inner for inner, _ in node.next_functions if inner is not None]


def short_name(name: str) -> str:
    """Module path without the prefix that PEFT's wrappers add."""
    return "" if name in ("base_model", "base_model.model") else name.removeprefix("base_model.model.")


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
