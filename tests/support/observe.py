"""Observes a real training step: what it saves for backward, what is alive when, how much it computes.

    saved_tensors(run)       unique storages that autograd keeps between forward and backward, and for which node
    live_after_forward(run)  every storage alive after forward with only the loss held (sees through checkpointing)
    step_timeline(run)       births and deaths of all storages over a whole step in its steady state
    flops(run)               matrix-multiplication FLOPs of forward and backward
    parameter_counts(run)    parameters, and those trained

On the CPU the installed kernels run; on meta nothing is computed, and CUDA's choices of kernels are followed.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lorafa_prof.simulate.accumulation import InPlaceAccumulation
from lorafa_prof.simulate.kernels.choices import Choices
from lorafa_prof.simulate.kernels.cuda import cuda_on_meta
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import answered
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.lora_ga import has_pre_pass
from lorafa_prof.workload.models import batch
from lorafa_prof.workload.modules import ModulePaths
from lorafa_prof.workload.naming import kept_states, short_name
from lorafa_prof.workload.step import Workload, autocast, build_model
from tests.support.tracking import Block, Event, StorageTracker, storage_key


class AnsweredQuestions(TorchDispatchMode):
    """Answers `.item()` on meta as a full batch without padding would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known, answer = answered(func, args)
        return answer if known else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def kernels_of(device: str) -> Iterator[None]:
    """CUDA's choices of kernels on meta; on any other device that device's own."""
    with contextlib.ExitStack() as stack:
        if device == "meta":
            stack.enter_context(AnsweredQuestions())  # type: ignore[no-untyped-call]  # torch's
            stack.enter_context(cuda_on_meta(DeviceTraits((8, 0), 108), Choices()))
        yield


def compute_loss(model: torch.nn.Module, run: RunSpec, data: dict[str, torch.Tensor], device: str) -> torch.Tensor:
    """One forward, returning only the loss: logits and hidden states are let go, as in a training loop."""
    with autocast(run, device):
        loss: torch.Tensor = model(**data).loss
    return loss


@dataclass(frozen=True)
class Saved:
    """One tensor kept for backward. Those with the same `storage` share their bytes."""

    storage: int
    """Number of the storage, counted in the order of first saving."""
    nbytes: int
    """Bytes of the whole storage."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    module: str
    """Path of the module that was executing."""
    op: str
    """Node and attribute that keep it, such as "MulBackward0.self"; empty where no node of the graph does."""
    kind: str
    """activation, parameter, buffer, input, or "cast of <parameter>"."""


class _Held:
    """What autograd stores in place of a tensor; it dies with the node, so it tells what is still saved."""

    def __init__(self, tensor: torch.Tensor, module: str) -> None:
        self.tensor = tensor
        self.module = module
        self.op = ""


def saved_by(model: torch.nn.Module, data: dict[str, torch.Tensor], forward: Callable[[], torch.Tensor]) -> list[Saved]:
    """Every tensor that `forward` keeps for backward, in the order of saving, repetitions and weights included."""
    kinds = {storage_key(t): "parameter" for t in model.parameters()}
    kinds |= {storage_key(t): "buffer" for t in model.buffers()}
    kinds |= {storage_key(t): "input" for t in data.values()}
    parameters = {storage_key(t): short_name(name) for name, t in model.named_parameters()}
    held: list[weakref.ref[_Held]] = []
    node_name = ""

    def pack(tensor: torch.Tensor) -> _Held:
        holder = _Held(tensor.detach(), paths.current)
        held.append(weakref.ref(holder))
        return holder

    def unpack(holder: _Held) -> torch.Tensor:
        holder.op = node_name
        return holder.tensor

    with ModulePaths(model) as paths, _WeightCasts(parameters) as casts:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            loss = forward()
    for name, node, attribute in _saved_attributes(loss):
        node_name = name
        getattr(node, attribute)  # unpacks
    found = []
    numbers: dict[int, int] = {}
    for reference in held:
        if (holder := reference()) is None:
            continue
        tensor = holder.tensor
        key = storage_key(tensor)
        kind = kinds.get(key) or casts.kinds.get(key, "activation")
        number = numbers.setdefault(key, len(numbers))
        size = tensor.untyped_storage().nbytes()
        found.append(Saved(number, size, tuple(tensor.shape), tensor.dtype, holder.module, holder.op, kind))
    return found


def all_saved_tensors(run: RunSpec, device: str = "cpu") -> list[Saved]:
    """Every tensor that a forward of the run keeps for backward, repetitions and weights included."""
    if run.checkpointing != "none":
        raise ValueError("checkpointing hides what it saves from these hooks: use live_after_forward")
    model, data = build_model(run, device), batch(run, device)
    with kernels_of(device):
        return saved_by(model, data, lambda: compute_loss(model, run, data, device))


def saved_tensors(run: RunSpec, device: str = "cpu") -> list[Saved]:
    """Unique storages kept for backward; parameters, buffers and the batch itself (ids, labels) left out.

    Casts of weights are in (`kind` names the parameter), as is all that forward makes of the batch (shifted labels,
    masks, rotary tables). Of tensors that share a storage the first saved stands for all.
    """
    unique: dict[int, Saved] = {}
    for saved in all_saved_tensors(run, device):
        if saved.kind not in ("parameter", "buffer", "input"):
            unique.setdefault(saved.storage, saved)
    return list(unique.values())


class _WeightCasts(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the storages that are a parameter in another dtype."""

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.parameters = parameters
        self.kinds: dict[int, str] = {}
        self._keep: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and storage_key(args[0]) in self.parameters:
            self.kinds[storage_key(out)] = f"cast of {self.parameters[storage_key(args[0])]}"
            self._keep.append(out.untyped_storage())  # so that its key cannot be given to another
        return out


def _saved_attributes(loss: torch.Tensor) -> Iterator[tuple[str, Any, str]]:
    """(name, node, attribute) of everything that may be saved in the graph of the loss."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for attribute in dir(node):
            if attribute == "saved_tensors" or attribute.startswith("_saved_"):
                yield f"{node.name()}.{attribute.removeprefix('_saved_')}", node, attribute
        waiting += [inner for inner, _ in node.next_functions]


def _standing(model: torch.nn.Module, data: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All tensors that are there before the step."""
    found = [*model.parameters(), *model.buffers(), *data.values()]
    if getattr(model, "is_loaded_in_4bit", False):
        from lorafa_prof.workload.quantized import quantization_tensors

        found += quantization_tensors(model)
    return found


@dataclass(frozen=True)
class Live:
    """What one forward left alive."""

    nbytes: int
    blocks: list[Block]


def live_after_forward(run: RunSpec, device: str = "cpu") -> Live:
    """Storages made by one forward that are alive when only its loss is held, unrounded.

    Beyond `saved_tensors` this sees what checkpointing keeps, what custom functions keep outside
    `save_for_backward`, random number states and the loss itself.
    """
    model, data = build_model(run, device), batch(run, device)
    with ModulePaths(model) as paths, kernels_of(device):
        with StorageTracker(paths, round_up=False, ignore_cpu=device == "meta") as tracker:
            tracker.adopt(_standing(model, data), "before")
            tracker.phase = "forward"
            loss = compute_loss(model, run, data, device)
            blocks = [block for block in tracker.alive() if block.phase == "forward"]
        del loss
    return Live(sum(block.nbytes for block in blocks), blocks)


@dataclass(frozen=True)
class Timeline:
    """One training step in its steady state; bytes are absolute, with every storage rounded up to 512."""

    static_bytes: int
    """Parameters, buffers and the batch."""
    start_bytes: int
    """Before the step: static and optimizer states."""
    after_forward: int
    """With only the loss held."""
    after_backward: int
    """Gradients are there, all else of the graph is gone."""
    end_bytes: int
    """After zero_grad, the loss let go: equal to `start_bytes`."""
    peak: int
    peak_phase: str
    """forward, loss (its forward or backward), backward or optimizer."""
    peak_module: str
    peak_op: str
    phase_peaks: dict[str, int]
    alive_at_peak: list[Block]
    events: list[Event]


def step_timeline(run: RunSpec, device: str = "meta", steps: int = 2) -> Timeline:
    """Births and deaths of all storages over the last of `steps` steps.

    Forward, backward, optimizer step, zero_grad(set_to_none=True). Only the loss is held, until the end of the step:
    whoever holds the model's output (`out.loss.backward()`) holds the logits too. AdamW's step counters, which CUDA
    keeps on the host, count only when the device is the CPU.
    """
    with kernels_of(device):
        work = Workload.build(run, device)
    model, data, optimizer = work.model, work.batch, work.optimizer

    def one_step() -> tuple[int, int]:
        tracker.phase = "forward"
        loss = compute_loss(model, run, data, device)
        after_forward = tracker.live_bytes
        tracker.phase = "backward"
        loss.backward()
        after_backward = tracker.live_bytes
        tracker.phase = "optimizer"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return after_forward, after_backward

    with ModulePaths(model) as paths, kernels_of(device):
        with StorageTracker(paths, ignore_cpu=device == "meta") as tracker, InPlaceAccumulation():
            kept = [tensor for _, _, tensor in kept_states(model, optimizer)]
            static = tracker.adopt([*_standing(model, data), *kept], "before")
            for _ in range(steps - 1):
                one_step()
            first, start = len(tracker.events), tracker.live_bytes
            after_forward, after_backward = one_step()
    events = tracker.events[first:]
    top = max(events, key=lambda event: event.live)
    peaks: dict[str, int] = {}
    for event in events:
        peaks[_phase(event)] = max(event.live, peaks.get(_phase(event), 0))
    at = first + events.index(top)
    return Timeline(
        static_bytes=static, start_bytes=start, after_forward=after_forward, after_backward=after_backward,
        end_bytes=tracker.live_bytes, peak=top.live, peak_phase=_phase(top), peak_module=top.module, peak_op=top.op,
        phase_peaks=peaks, events=events,
        alive_at_peak=[b for b in tracker.blocks if b.born <= at and (b.died is None or b.died > at)],
    )  # fmt: skip


def _phase(event: Event) -> str:
    return "loss" if event.module == "loss" else event.phase


@dataclass(frozen=True)
class Flops:
    """Matrix-multiplication (and attention) FLOPs of one step, by operator."""

    forward: dict[str, int]
    backward: dict[str, int]

    @property
    def total_forward(self) -> int:
        return sum(self.forward.values())

    @property
    def total_backward(self) -> int:
        return sum(self.backward.values())


def flops(run: RunSpec, device: str = "meta") -> Flops:
    """FLOPs of forward and backward as FlopCounterMode counts them: attention in full, without a causal discount.

    Grouped products and those of 4-bit weights, which it does not know, are taken for what they are.
    """
    grouped = {torch.ops.aten._grouped_mm.default: _grouped_flops, torch.ops.aten._grouped_mm: _grouped_flops}
    if has_pre_pass(run):  # which names the layers that are adapted
        with kernels_of(device):
            model = Workload.build(run, device).model
    else:
        model = build_model(run, device)
    data = batch(run, device)
    if hasattr(torch.ops.bitsandbytes, "gemm_4bit"):
        grouped[torch.ops.bitsandbytes.gemm_4bit] = _gemm_4bit_flops
    with kernels_of(device):
        with FlopCounterMode(display=False, custom_mapping=grouped) as forward:
            loss = compute_loss(model, run, data, device)
        with FlopCounterMode(display=False, custom_mapping=grouped) as backward:
            loss.backward()
    return Flops(_by_operator(forward), _by_operator(backward))


def _gemm_4bit_flops(a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, int], *_: Any, **__: Any) -> int:
    """A product of rows a [.., k] by a weight [n, k] that is stored packed."""
    return 2 * math.prod(a) * shape[0]


def _grouped_flops(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Rows (n, m) by each its own matrix (e, m, k); or (k, n) by (n, m), each column going to its group's product."""
    return 2 * a[0] * a[1] * b[-1]


def _by_operator(counter: FlopCounterMode) -> dict[str, int]:
    counts = counter.get_flop_counts().get("Global", {})
    return {str(op).removeprefix("aten."): int(count) for op, count in counts.items()}


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters; weights that are tied count once."""

    total: int
    trainable: int
    buffers: int
    """Elements of floating-point buffers; VeRA keeps its shared matrices there."""


def parameter_counts(run: RunSpec) -> Counts:
    """Parameters of the model with its adapters, built on meta; weights are counted before quantisation."""
    model = build_model(run.replace(quant="none"), "meta")
    parameters = list(model.parameters())
    buffers = {id(b): b for b in model.buffers() if b.is_floating_point()}
    return Counts(
        total=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        buffers=sum(b.numel() for b in buffers.values()),
    )
