"""Runs a step on meta tensors and keeps its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import _disable_current_modes

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import INITIALISATION, PRE_PASS, PRE_PASS_BACKWARD, Category
from lorafa_prof.sharding import BY_FSDP
from lorafa_prof.simulate.kernels.managed import managed_memory
from lorafa_prof.simulate.platforms import Platform
from lorafa_prof.simulate.questions import KnownValues, Watching
from lorafa_prof.simulate.ranks import Buckets, first_of, rebuild_buckets
from lorafa_prof.simulate.recorder import Recorder
from lorafa_prof.simulate.recording import Recording, Segment, micro_batches, repeatable
from lorafa_prof.simulate.refusals import Failure, explained
from lorafa_prof.specs import ModelSpec, RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.communication import Buffers, watching_fsdp
from lorafa_prof.workload.lora_ga import (
    base_of,
    estimate,
    gradients_of,
    has_pre_pass,
    initialise,
)
from lorafa_prof.workload.models import batch
from lorafa_prof.workload.modules import ModulePaths
from lorafa_prof.workload.naming import (
    LOSS,
    common_path,
    counted_parameters,
    is_adapter,
    kept_states,
    named_states,
    shard_of,
    short_name,
    table_elements,
)
from lorafa_prof.workload.optimizers import make_optimizer, managed_bytes
from lorafa_prof.workload.quantized import quantization_state
from lorafa_prof.workload.remote_code import without_hub
from lorafa_prof.workload.step import loss_of, refuse_unbuilt

#: The phase in which DDP makes its buckets anew, and what these are called.
_REBUILD, _BUCKET = "rebuild", "DDP bucket"


def record(
    run: RunSpec,
    platform: Platform,
    build: Callable[..., Workload] = Workload.build,
    *,
    notes_all: bool = False,
) -> Recording:
    """Build the run's model, adapters and optimizer on meta and record a step of them.

    Forward and backward run once: a later step repeats them with storages of its own. That holds if whatever they make
    is gone when the step is over, which is looked at. Otherwise a second step is recorded, and is what repeats if it
    keeps nothing: bitsandbytes casts the biases of 4-bit layers in their first forward, once and for all. The optimizer
    always steps twice on the same gradients, since its first step alone makes the states.

    Args:
        run: the configuration.
        platform: the device that is simulated.
        build: makes the workload for a device ("meta") and, of several ranks, a group; another than `Workload.build`
            can add to it what a run does not say: that the batch is padded, another framework's preparation of the
            model.
        notes_all: note the calls of all operators, which says what the step computes and moves; otherwise only of
            those whose floating-point operations count.

    Raises:
        UnsupportedError: what is not built, or what meta tensors cannot run; the text names the operator.
    """
    if has_pre_pass(run):
        return _record_after_pre_pass(run, platform, notes_all=notes_all)
    failure, known = Failure(run), None if isinstance(run.model, ModelSpec) else KnownValues()
    with (
        platform.kernels(), managed_memory(run), _foreach_on_meta(), explained(failure), without_hub(),
        first_of(run) as (group, device),
    ):  # fmt: skip
        buckets = Buckets()
        with contextlib.nullcontext() if known is None else Watching(known), buckets:
            work = build(run, "meta") if group is None else build(run, "meta", group)
        if known is not None:
            _state_batch(known, work)
        with (
            ModulePaths(work.entry) as failure.paths,
            Recorder(
                failure.paths, platform, padded=work.padded, known=known, failure=failure, device=device,
                notes_all=notes_all,
            ) as recorder,
            _watching(recorder, work),
        ):  # fmt: skip
            _adopt(recorder, work.model, work.batch, buckets if _in_ddp(work) else None)
            _adopt_states(recorder, work)
            first, again = _steps(recorder, work)
            if isinstance(work.wrapper, DistributedDataParallel):
                first = (*first, *_rebuilding(recorder, work.wrapper))
                _, again = _steps(recorder, work)
            recording = _recording(recorder, work, first, again)
            if not recording.again:
                _, again = _steps(recorder, work)
                recording = _recording(recorder, work, first, again)
            if not recording.again:
                recording = _recording(recorder, work, tuple(s for s in recorder.segments[1:] if s.phase != "end"), ())
    return recording


def _foreach_on_meta() -> contextlib.AbstractContextManager[Any]:
    """Let gradients on meta be clipped by foreach kernels, as on the devices that it stands for."""
    return mock.patch("torch.nn.utils.clip_grad._device_has_foreach_support", return_value=True)


#: Operators that make the parameters of a new module.
_MADE_BY_MODULES = frozenset({torch.ops.aten.empty.memory_format})


def _record_after_pre_pass(run: RunSpec, platform: Platform, *, notes_all: bool) -> Recording:
    """Record what comes before the first step as well: gradients of the weights to be adapted, and adapters from them.

    Its segments stand before those of the first step; no later one repeats them.
    """
    failure = Failure(run)
    refuse_unbuilt(run)
    if not isinstance(run.model, ModelSpec):
        raise UnsupportedError(f"{run.model.name}: LoRA-GA is simulated for models of the catalog alone")
    with platform.kernels(), managed_memory(run), _foreach_on_meta(), explained(failure), without_hub():
        base, data = base_of(run, "meta"), batch(run, "meta")
        with (
            ModulePaths(base) as failure.paths,
            Recorder(failure.paths, platform, padded=run.padded, failure=failure, notes_all=notes_all) as recorder,
        ):
            _adopt(recorder, base, data)
            config = estimate(base, run, lambda: _pre_pass(recorder, base, run, data))
            recorder.settle(gradients_of(base), Category.GRADIENTS)
            if not platform.holds(torch.empty(1)):
                recorder.makes_on_host = _MADE_BY_MODULES  # PEFT's layers before they get what was computed for them
            model = initialise(base, run, config)
            recorder.makes_on_host = frozenset()
            failure.paths.rename(model)
            for category, named in _held_by_modules(model).items():
                for name, tensor in named:
                    module, _, leaf = name.rpartition(".")
                    recorder.settle([tensor], category)
                    recorder.name(tensor, module, leaf)
            work = Workload(run, "meta", model, make_optimizer(model, run), data, padded=run.padded)
            before = tuple(recorder.segments[1:])
            first, again = _steps(recorder, work)
            return _recording(recorder, work, (*before, *first), again)


def _pre_pass(recorder: Recorder, model: torch.nn.Module, run: RunSpec, data: dict[str, torch.Tensor]) -> None:
    recorder.enter_phase(PRE_PASS)
    loss = loss_of(model, run, data, "meta")
    recorder.settle([loss], Category.LOGITS)
    recorder.name(loss, LOSS, LOSS)
    recorder.settle_alive([PRE_PASS], Category.ACTIVATIONS)
    recorder.enter_phase(PRE_PASS_BACKWARD)
    loss.backward()
    _settle_gradients(recorder, model)
    del loss
    recorder.enter_phase(INITIALISATION)


def _state_batch(known: KnownValues, work: Workload) -> None:
    """Say what is in the batch: ids that do not stand for padding, a mask of ones, labels of the first class."""
    config: Any = work.model.config
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "pad_token_id"))]
    known.pad_ids = frozenset(i for i in (getattr(p, "pad_token_id", None) for p in parts) if isinstance(i, int))
    for name, tensor in work.batch.items():
        if name == "attention_mask" and not work.padded:
            known.state(tensor, partial(torch.ones, tensor.shape, dtype=tensor.dtype, device="cpu"))
        elif name == "labels" and work.run.model.task == "seq-cls":
            known.state(tensor, partial(torch.zeros, tensor.shape, dtype=tensor.dtype, device="cpu"))
        elif name in ("input_ids", "labels") and not work.padded:
            known.state_tokens(tensor)


def _recording(recorder: Recorder, work: Workload, first: tuple[Segment, ...], again: tuple[Segment, ...]) -> Recording:
    _settle_logits(recorder, work)
    return repeatable(
        Recording(
            run=work.run, blocks=recorder.blocks(), specs=list(recorder.specs), load=recorder.segments[0], first=first,
            again=again, operators=tuple(map(str, recorder.operators)), parameters=counted_parameters(work.model),
            collectives=_collectives(recorder, again), managed=managed_bytes(work.optimizer),
            table_elements=_table_elements(work.model), notes_all=recorder.notes_all,
        )
    )  # fmt: skip


def _table_elements(model: torch.nn.Module) -> int | None:
    """Return the elements of the embedding table; None for an architecture that does not say which it is."""
    try:
        return table_elements(model)
    except (NotImplementedError, AttributeError):
        return None


def _collectives(recorder: Recorder, again: tuple[Segment, ...]) -> tuple[tuple[str, int], ...]:
    """Return the collectives of the repeated step."""
    numbers = {number for number, segment in enumerate(recorder.segments) if any(segment is s for s in again)}
    return tuple((kind, nbytes) for number, kind, nbytes in recorder.collectives if number in numbers)


@contextlib.contextmanager
def _watching(recorder: Recorder, work: Workload) -> Iterator[None]:
    """While entered, FSDP2's buffers get their categories and names when they are made."""
    if work.run.shard not in BY_FSDP:
        yield
        return

    def see(buffers: Buffers) -> None:
        for buffer in buffers:
            recorder.settle([buffer.tensor], buffer.category)
            recorder.name(buffer.tensor, short_name(buffer.path), buffer.what)

    with watching_fsdp(see):
        yield


def _rebuilding(recorder: Recorder, wrapper: DistributedDataParallel) -> tuple[Segment]:
    """Let DDP rebuild its buckets, as its second forward begins with; return the segment of that."""
    recorder.enter_phase(_REBUILD)
    rebuild_buckets(wrapper)
    recorder.settle_alive([_REBUILD], Category.WORKSPACES, _BUCKET)
    rebuilt = recorder.segments[-1]
    recorder.enter_phase("end")
    return (rebuilt,)


def _steps(recorder: Recorder, work: Workload) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Run a step whose optimizer steps twice; return the first step's segments, and those of any later one."""
    began = len(recorder.segments)
    loss: torch.Tensor | None = None
    recorded = micro_batches(work.run)
    for number in range(1, recorded + 1):
        loss = None  # that of the micro-batch before is not held
        with work.micro_batch(last=number == recorded):
            recorder.enter_phase("forward")
            loss = work.loss()
            recorder.settle([loss], Category.LOGITS)
            recorder.name(loss, LOSS, LOSS)
            _settle_replaced(recorder, work)
            recorder.settle_alive(["forward"], Category.ACTIVATIONS)
            recorder.enter_phase("backward")
            work.backward(loss)
            _settle_gradients(recorder, work.model)
    for _ in range(2):
        recorder.enter_phase("optimizer")
        work.clip()
        work.optimizer.step()
        _settle_states(recorder, work)
    recorder.enter_phase("zero_grad")
    work.optimizer.zero_grad(set_to_none=True)
    del loss
    recorder.enter_phase("end")
    *passes, making, stepping, clearing, _ = recorder.segments[began:]
    return (*passes, making, clearing), (*passes, stepping, clearing)


def _in_ddp(work: Workload) -> bool:
    return isinstance(work.wrapper, DistributedDataParallel)


def _adopt(
    recorder: Recorder, model: torch.nn.Module, data: dict[str, torch.Tensor], buckets: Buckets | None = None
) -> None:
    """Count what is there before the first step, module by module as it is loaded, adapters after the base."""
    held = _held_by_modules(model)
    for category, named in held.items():
        recorder.adopt(named, category)
    if buckets is not None:
        known = [tensor for named in held.values() for _, tensor in named]
        with _disable_current_modes():
            found = buckets.beside([*known, *data.values()])
        recorder.adopt([(_BUCKET, tensor) for tensor in found], Category.WORKSPACES)
        for tensor in found:
            recorder.name(tensor, "", _BUCKET)
    recorder.adopt([(f"batch.{name}", tensor) for name, tensor in data.items()], Category.ACTIVATIONS)


def _adopt_states(recorder: Recorder, work: Workload) -> None:
    """Count what the optimizer has made before the first step."""
    for path, name, tensor in kept_states(work.model, work.optimizer):
        module = short_name(path).rpartition(".")[0]
        recorder.adopt([(f"{module}.{name}", tensor)], Category.OPTIMIZER)
        recorder.name(tensor, module, name)


def _held_by_modules(model: torch.nn.Module) -> dict[Category, list[tuple[str, torch.Tensor]]]:
    """Return the parameters and buffers of the base and those of the adapters, by name."""
    held: dict[Category, list[tuple[str, torch.Tensor]]] = {Category.WEIGHTS: [], Category.ADAPTERS: []}
    for path, module in model.named_modules():
        own = [*module.named_parameters(path, recurse=False), *module.named_buffers(path, recurse=False)]
        for name, tensor in [*own, *quantization_state(path, module)]:
            category = Category.ADAPTERS if is_adapter(name) else Category.WEIGHTS
            held[category].append((short_name(name), shard_of(tensor)))
    return held


def _settle_replaced(recorder: Recorder, work: Workload) -> None:
    """Count what the forward has put in a parameter's place as one: bitsandbytes casts a bias to its input's dtype."""
    for category, named in _held_by_modules(work.model).items():
        recorder.settle((tensor for _, tensor in named), category)


def _settle_gradients(recorder: Recorder, model: torch.nn.Module) -> None:
    """Count the gradients; FSDP2 keeps those of a block in one storage."""
    names: dict[int, tuple[torch.Tensor, str, str]] = {}
    for path, parameter in model.named_parameters():
        if parameter.grad is not None:
            module, _, leaf = short_name(path).rpartition(".")
            gradient = shard_of(parameter.grad)
            before = names.get(key := gradient.untyped_storage()._cdata)
            together = None if before is None else (common_path(before[1], module), "gradients")
            names[key] = (gradient, *(together or (module, f"gradient of {leaf}")))
    for gradient, module, name in names.values():
        recorder.settle([gradient], Category.GRADIENTS)
        recorder.name(gradient, module, name)


def _settle_states(recorder: Recorder, work: Workload) -> None:
    """Count the optimizer's states, each as its parameter's; tables that all of them share are nobody's."""
    trained = {path: p for path, p in work.model.named_parameters() if p.requires_grad}
    paths = {p: path for path, p in trained.items()}
    states: dict[Any, dict[str, Any]] = work.optimizer.state
    for key, state in states.items():
        # PEFT's LoRA-FA goes by names: for a pair of adapters by what they have in common, and only B is trained
        path = next(path for path in trained if path.startswith(key)) if isinstance(key, str) else paths[key]
        module = short_name(path).rpartition(".")[0]
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                recorder.settle([shard_of(value)], Category.OPTIMIZER)
                recorder.name(shard_of(value), module, name)
    for path, name, tensor in kept_states(work.model, work.optimizer):
        recorder.settle([tensor], Category.OPTIMIZER)
        recorder.name(tensor, short_name(path).rpartition(".")[0], name)
    for path, name, tensor in named_states(work.model):
        module, _, leaf = short_name(path).rpartition(".")
        recorder.settle([tensor], Category.OPTIMIZER)
        recorder.name(tensor, module, f"{name} of {leaf}")


def _settle_logits(recorder: Recorder, work: Workload) -> None:
    """Count what the loss makes, and what is as wide as the vocabulary around it, as logits."""
    vocabulary = work.run.model.vocab_size
    head = next((short_name(n) for n, m in work.model.named_modules() if m is _output_head(work.model)), None)
    for raw in recorder.unsettled(Category.ACTIVATIONS):
        if raw.phase == "optimizer":  # which computes outside of any module, a row of its states for each word too
            continue
        outermost = raw.module == "" or (head is not None and f"{raw.module}.".startswith(f"{head}."))
        if raw.module == LOSS or (outermost and raw.shape[-1:] == (vocabulary,)):
            raw.category = Category.LOGITS


def _output_head(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
