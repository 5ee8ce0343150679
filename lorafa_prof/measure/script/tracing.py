"""One step of a script, traced from the end of one optimizer step to the end of the next."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch

from lorafa_prof.ledger import Category
from lorafa_prof.measure.attribution import Attribution
from lorafa_prof.measure.communication import Lookout, settling_collectives, watching, without_address
from lorafa_prof.measure.devices import Device
from lorafa_prof.measure.marks import ModuleMarks
from lorafa_prof.measure.names import Name, Names, head_of, names_of_gradients, names_of_model, names_of_states
from lorafa_prof.measure.script.batches import batch_names, sizes_of_logits
from lorafa_prof.measure.script.holding import Departures, names_of_held
from lorafa_prof.measure.script.roots import inner_of, is_compiled
from lorafa_prof.measure.trace import StepTrace, Tracer

_UNHELD = (Category.TEMPORARIES, "", "held by no variable")
#: The phase of what the script does between forward, backward and optimizer: data, clipping, clearing gradients.
SCRIPT = "script"


class TracedStep:
    """Records a step that the script takes.

    Args:
        root: what the script calls.
        optimizers: all that step its parameters.
        device: what it is on.
        logits_sizes: bytes that logits had before.
    """

    def __init__(
        self,
        root: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        device: Device,
        logits_sizes: frozenset[int] = frozenset(),
    ) -> None:
        self._root, self._optimizers, self._device = root, optimizers, device
        self._model: Any = inner_of(root)
        self._vocabulary = vocabulary_of(self._model)
        self._logits_sizes = logits_sizes
        self._gradients: Names = {}
        self._marks_told = 0
        self._open = contextlib.ExitStack()
        self._tracer: Tracer | None = None
        self._has_begun = False

    def prepare(self, yield_to_profiler: Callable[[], None]) -> bool:
        """Get ready to begin, and return whether that is possible right now; else it is after one more step.

        Where the device forgets, that step is listened to as well: its gradients, its batch and what the script holds
        of its outputs end in the traced one.

        Args:
            yield_to_profiler: is called where the script begins to profile itself; it has to abandon the record.
        """
        if self._device.forgets:
            self._tracer = self._device.begin_trace({})
            self._tracer.tell(SCRIPT, "")
        self._open.enter_context(_before_profiling(yield_to_profiler))
        return not self._device.forgets

    def begin(self) -> None:
        """Begin the record; the script is between two operations."""
        gc.collect()
        before = names_of_held(self._device.type, self._logits_sizes)
        before |= names_of_gradients(self._model)
        before |= self._states()
        before |= names_of_model(self._model, self._device.type)
        if self._device.type == "cpu":
            before |= without_address(ddp_buckets(self._root))
        self._before = before
        if isinstance(self._root, torch.nn.parallel.DistributedDataParallel) and self._device.type == "cpu":
            self._open.enter_context(settling_collectives())
        self._departures = Departures(self._device.type) if self._device.forgets else None
        sizes = {address: name.nbytes for address, name in before.items()}
        if self._tracer is None:
            self._tracer = self._device.begin_trace(sizes)
        else:
            self._tracer.restart(sizes)
        self._lookout = Lookout(self._tell)
        self._marks = ModuleMarks(self._root, self._lookout.tell)
        self._open.enter_context(watching(type(self._root).__name__.startswith("FSDP"), self._lookout))
        self._open.enter_context(self._marks)
        self._has_begun = True
        self.enter(SCRIPT)

    def enter(self, phase: str) -> None:
        """Say that a phase begins: "forward", "backward", "optimizer", `SCRIPT`."""
        if not self._has_begun:
            return
        if phase == "optimizer":
            self._gradients.update(names_of_gradients(self._model))
        self._marks.enter_phase(phase)

    def _tell(self, phase: str, module: str) -> None:
        assert self._tracer is not None
        if self._departures is not None:
            self._departures.look(self._marks_told)
        self._marks_told += 1
        self._tracer.tell(phase, module)

    def see_batch(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Note what the model is called with."""
        self._logits_sizes |= sizes_of_logits(args, kwargs, self._vocabulary)
        if not self._has_begun:
            return
        names = batch_names(args, kwargs, self._device.type)
        for address, name in names.items():
            held = self._before.get(address)
            if held is not None and (held.module, held.tensor) == ("", "held by the script"):
                self._before[address] = name
        self._lookout.see(names)

    def finish(self) -> tuple[StepTrace, Attribution]:
        """End the record, when the optimizer has stepped."""
        states = self._states()
        self._open.close()
        assert self._tracer is not None
        trace = self._tracer.finish({} if self._departures is None else self._departures.seen)
        if self._device.forgets:  # what the allocator has of old is named by the device itself
            for address, block in trace.base.items():
                self._before.setdefault(address, Name(*_UNHELD, (), "", block.requested))
        return trace, Attribution(
            trace, self._before, self._gradients, states, self._logits_sizes, head_of(self._model),
            self._device.granule, self._lookout.sightings,
        )  # fmt: skip

    def abandon(self) -> None:
        """End the record without a result."""
        self._open.close()
        if self._tracer is not None:
            self._tracer.abandon()

    def _states(self) -> Names:
        names: Names = {}
        for optimizer in self._optimizers:
            names |= names_of_states(self._model, optimizer, self._device.type)
        return names


@contextlib.contextmanager
def _before_profiling(call: Callable[[], None]) -> Iterator[None]:
    """While entered, `call` comes before any other profiler's beginning: there is one in a process."""
    with contextlib.ExitStack() as patches:
        for name in ("_prepare_profiler", "_enable_profiler"):
            original = getattr(torch.autograd.profiler, name)
            patches.enter_context(mock.patch.object(torch.autograd.profiler, name, _after(call, original)))
        yield


def _after(call: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        call()
        return original(*args, **kwargs)

    return both


def vocabulary_of(model: Any) -> int | None:
    """Return how many logits a token has, where the model says which module makes them."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    features = getattr(head, "out_features", None)
    if isinstance(features, int):
        return features
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None


def ddp_buckets(root: Any) -> list[Name]:
    """Return the buckets in which DDP reduces gradients, by their sizes as DDP itself logs them."""
    if not isinstance(root, torch.nn.parallel.DistributedDataParallel) or root.gradient_as_bucket_view:
        return []
    logged = root._get_ddp_logging_data()
    text = str(logged.get("rebuilt_bucket_sizes") or logged.get("bucket_sizes") or "")
    dtype = next((p.dtype for p in root.parameters() if p.requires_grad), torch.float32)
    return [
        Name(
            Category.WORKSPACES, "", "DDP bucket", (size // dtype.itemsize,), str(dtype).removeprefix("torch."), size
        )
        for size in map(int, filter(None, (part.strip() for part in text.split(","))))
    ]  # fmt: skip


def why_not_traced(root: torch.nn.Module, device: Device) -> str | None:
    """Return why the next step of the script cannot be traced; None where it can."""
    if torch._C._autograd._profiler_enabled():
        return "the script's own profiler is at work"
    if device.type == "cuda" and _history_is_recorded():
        return "the script itself records the allocator's history"
    if any(is_compiled(module) for module in root.modules()):
        return "the model is compiled, and would be compiled anew to tell of its modules"
    return None


def _history_is_recorded() -> bool:
    """Return whether the CUDA allocator keeps a history for somebody; builds without CUDA cannot be asked."""
    ask: Callable[[], bool] = getattr(torch._C, "_cuda_isHistoryEnabled", lambda: False)
    return ask()
