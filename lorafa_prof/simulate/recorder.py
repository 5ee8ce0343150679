"""Follows every storage of a step from birth to death.

A TorchDispatchMode sees each operator beneath autograd, as the kernels would: what an operator returns in a storage
that was not there before has been allocated by it. A weak reference on the storage tells when the last tensor, saved
tensor or gradient lets go of it. Nothing of PyTorch's bookkeeping is imitated: Python and autograd hold and free
tensors on meta as they do on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch

from lorafa_prof.ledger import Category
from lorafa_prof.simulate.accumulation import InPlaceAccumulation
from lorafa_prof.simulate.alike import AlikeCalls, plainly
from lorafa_prof.simulate.calls import CallSpec
from lorafa_prof.simulate.kernels.work import counts, is_device_work, is_view
from lorafa_prof.simulate.kernels.work.registry import dtype_name
from lorafa_prof.simulate.platforms import Platform, answered
from lorafa_prof.simulate.questions import (
    KnownValues,
    NotKnownError,
    copies_to_host,
    on_meta,
    refuse_positions_beyond,
    traits,
)
from lorafa_prof.simulate.ranks import COLLECTIVES, Device
from lorafa_prof.simulate.recording import RECOMPUTE, Call, Segment
from lorafa_prof.simulate.refusals import Failure, value_wanted
from lorafa_prof.simulate.trace import Block
from lorafa_prof.workload.lora_ga import BACKWARDS
from lorafa_prof.workload.modules import ModulePaths
from lorafa_prof.workload.naming import tensors_in


class _Life(weakref.ref[Any]):
    """A weak reference to a storage that knows which block it is."""

    __slots__ = ("block", "key")
    block: int
    key: int


class RawBlock:
    """A block as the recorder notes it; its category is settled when the step is over."""

    __slots__ = ("category", "dtype", "module", "name", "nbytes", "op", "owner", "phase", "shape", "stream")

    def __init__(
        self, what: tuple[int, tuple[int, ...], str, str], where: tuple[str, str], category: Category | None,
        stream: int,
    ) -> None:  # fmt: skip
        self.nbytes, self.shape, self.dtype, self.op = what
        self.module, self.phase = where
        self.category = category
        self.stream = stream
        self.name = self.owner = ""

    def block(self) -> Block:
        """Return it as it is kept; what has no category is a temporary."""
        category = self.category or Category.TEMPORARIES
        return Block(
            self.nbytes, self.shape, self.dtype, self.op, self.module, self.phase, category, self.name, self.owner,
            self.stream,
        )  # fmt: skip


class Recorder(InPlaceAccumulation):
    """Records births and deaths of storages, phase by phase, while it is entered as a context.

    Args:
        paths: tells which module is executing.
        platform: the device that is simulated: which tensors are on it, and what its kernels do inside.
        padded: whether the batch has a mask that is not all set.
        known: which values are known although there are no data; None for a model of the catalog, whose questions are
            known instead.
        failure: told where the step is when an operator fails.
        device: tells on which stream storages are allocated.
        notes_all: whether the calls of all operators are noted, not only of those that compute.
    """

    def __init__(
        self,
        paths: ModulePaths,
        platform: Platform,
        *,
        padded: bool = False,
        known: KnownValues | None = None,
        failure: Failure | None = None,
        device: Device | None = None,
        notes_all: bool = False,
    ) -> None:
        super().__init__()
        self.device = Device() if device is None else device
        self.padded = padded
        self.known = known
        self.failure = failure
        self.notes_all = notes_all
        self.paths = paths
        self.platform = platform
        self.phase = "load"
        self.segments = [Segment("load")]
        self.operators: list[Any] = []
        """Every operator that ran, in order."""
        self.specs: dict[CallSpec, int] = {}
        """Calls of kernels that may allocate inside, or whose work is noted, numbered; alike ones are one."""
        self.collectives: list[tuple[int, str, int]] = []
        """(number of the segment, kind, bytes of all that it is about) of what ranks have told each other."""
        self._events = self.segments[0].events
        self._calls = self.segments[0].calls
        self._raw: list[RawBlock] = []
        self._lives: dict[int, _Life] = {}
        self._emptied: dict[int, _Life] = {}
        """Storages that were made empty, and may be filled again."""
        self._unsettled_recompute = False
        self.makes_on_host: frozenset[Any] = frozenset()
        """Operators whose new storages are on the host now, though on meta here."""
        self._on_host: dict[int, _Life] = {}
        self._alike = AlikeCalls()

    # -- what is recorded -----------------------------------------------------------------------------------------

    def enter_phase(self, phase: str) -> None:
        """Begin a new segment of events."""
        self.phase = phase
        self.segments.append(Segment(phase))
        self._events, self._calls = self.segments[-1].events, self.segments[-1].calls

    def adopt(self, named: Iterable[tuple[str, torch.Tensor]], category: Category) -> None:
        """Count storages that exist already, each once, in the order given; a name is module.tensor."""
        for name, tensor in named:
            if self._fresh(tensor):
                module, _, leaf = name.rpartition(".")
                self._events.append(self._see(tensor, leaf, (module, self.phase), category))

    def settle(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Give the category of storages that are alive now."""
        for tensor in tensors:
            life = self._lives.get(tensor.untyped_storage()._cdata)
            if life is not None:
                self._raw[life.block].category = category

    def settle_alive(self, phases: Iterable[str], category: Category, name: str = "") -> None:
        """Give all that was born in these phases, is alive now and has no category yet, this one, and a name."""
        for life in self._lives.values():
            raw = self._raw[life.block]
            if raw.category is None and raw.phase in phases:
                raw.category = category
                raw.name = name or raw.name

    def name(self, tensor: torch.Tensor, owner: str, name: str) -> None:
        """Say what a storage is that is alive now, and to which module it belongs: to none, where several share it."""
        life = self._lives.get(tensor.untyped_storage()._cdata)
        if life is not None:
            raw = self._raw[life.block]
            raw.owner = owner if raw.name == "" or raw.owner == owner else ""
            raw.name = name

    def unsettled(self, but: Category) -> list[RawBlock]:
        """Return the blocks that have no category yet, or this one."""
        return [raw for raw in self._raw if raw.category is None or raw.category is but]

    def blocks(self) -> list[Block]:
        """Return all blocks; what has no category yet lived and died within a phase."""
        return [raw.block() for raw in self._raw]

    # -- recording ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        # What a reference cycle keeps is freed when Python happens to look for cycles. Here it never does: a step that
        # depends on it would be seen to keep storages.
        self._collects = gc.isenabled()
        gc.disable()
        self._resizing = mock.patch.object(torch.UntypedStorage, "resize_", self._watched_resize())
        self._resizing.start()
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's
        self._resizing.stop()
        if self._collects:
            gc.enable()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # it does the same with this rank's part, which is what is seen here
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            self._note_collective(func, args)
        if traits(func).asks_value:
            return self._answer(func, args, kwargs)
        func = self.as_autograd_would(func, args)
        watched = self.platform.watches(func)
        if self.known is not None:
            refuse_positions_beyond(self.known, func, args, self.paths.current)
        try:
            out = self._run(func, args, kwargs, watched)
        except Exception as error:
            if self.failure is not None:
                self.failure.note(error, f"aten.{operator_name(func)}", self.paths.current)
            raise
        if self.known is not None:
            self.known.saw(func, args, kwargs, out)
        self.operators.append(func)
        self._after(func, args, kwargs, out, watched)
        return out

    def _after(self, func: Any, args: Any, kwargs: Any, out: Any, watched: bool) -> None:
        """Note what an operator has made, and its call if it is watched or its work is noted."""
        fresh = self._on_device(func, self._fresh(out))
        noted = is_device_work(func) if self.notes_all else counts(func)
        if not watched and not fresh:
            if noted:
                self._note(func, args, kwargs, out)
            return
        phase, op, module = self._phase_of_births(), operator_name(func), self.paths.current
        born = tuple(self._see(tensor, op, (module, phase), None) for tensor in fresh)
        if watched:
            call = self._call(CallSpec.of(func, args, kwargs, out), born, (op, module, phase))
            self._events.append(call)
            if noted:
                self._calls.append(call)
            return
        self._events.extend(born)
        if noted:
            self._note(func, args, kwargs, out, (op, module, phase))

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any, where: tuple[str, str, str] | None = None) -> None:
        """Note a call that no event stands for.

        Args:
            func, args, kwargs, out: the call.
            where: operator, module and phase; None: they are asked for.
        """
        if where is None:
            again = self.phase in BACKWARDS and self.paths.recomputing
            where = (operator_name(func), self.paths.current, RECOMPUTE if again else self.phase)
        holds = self.platform.holds
        spec = CallSpec.bare(func) if is_view(func) else CallSpec.outline(func, args, kwargs, out, holds)
        self._calls.append(self._call(spec, (), where))

    def _call(self, spec: CallSpec, born: tuple[int, ...], where: tuple[str, str, str]) -> Call:
        number = self.specs.setdefault(spec, len(self.specs))
        return Call(number, born, *where, self.device.stream_number)

    def _run(self, func: Any, args: Any, kwargs: Any, watched: bool) -> Any:
        """Run an operator on meta; where the shape of what it returns depends on known values, it is theirs."""
        if self.known is not None and (traits(func).shapes_of_values or copies_to_host(func, args, kwargs)):
            with contextlib.suppress(NotKnownError):
                found = self.known.value(func, args, kwargs)
                return found if copies_to_host(func, args, kwargs) else on_meta(found)
        return self._alike.run(self.platform.run if watched else plainly, func, args, kwargs)

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operator that finds out something of its data returns.

        Raises:
            UnsupportedError: it depends on what a simulated step does not have.
        """
        if not any(tensor.is_meta for tensor in tensors_in(args)):
            return func(*args, **kwargs)
        if self.notes_all:
            self._note(func, args, kwargs, None)
        if self.known is None:
            known, answer = answered(func, args, padded=self.padded)
            if known:
                return answer
        else:
            with contextlib.suppress(NotKnownError):
                return self.known.value(func, args, kwargs)
        raise value_wanted(self.failure, operator_name(func), self.paths.current)

    def _phase_of_births(self) -> str:
        """Return the phase of what is born now, and settle what the last recomputation has left.

        That is done at the first birth after it: checkpointing ends a recomputation by an exception, which holds the
        variables of all that it leaves until it is caught.
        """
        if self.phase not in BACKWARDS:
            return self.phase
        if self.paths.recomputing:
            self._unsettled_recompute = True
            return RECOMPUTE
        if self._unsettled_recompute:
            self._unsettled_recompute = False
            self.settle_alive([RECOMPUTE], Category.ACTIVATIONS)
        return self.phase

    def _fresh(self, out: Any) -> list[torch.Tensor]:
        """Return the tensors of `out` whose storage is a new one on the device; one of 0 bytes takes nothing there."""
        if isinstance(out, torch.Tensor):
            return [out] if self._is_fresh(out) else []
        return [tensor for tensor in tensors_in(out) if self._is_fresh(tensor)]

    def _is_fresh(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage()
        known = storage._cdata in self._lives or storage._cdata in self._on_host
        return not known and self.platform.holds(tensor) and storage.nbytes() > 0

    def _on_device(self, func: Any, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the tensors, unless the operator makes its own on the host now: then note that they are there."""
        if func not in self.makes_on_host:
            return tensors
        for tensor in tensors:
            life = _Life(tensor.untyped_storage(), self._die)
            life.key = tensor.untyped_storage()._cdata
            self._on_host[life.key] = life
        return []

    def _see(self, tensor: torch.Tensor, op: str, where: tuple[str, str], category: Category | None) -> int:
        """Note a storage that is new, and the module and phase of its birth; return the number of its block."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._lives:  # twice among the outputs of one operator
            return self._lives[key].block
        number = len(self._raw)
        what = (storage.nbytes(), tuple(tensor.shape), dtype_name(tensor.dtype), op)
        self._raw.append(RawBlock(what, where, category, self.device.stream_number))
        self._live(storage, number)
        return number

    def _live(self, storage: Any, block: int) -> None:
        life = _Life(storage, self._die)
        life.block, life.key = block, storage._cdata
        self._lives[life.key] = life

    def _die(self, life: _Life) -> None:
        if self._lives.get(life.key) is life:
            del self._lives[life.key]
            self._events.append(~life.block)
        elif self._on_host.get(life.key) is life:
            del self._on_host[life.key]
        elif self._emptied.get(life.key) is life:
            del self._emptied[life.key]

    def _watched_resize(self) -> Callable[[Any, int], Any]:
        """Return `UntypedStorage.resize_`, watched: FSDP2 empties storages, and fills them again, to free and allocate
        what tensors are views of. No operator tells of that.
        """
        resize = torch.UntypedStorage.resize_

        @functools.wraps(resize)
        def watched(storage: Any, nbytes: int) -> Any:
            key, before = storage._cdata, storage.nbytes()
            life = self._lives.get(key) or self._emptied.get(key)
            if life is None or nbytes == before:
                return resize(storage, nbytes)
            if key in self._lives:
                del self._lives[key]
                self._events.append(~life.block)
                self._emptied[key] = life
            result = resize(storage, nbytes)
            if nbytes:
                del self._emptied[key]
                self._fill_again(storage, self._raw[life.block])
            return result

        return watched

    def _fill_again(self, storage: Any, before: RawBlock) -> None:
        number = len(self._raw)
        what = (storage.nbytes(), before.shape, before.dtype, before.op)
        raw = RawBlock(what, (self.paths.current, self._phase_of_births()), before.category, self.device.stream_number)
        raw.name, raw.owner = before.name, before.owner
        self._raw.append(raw)
        self._live(storage, number)
        self._events.append(number)

    def _note_collective(self, func: Any, args: Any) -> None:
        kind, position = COLLECTIVES.get(str(func), ("", 0))
        if kind:
            nbytes = sum(tensor.numel() * tensor.itemsize for tensor in tensors_in(args[position]))
            self.collectives.append((len(self.segments) - 1, kind, nbytes))


def operator_name(func: Any) -> str:
    """Return an operator's name for people: "mm", "_foreach_sqrt", "add_.Scalar"."""
    return str(func).removesuffix(".default").removeprefix("aten.")
