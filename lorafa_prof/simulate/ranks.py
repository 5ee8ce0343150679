"""One rank of several, alone on this machine and on meta tensors, running the very code that shares the work.

Process groups of the backend "fake" have any size and do nothing (torch.testing._internal.distributed.fake_pg). What
meta tensors lack beside that is here, and nowhere else: collectives, a device with streams for FSDP2, and answers to
the two questions that DDP asks of data. The rank is the first, whose shards are the largest.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.sharding import is_shared
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.parallel import Group

aten = torch.ops.aten

#: The stream on which everything runs that does not ask for another.
MAIN_STREAM = 0


@contextlib.contextmanager
def first_of(run: RunSpec) -> Iterator[tuple[Group | None, Device]]:
    """Be the first of the run's ranks; alone, where the run is not shared.

    Yields:
        the group, and the device with its streams.

    Raises:
        UnsupportedError: this torch cannot, or this process is in a group already.
    """
    device = Device()
    if not is_shared(run):
        yield None, device
        return
    dist = torch.distributed
    if not dist.is_available():
        raise UnsupportedError("this torch is built without torch.distributed, which sharing the work needs")
    if dist.is_initialized():
        raise UnsupportedError("this process is one of a group already, and cannot stand for a rank of another one")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=run.gpus)
    try:
        with collectives_on_meta(), device.of_meta(), _without_looking_at_data(), warnings.catch_warnings():
            # that results may be wrong, of models whose blocks return a view: here there are none
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield Group(rank=0, world_size=run.gpus), device
    finally:
        dist.destroy_process_group()


# -- collectives -----------------------------------------------------------------------------------------------------

#: By operator: what it is called in reports, and the argument that has all that is communicated.
COLLECTIVES: dict[str, tuple[str, int]] = {
    "c10d._allgather_base_.default": ("all_gather", 0),
    "c10d._reduce_scatter_base_.default": ("reduce_scatter", 1),
    "c10d.allreduce_.default": ("all_reduce", 0),
    "c10d.broadcast_.default": ("broadcast", 0),
}


@contextlib.contextmanager
def collectives_on_meta() -> Iterator[None]:
    """While entered, collectives of meta tensors are done as soon as they are asked for; c10d has no kernels there."""
    library = torch.library.Library("c10d", "IMPL")
    try:
        for name in ("allreduce_", "broadcast_"):
            library.impl(name, lambda tensors, *_: (tensors, _done(tensors)), "Meta")
        for name in ("_allgather_base_", "_reduce_scatter_base_"):
            library.impl(name, lambda output, *_: (output, _done([output])), "Meta")
        yield
    finally:
        library._destroy()


def _done(result: Sequence[torch.Tensor]) -> Any:
    """Return a work that is over; DDP takes the gradients from its future."""
    c10d: Any = torch._C._distributed_c10d  # torch's stubs do not have all of it
    future: Any = torch.futures.Future()
    future.set_result(list(result))
    return c10d.Work.boxed(c10d._create_work_from_future(future))


# -- FSDP2 -----------------------------------------------------------------------------------------------------------


class Device:
    """What FSDP2 takes as `torch.cuda`: it knows which stream is current, and nothing has to be waited for."""

    def __init__(self) -> None:
        self.stream_number = MAIN_STREAM
        """The stream on which storages are allocated now."""
        self._numbers = MAIN_STREAM

    @contextlib.contextmanager
    def of_meta(self) -> Iterator[None]:
        """While entered, this is `torch.meta`, where device meshes and FSDP2 look for the module of a device type.

        FSDP2 refuses to run on meta, where parameters are that somebody has forgotten to make.
        """
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.object(torch, "meta", _Module(self), create=True))
            with contextlib.suppress(ImportError):
                from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

                patches.enter_context(mock.patch.object(FSDPParamGroup, "_validate_no_meta_params"))
            yield

    def new_stream(self) -> _Stream:
        """Return a stream of its own."""
        self._numbers += 1
        return _Stream(self._numbers)


class _Module:
    """Stands for the module of a device type."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> None:
        return None

    def set_device(self, index: object) -> None:
        del index

    def Stream(self, priority: int = 0) -> _Stream:  # noqa: N802 - as torch.cuda has it
        del priority
        return self._device.new_stream()

    def Event(self) -> _Event:  # noqa: N802
        return _Event()

    def current_stream(self) -> _Stream:
        return _Stream(self._device.stream_number)

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        device, before = self._device, self._device.stream_number
        device.stream_number = stream.number
        try:
            yield
        finally:
            device.stream_number = before


class _Event:
    def record(self, stream: object = None) -> None:
        del stream


class _Stream:
    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, other: object) -> None:
        del other

    def wait_event(self, event: object) -> None:
        del event

    def record_event(self) -> None:
        """Return no event, as on the CPU: FSDP2 would ask the accelerator, of which there is none, to wait for it."""


# -- DDP -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _without_looking_at_data() -> Iterator[None]:
    """While entered, DDP takes it for granted that all ranks have the same parameters; it would compare their sizes."""
    with mock.patch("torch.nn.parallel.distributed._verify_param_shape_across_processes"):
        yield


class Buckets(TorchDispatchMode):
    """Notes what DDP's reducer allocates while it is made: in C++, but through the dispatcher, and kept to itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._seen: list[tuple[weakref.ref[Any], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is aten.empty.memory_format and out.is_meta:
            self._seen.append((weakref.ref(out.untyped_storage()), out.dtype))
        return out

    def beside(self, known: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return what is still there and in the storage of none of the known tensors."""
        keys = {tensor.untyped_storage()._cdata for tensor in known}
        alive = [(storage, dtype) for seen, dtype in self._seen if (storage := seen()) is not None]
        return [
            torch.empty(0, dtype=dtype, device="meta").set_(storage, 0, [storage.nbytes() // dtype.itemsize], [1])
            for storage, dtype in alive
            if storage._cdata not in keys
        ]


class _OwnIndices(TorchDispatchMode):
    """Lets a rank read what it has sent itself: the first rank tells all others which parameters go together."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._sent: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.copy_.default and args[0].is_meta != args[1].is_meta:
            if args[0].is_meta:
                self._sent[args[0].untyped_storage()._cdata] = args[1].clone()
            else:
                args = (args[0], self._sent[args[1].untyped_storage()._cdata])
        return func(*args, **kwargs)


class _NoLog:
    """Stands for DDP's logger, which warns that it cannot time what is on meta."""

    def set_runtime_stats_and_log(self) -> None:
        """Do nothing."""


def rebuild_buckets(wrapper: Any) -> None:
    """Let DDP make its buckets anew, in the order in which gradients came: what its second forward begins with."""
    wrapper.logger = _NoLog()
    with _OwnIndices():
        wrapper.reducer._rebuild_buckets()
