"""Runs a step on meta tensors and keeps its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from lorafa_prof.ledger import Category
from lorafa_prof.simulate.kernels.managed import managed_memory
from lorafa_prof.simulate.platforms import Platform
from lorafa_prof.simulate.questions import KnownValues, Watching
from lorafa_prof.simulate.recorder import Recorder
from lorafa_prof.simulate.recording import Recording, Segment, micro_batches, repeatable
from lorafa_prof.simulate.refusals import Failure, explained
from lorafa_prof.specs import ModelSpec, RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.modules import ModulePaths
from lorafa_prof.workload.naming import LOSS, counted_parameters, is_adapter, named_states, short_name
from lorafa_prof.workload.optimizers import managed_bytes
from lorafa_prof.workload.quantized import quantization_state
from lorafa_prof.workload.remote_code import without_hub


def record(run: RunSpec, platform: Platform, build: Callable[[RunSpec, str], Workload] = Workload.build) -> Recording:
    """Build the run's model, adapters and optimizer on meta and record a step of them.

    Forward and backward run once: a later step repeats them with storages of its own. That holds if whatever they make
    is gone when the step is over, which is looked at. Otherwise a second step is recorded, and is what repeats if it
    keeps nothing: bitsandbytes casts the biases of 4-bit layers in their first forward, once and for all. The optimizer
    always steps twice on the same gradients, since its first step alone makes the states.

    Args:
        run: the configuration.
        platform: the device that is simulated.
        build: makes the workload for a device ("meta"); another than `Workload.build` can add to it what a run does
            not say: that the batch is padded, another framework's preparation of the model.

    Raises:
        UnsupportedError: what is not built, or what meta tensors cannot run; the text names the operator.
    """
    failure, known = Failure(run), None if isinstance(run.model, ModelSpec) else KnownValues()
    with platform.kernels(), managed_memory(run), _foreach_on_meta(), explained(failure), without_hub():
        with contextlib.nullcontext() if known is None else Watching(known):
            work = build(run, "meta")
        if known is not None:
            _state_batch(known, work)
        with (
            ModulePaths(work.model) as failure.paths,
            Recorder(failure.paths, platform, padded=work.padded, known=known, failure=failure) as recorder,
        ):
            _adopt(recorder, work)
            first, again = _steps(recorder, work)
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
            managed=managed_bytes(work.optimizer),
        )
    )  # fmt: skip


def _steps(recorder: Recorder, work: Workload) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Run a step whose optimizer steps twice; return the first step's segments, and those of any later one."""
    began = len(recorder.segments)
    loss: torch.Tensor | None = None
    for _ in range(micro_batches(work.run)):
        loss = None  # that of the micro-batch before is not held
        recorder.enter_phase("forward")
        loss = work.loss()
        recorder.settle([loss], Category.LOGITS)
        recorder.name(loss, LOSS, LOSS)
        _settle_replaced(recorder, work)
        recorder.settle_alive(["forward"], Category.ACTIVATIONS)
        recorder.enter_phase("backward")
        work.backward(loss)
        _settle_gradients(recorder, work)
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


def _adopt(recorder: Recorder, work: Workload) -> None:
    """Count what is there before the first step, module by module as it is loaded, adapters after the base."""
    for category, named in _held_by_modules(work.model).items():
        recorder.adopt(named, category)
    recorder.adopt([(f"batch.{name}", tensor) for name, tensor in work.batch.items()], Category.ACTIVATIONS)


def _held_by_modules(model: torch.nn.Module) -> dict[Category, list[tuple[str, torch.Tensor]]]:
    """Return the parameters and buffers of the base and those of the adapters, by name."""
    held: dict[Category, list[tuple[str, torch.Tensor]]] = {Category.WEIGHTS: [], Category.ADAPTERS: []}
    for path, module in model.named_modules():
        own = [*module.named_parameters(path, recurse=False), *module.named_buffers(path, recurse=False)]
        for name, tensor in [*own, *quantization_state(path, module)]:
            category = Category.ADAPTERS if is_adapter(name) else Category.WEIGHTS
            held[category].append((short_name(name), tensor))
    return held


def _settle_replaced(recorder: Recorder, work: Workload) -> None:
    """Count what the forward has put in a parameter's place as one: bitsandbytes casts a bias to its input's dtype."""
    for category, named in _held_by_modules(work.model).items():
        recorder.settle((tensor for _, tensor in named), category)


def _settle_gradients(recorder: Recorder, work: Workload) -> None:
    for path, parameter in work.model.named_parameters():
        if parameter.grad is not None:
            module, _, leaf = short_name(path).rpartition(".")
            recorder.settle([parameter.grad], Category.GRADIENTS)
            recorder.name(parameter.grad, module, f"gradient of {leaf}")


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
                recorder.settle([value], Category.OPTIMIZER)
                recorder.name(value, module, name)
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
